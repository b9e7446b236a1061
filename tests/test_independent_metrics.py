"""The metrics in a run's record, computed a second time without the project's metric code, from the definitions.

Speech: word and character errors of the whole split over its words and characters, by a plain edit distance. Language:
the nats of all tokens in windows of the context, over ln 2 and the text's bytes. Images: per photograph, then the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from skimage.metrics import structural_similarity
from tokenizers import Tokenizer

from experiments.core import run
from tests.asr.conftest import speech_root as speech_root
from tests.core.test_run import with_callback
from tests.llm.conftest import jsonl as jsonl
from tests.llm.conftest import tiny as tiny
from tests.vqvae.conftest import make_store as make_store
from tests.vqvae.test_module import TINY, TINY_MODEL

TOLERANCE = 2e-5


class Keep(Callback):
    """The module and the data of a run, as its test has found them."""

    module: Any
    data: Any

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        head = getattr(pl_module.model, "head", None)
        if head is None:
            return
        # A recogniser that has learnt nothing says one thing; this one says something else of every frame.
        with torch.no_grad():
            head.weight.normal_(0.0, 20.0, generator=torch.Generator().manual_seed(1))
            batch = next(iter(trainer.datamodule._eval_loader("test-clean")))  # type: ignore[attr-defined]
            log_probs, _ = pl_module.model.eval()(batch.features, batch.feature_lengths)
            head.bias -= log_probs.mean(dim=(0, 1))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module, self.data = pl_module, trainer.datamodule

    def at_rest(self) -> None:
        self.module.eval().requires_grad_(False)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Keep:
    keep = Keep()
    with_callback(monkeypatch, keep)
    return keep


def distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Substitutions, insertions and deletions from one to the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def transcripts(root: Path, split: str) -> dict[str, str]:
    lines = [line for path in root.glob(f"{split}/*/*/*.trans.txt") for line in path.read_text().splitlines()]
    return {key: text for key, _, text in (line.partition(" ") for line in lines)}


def test_speech(compose_config, speech_root: Path, kept: Keep) -> None:
    small = ("model.dim=16", "model.layers=1", "model.heads=2", "model.kernel=3")
    record = run.execute(
        compose_config(
            "experiment=asr_cpu", "debug=fast", "data.cache_features=false", f"data.root={speech_root}", *small
        )
    )
    kept.at_rest()
    spoken = set()
    for split in ("test-clean", "test-other"):
        texts = transcripts(speech_root, split)
        word_errors = words = character_errors = characters = 0
        for batch in kept.data._eval_loader(split):
            for i, key in enumerate(batch.ids):
                frames = int(batch.feature_lengths[i])
                log_probs, lengths = kept.module.model(
                    batch.features[i : i + 1, :frames], batch.feature_lengths[i : i + 1]
                )
                symbols = log_probs[0, : lengths[0]].argmax(dim=-1).tolist()
                merged = [s for n, s in enumerate(symbols) if s != 0 and (n == 0 or symbols[n - 1] != s)]
                said = "".join("_ 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"[symbol] for symbol in merged)
                said = " ".join(said.split())
                spoken.add(said)
                word_errors += distance(said.split(), texts[key].split())
                words += len(texts[key].split())
                character_errors += distance(said, texts[key])
                characters += len(texts[key])
        assert record["metrics"][f"{split}/wer"] == pytest.approx(word_errors / words, rel=TOLERANCE)
        assert record["metrics"][f"{split}/cer"] == pytest.approx(character_errors / characters, rel=TOLERANCE)
    assert len(spoken) > 3


def test_language(compose_config, tiny: list[str], kept: Keep) -> None:
    record = run.execute(compose_config(*tiny))
    kept.at_rest()
    tokenizer = Tokenizer.from_file(str(kept.data.packed.folder / "tokenizer.json"))
    end, length = tokenizer.token_to_id("<|end|>"), kept.data.length
    for split in ("test",):
        texts = list(kept.data.source.documents(split))
        stream = [end]
        for text in texts:
            stream += [*tokenizer.encode(text, add_special_tokens=False).ids, end]
        nats = 0.0
        for start in range(0, len(stream) - 1, length):
            window = torch.tensor(stream[start : start + length + 1])
            logits = kept.module.model.llama(input_ids=window[None, :-1], use_cache=False).logits[0].double()  # (T, V)
            nats -= logits.log_softmax(dim=-1).gather(1, window[1:, None]).sum().item()
        size = sum(len(text.encode("utf-8")) for text in texts)
        metrics = record["metrics"]
        assert metrics[f"{split}/bits_per_byte"] == pytest.approx(nats / math.log(2.0) / size, rel=TOLERANCE)
        assert metrics[f"{split}/loss"] == pytest.approx(nats / (len(stream) - 1), rel=TOLERANCE)
        assert metrics[f"{split}/perplexity"] == pytest.approx(math.exp(nats / (len(stream) - 1)), rel=TOLERANCE)


def logistic_bits(parameters: torch.Tensor, tile: torch.Tensor) -> float:
    """Bits per dimension of a tile (3, H, W) under mixtures of discretized logistics, term by term in float64."""
    weights, means, scales = parameters.double().unbind(1)  # (3, M, H, W) each
    value = tile.double()[:, None] / 127.5 - 1.0
    narrow = torch.exp(-scales.clamp(min=-7.0))
    up = torch.where(tile[:, None] == 255, 1.0, torch.sigmoid((value - means + 1 / 255) * narrow))
    low = torch.where(tile[:, None] == 0, 0.0, torch.sigmoid((value - means - 1 / 255) * narrow))
    return -float(torch.log2((weights.softmax(dim=1) * (up - low)).sum(dim=1)).mean())


def test_images(compose_config, make_store, kept: Keep) -> None:
    words = ("experiment=vqvae_cpu", *TINY, *TINY_MODEL["ConvVQVAE"], f"data.root={make_store(size=16)}")
    record = run.execute(compose_config(*words))
    kept.at_rest()
    photographs: dict[int, list[dict[str, float]]] = {}
    used = np.zeros(kept.module.model.quantiser.codes, dtype=int)
    for batch in kept.data.test_dataloader():
        for tile, photograph in zip(batch.tiles, batch.photographs.tolist(), strict=True):
            output = kept.module.model(tile[None])
            parameters = output.parameters[0]
            weights, means, _ = parameters.unbind(1)
            made = ((weights.softmax(dim=1) * means.clamp(-1, 1)).sum(dim=1).double().numpy() + 1.0) / 2.0
            given = tile.double().numpy() / 255.0
            similarity = structural_similarity(
                made,
                given,
                channel_axis=0,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            one = {"bits_per_dim": logistic_bits(parameters, tile), "mse": ((made - given) ** 2).mean()}
            photographs.setdefault(photograph, []).append(one | {"ssim": float(similarity)})
            used += np.bincount(output.quantised.indices.flatten().numpy(), minlength=len(used))
    assert len(photographs) > 1
    means_of = [{name: np.mean([t[name] for t in tiles]) for name in tiles[0]} for tiles in photographs.values()]
    metrics = record["metrics"]
    for name in ("bits_per_dim", "mse"):
        assert metrics[f"test/{name}"] == pytest.approx(np.mean([one[name] for one in means_of]), rel=TOLERANCE)
    psnr = np.mean([-10.0 * math.log10(one["mse"]) for one in means_of])
    assert metrics["test/psnr"] == pytest.approx(psnr, rel=TOLERANCE)
    # The only difference left is the border of the windows, which scikit-image cuts off.
    assert metrics["test/ssim"] == pytest.approx(np.mean([one["ssim"] for one in means_of]), abs=0.05)
    share = used[used > 0] / used.sum()
    assert metrics["test/codebook_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=TOLERANCE)
    assert metrics["test/codebook_usage"] == pytest.approx((used > 0).mean(), rel=TOLERANCE)
