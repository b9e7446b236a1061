"""Packed tokens: cached, cut into windows, and ordered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.core.errors import ConfigError, DataError
from experiments.llm import packing, tokenizer
from experiments.llm.data import EvaluationBatches, PackedText, StreamedText, TrainWindows
from experiments.llm.text import Files
from tests.llm.conftest import documents


def test_smallest_type_that_holds_every_token() -> None:
    assert packing.token_dtype(65_536) == np.uint16
    assert packing.token_dtype(65_537) == np.uint32


@pytest.mark.parametrize(
    ("tokens", "length", "batch", "world"), [(10, 3, 2, 1), (9, 4, 8, 1), (50, 7, 2, 3), (3, 9, 1, 2)]
)
def test_evaluation_has_each_target_exactly_once(tokens: int, length: int, batch: int, world: int) -> None:
    stream = np.arange(tokens, dtype=np.uint16)
    counted: list[int] = []
    loaders = [EvaluationBatches(stream, length, batch, rank, world) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1
    for loader in loaders:
        for number in range(len(loader)):
            item = loader[number]
            real = item.targets >= 0
            assert (item.inputs + 1)[real].equal(item.targets[real])
            counted += item.targets[real].tolist()
    assert sorted(counted) == list(range(1, tokens))


def test_training_windows_are_gathered_from_the_stream() -> None:
    windows = TrainWindows(np.arange(23, dtype=np.uint32), 5)
    assert len(windows) == 4
    batch = windows.__getitems__([3, 0])
    assert batch.inputs.tolist() == [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]
    assert batch.targets.tolist() == [[16, 17, 18, 19, 20], [1, 2, 3, 4, 5]]


def module(folder: Path, cache: Path, **options: object) -> PackedText:
    spec = {"kind": "bytes", "vocab_size": 257, **options.pop("tokenizer", {})}  # type: ignore[dict-item]
    source = Files(f"{folder}/*.jsonl", val_share=options.pop("val_share", 0.2), test_share=0.2)  # type: ignore[arg-type]
    settings = {"length": 16, "batch_size": 2, **options}
    data = PackedText(source, spec, cache_dir=str(cache), **settings)  # type: ignore[arg-type]
    data.configure(train_batches=3, data_seed=1)
    return data


def ready(*args: object, **options: object) -> PackedText:
    data = module(*args, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def test_documents_follow_each_other_between_end_tokens(jsonl, tmp_path: Path) -> None:
    texts = [*documents(30), "", "naïve"]
    data = ready(jsonl(texts), tmp_path / "cache")
    every = []
    for role in ("train", "val", "test"):
        tokens = data.packed.tokens(role)
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == np.uint16
        assert tokens[0] == tokens[-1] == 256
        parts = np.split(tokens, np.flatnonzero(tokens == 256))[1:-1]
        every += [bytes(part[1:].astype(np.uint8)).decode() for part in parts]
        assert data.description[f"{role}_documents"] == len(parts)
        assert data.description[f"{role}_bytes"] == len(tokens) - len(parts) - 1
    assert sorted(every) == sorted(text for text in texts if text)
    assert data.problems == {"empty-document": 1}


def test_tokens_are_cached_and_the_fingerprint_is_that_of_the_text(jsonl, tmp_path: Path) -> None:
    folder = jsonl(documents(30))
    first = ready(folder, tmp_path / "cache")
    written = (first.packed.folder / "meta.json").stat().st_mtime_ns
    again = ready(folder, tmp_path / "cache")
    assert again.packed.folder == first.packed.folder
    assert (again.packed.folder / "meta.json").stat().st_mtime_ns == written
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [first.packed.folder.name]
    elsewhere = ready(folder, tmp_path / "elsewhere")
    assert elsewhere.fingerprint == first.fingerprint
    assert first.fingerprint.startswith("sha256:")
    bpe = ready(folder, tmp_path / "cache", tokenizer={"kind": "bpe", "vocab_size": 300})
    assert bpe.packed.folder != first.packed.folder
    assert bpe.fingerprint != first.fingerprint
    jsonl([*documents(30), "one more, and not a short one"])
    assert ready(folder, tmp_path / "cache").fingerprint != first.fingerprint


def test_a_tokenizer_from_a_file_makes_the_same_tokens(jsonl, tmp_path: Path) -> None:
    folder = jsonl(documents(60))
    trained = ready(folder, tmp_path / "cache", tokenizer={"kind": "bpe", "vocab_size": 300})
    file = tmp_path / "mine.json"
    file.write_text(trained.tokenizer.dumps(), encoding="utf-8")
    spec = {"kind": "file", "vocab_size": 300, "file": str(file)}
    assert ready(folder, tmp_path / "cache", tokenizer=spec).fingerprint == trained.fingerprint
    with pytest.raises(ConfigError, match="vocab_size must be 300, the size of the tokenizer, got 400"):
        ready(folder, tmp_path / "cache", tokenizer={**spec, "vocab_size": 400})
    with pytest.raises(DataError, match=r"no tokenizer at data.tokenizer.file=.*gone\.json"):
        ready(folder, tmp_path / "cache", tokenizer={**spec, "file": str(tmp_path / "gone.json")})


def test_a_cache_that_does_not_match_is_refused(jsonl, tmp_path: Path) -> None:
    folder = jsonl(documents(60))
    data = ready(folder, tmp_path / "cache", tokenizer={"kind": "bpe", "vocab_size": 300})
    cache = data.packed.folder
    kept = (cache / "tokenizer.json").read_text()
    (cache / "tokenizer.json").write_text(tokenizer.BytePairs.train(documents(60, seed=3, words=9), 300).dumps())
    with pytest.raises(DataError, match=r"tokenizer\.json is not the tokenizer that made the tokens beside it"):
        packing.PackedFolder(cache)
    (cache / "tokenizer.json").write_text(kept)
    packing.PackedFolder(cache, data.packed.meta["made_from"])
    with pytest.raises(DataError, match="holds tokens of other text or of another tokenizer"):
        packing.PackedFolder(cache, {**data.packed.meta["made_from"], "tokenizer": {"kind": "bytes"}})
    with (cache / "val.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match=r"val\.bin does not hold the \d+ tokens of its meta\.json"):
        packing.PackedFolder(cache)
    meta = json.loads((cache / "meta.json").read_text())
    (cache / "meta.json").write_text(json.dumps(meta)[:-9])
    with pytest.raises(DataError, match=r"meta\.json is damaged"):
        packing.PackedFolder(cache)
    (cache / "meta.json").unlink()
    with pytest.raises(DataError, match="is in the way and holds no tokens: delete it"):
        data.prepare_data()
    with pytest.raises(DataError, match="no packed text at"):
        packing.PackedFolder(tmp_path / "nothing")


def test_too_little_text_is_a_clear_error(jsonl, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="files holds no text for train: the corpus is empty"):
        ready(jsonl([""]), tmp_path / "a")
    with pytest.raises(DataError, match="files holds no text for train"):
        ready(jsonl([""]), tmp_path / "a", tokenizer={"kind": "bpe", "vocab_size": 300})
    folder = jsonl(documents(40))
    with pytest.raises(DataError, match=r"holds no text for val: .* the split's share too small"):
        ready(folder, tmp_path / "a", val_share=0.0)
    short = r"the val split of files has \d+ tokens, fewer than one sequence of data\.length=1000"
    with pytest.raises(DataError, match=short):
        ready(folder, tmp_path / "a", length=1000, val_share=0.1)
    with pytest.raises(DataError, match=r"the train split .* fewer than 1000 sequences of data.length=16"):
        ready(folder, tmp_path / "a", batch_size=1000)
    assert [p.name for p in (tmp_path / "a").iterdir() if p.name.startswith(".")] == []


def test_options_of_the_data_are_checked(jsonl, tmp_path: Path) -> None:
    folder = jsonl(documents(2))
    for options, message in (
        ({"length": 0}, "data.length must be a whole number of at least 2, got 0"),
        ({"batch_size": 1.5}, "data.batch_size must be a whole number"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ({"tokenizer": {"size": 3}}, "data.tokenizer has no option size"),
    ):
        with pytest.raises(ConfigError, match=message):
            module(folder, tmp_path, **options)
    common = {"length": 8, "batch_size": 2, "cache_dir": str(tmp_path)}
    source = Files(f"{folder}/*.jsonl")
    with pytest.raises(ConfigError, match=r"num_workers must be 0 or 1 for a stream, got 2"):
        StreamedText(source, {"kind": "bytes", "vocab_size": 257}, num_workers=2, **common)
    with pytest.raises(ConfigError, match=r"data\.block must be at least 1, got 0"):
        StreamedText(source, {"kind": "bytes", "vocab_size": 257}, block=0, **common)
    with pytest.raises(ConfigError, match="train_documents must be a number"):
        StreamedText(source, {"kind": "bpe", "vocab_size": 300}, **common)


def test_training_order_follows_seed_and_epoch_and_resumes(jsonl, tmp_path: Path) -> None:
    data = ready(jsonl(documents(40)), tmp_path / "cache", batch_size=1)
    per_epoch = packing.windows(len(data.packed.tokens("train")), 16)
    data.configure(train_batches=2 * per_epoch + 3, data_seed=1)
    whole = [batch.inputs for batch in data.train_dataloader()]
    assert len(whole) == 2 * per_epoch + 3
    rows = [tuple(batch[0].tolist()) for batch in whole]
    first, second = rows[:per_epoch], rows[per_epoch : 2 * per_epoch]
    assert sorted(first) == sorted(second)
    assert first != second
    data.load_state_dict({"batches": per_epoch + 1})
    resumed = [batch.inputs for batch in data.train_dataloader()]
    assert all(a.equal(b) for a, b in zip(resumed, whole[per_epoch + 1 :], strict=True))
    data.start_batch = 0
    data.configure(train_batches=3, data_seed=2)
    assert not next(iter(data.train_dataloader())).inputs.equal(whole[0])
