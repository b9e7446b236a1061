"""Tokenizers and packed tokens."""

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

TEXTS = ["naïve — “quoted” 日本\n\ttabs", "plain words, plain words", "a", " lead and trail  ", "\r\n\x00"]


@pytest.fixture(params=["bytes", "bpe"])
def made(request: pytest.FixtureRequest) -> tokenizer.Tokenizer:
    return tokenizer.Bytes() if request.param == "bytes" else tokenizer.BytePairs.train(documents(60), 300)


def test_tokens_give_the_text_back_and_count_its_bytes(made: tokenizer.Tokenizer) -> None:
    for text, tokens in zip(TEXTS, made.encode(TEXTS), strict=True):
        assert made.decode([made.end, *tokens.tolist(), made.end]) == text
        assert made.token_bytes[tokens].sum() == len(text.encode())
        assert tokens.max() < made.vocab_size
    assert made.token_bytes.shape == (made.vocab_size,)
    assert made.token_bytes[made.end] == 0


WRITTEN_OUT = ["<|end|>", "<|e<|end|>nd|>", "a <|end|> b", "<|end|><|end|>", "<|e" * 50 + "<|end|>" + "nd|>" * 50]


@pytest.mark.parametrize("text", WRITTEN_OUT)
def test_an_end_token_that_a_text_spells_out_is_text(made: tokenizer.Tokenizer, text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(made.dumps(), encoding="utf-8")
    for one in (made, tokenizer.load(tmp_path / "tokenizer.json")):
        (tokens,) = one.encode([text])
        assert one.end not in tokens
        assert one.decode(tokens) == text
        assert one.token_bytes[tokens].sum() == len(text.encode())


def test_an_end_token_that_a_foreign_tokenizer_does_not_call_special_is_text_too(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer

    inner = Tokenizer.from_str(tokenizer.BytePairs.train(documents(60), 300).dumps())
    inner.add_tokens([AddedToken("<eod>", special=False)])
    (tmp_path / "foreign.json").write_text(inner.to_str(), encoding="utf-8")
    one = tokenizer.load(tmp_path / "foreign.json", end="<eod>")
    assert (one.vocab_size, one.end) == (301, 300)
    (tokens,) = one.encode(["of <e<eod>od> the"])
    assert 300 not in tokens
    assert one.decode(tokens) == "of <e<eod>od> the"


def test_tokenizer_is_read_back_as_it_was(made: tokenizer.Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(made.dumps(), encoding="utf-8")
    again = tokenizer.load(tmp_path / "tokenizer.json")
    assert type(again) is type(made)
    assert again.digest == made.digest
    assert (again.vocab_size, again.end) == (made.vocab_size, made.end)
    assert all(np.array_equal(a, b) for a, b in zip(again.encode(TEXTS), made.encode(TEXTS), strict=True))


def test_training_is_deterministic_and_merges() -> None:
    first, second = (tokenizer.BytePairs.train(documents(60), 300) for _ in range(2))
    assert first.digest == second.digest
    assert first.vocab_size == 300
    assert first.digest != tokenizer.BytePairs.train(documents(60, seed=1, words=9), 300).digest
    assert len(first.encode(["the people of Congress"])[0]) < len("the people of Congress")


def test_tokenizers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size must be at least 257 .* got 100"):
        tokenizer.BytePairs.train(["a"], 100)
    with pytest.raises(ConfigError, match="vocab_size=5000 is more than the training text fills"):
        tokenizer.BytePairs.train(documents(5), 5000)
    with pytest.raises(ConfigError, match="kind must be one of bpe, bytes, file, got 'words'"):
        tokenizer.check_choice("words", 300, None)
    with pytest.raises(ConfigError, match="must be 257 for bytes, got 256"):
        tokenizer.check_choice("bytes", 256, None)
    with pytest.raises(ConfigError, match="file goes with kind=file"):
        tokenizer.check_choice("bpe", 300, "x.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read as a tokenizer"):
        tokenizer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json is no tokenizer"):
        tokenizer.load(tmp_path / "bad.json")

    from tokenizers import Tokenizer, models

    (tmp_path / "words.json").write_text(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(ConfigError, match="must be byte-level"):
        tokenizer.load(tmp_path / "words.json")
    (tmp_path / "ours.json").write_text(tokenizer.BytePairs.train(documents(60), 300).dumps())
    with pytest.raises(ConfigError, match="no end token '<eos>'"):
        tokenizer.load(tmp_path / "ours.json", end="<eos>")


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
        ({"length": 0}, "data.length must be a whole number of at least 1, got 0"),
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
