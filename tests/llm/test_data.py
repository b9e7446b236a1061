"""Streamed text: every token once, in an order that the seed sets, continued exactly from any batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.core.errors import ConfigError, DataError
from experiments.llm.data import StreamedBatches, StreamedText
from experiments.llm.text import Files
from experiments.llm.tokenizer import Bytes
from tests.llm.conftest import documents

TEXTS = documents(50, words=12)


def source(folder: Path) -> Files:
    return Files(f"{folder}/*.jsonl", val_share=0.1, test_share=0.1)


def batches(folder: Path, **options: object) -> StreamedBatches:
    settings = {"length": 8, "batch_size": 2, "steps": 200, "block": 7, **options}
    return StreamedBatches(source(folder), "train", Bytes(), **settings)  # type: ignore[arg-type]


def stream_of(dataset: StreamedBatches) -> list[int]:
    """All tokens in order: each batch's inputs follow the ones before."""
    return [int(t) for batch in dataset for t in batch.inputs.flatten()]


def split_documents(tokens: list[int]) -> list[str]:
    parts = np.split(np.array(tokens), np.flatnonzero(np.array(tokens) == 256))[1:-1]
    return [bytes(part[1:].astype(np.uint8)).decode() for part in parts]


def test_batches_are_the_packed_documents(jsonl) -> None:
    folder = jsonl(TEXTS)
    train = list(source(folder).documents("train"))
    plain = batches(folder, block=1)
    first = next(iter(plain))
    assert first.inputs.shape == first.targets.shape == (2, 8)
    assert first.inputs[:, 1:].equal(first.targets[:, :-1])
    assert first.inputs[1, 0] == first.targets[0, -1]
    found = split_documents(stream_of(plain))
    assert len(found) > len(train)  # more than one pass
    assert found[: len(train)] == train
    assert found == (train * 9)[: len(found)]


def test_order_is_shuffled_in_blocks_by_the_seed(jsonl) -> None:
    folder = jsonl(TEXTS)
    train = list(source(folder).documents("train"))
    found = split_documents(stream_of(batches(folder)))
    assert sorted(found[:7]) == sorted(train[:7])
    assert found[:7] != train[:7]
    assert sorted(found[: len(train)]) == sorted(train)
    assert found[: len(train)] != found[len(train) : 2 * len(train)]
    assert found == split_documents(stream_of(batches(folder)))
    assert found != split_documents(stream_of(batches(folder, seed=1)))


@pytest.mark.parametrize("length", [8, 60])
def test_stream_continues_from_every_batch(jsonl, length: int) -> None:
    folder = jsonl(TEXTS)
    steps = 1600 // length
    whole = list(batches(folder, length=length, steps=steps))
    assert len(whole) == steps
    assert json.loads(whole[-1].position)["epoch"] >= 1
    for start in range(1, steps, 7 if length == 8 else 1):
        rest = list(batches(folder, length=length, steps=steps, start=start, position=whole[start - 1].position))
        assert len(rest) == steps - start
        for a, b in zip(rest[:12] + rest[-1:], whole[start : start + 12] + whole[-1:], strict=False):
            assert a.inputs.equal(b.inputs)
            assert a.targets.equal(b.targets)


def test_processes_share_the_documents(jsonl) -> None:
    folder = jsonl(TEXTS, per_file=10)
    train = list(source(folder).documents("train"))
    found = []
    for rank in range(2):
        mine = split_documents(stream_of(batches(folder, rank=rank, world_size=2)))
        found.append(set(mine))
    assert found[0] | found[1] == set(train)
    assert not found[0] & found[1]


def test_an_empty_stream_is_a_clear_error(jsonl) -> None:
    with pytest.raises(DataError, match="files holds no text for train on process 0"):
        list(batches(jsonl([""])))


def test_a_bad_file_met_while_streaming_is_named(jsonl) -> None:
    folder = jsonl(TEXTS)
    (folder / "9.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"9\.jsonl is not UTF-8 text"):
        list(batches(folder))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_module_streams_and_resumes(jsonl, tmp_path: Path, workers: int) -> None:
    folder = jsonl(documents(60))

    def made() -> StreamedText:
        spec = {"kind": "bpe", "vocab_size": 280, "train_documents": 30}
        limits = {"val": 2, "test": 3}
        data = StreamedText(
            source(folder), spec, length=8, batch_size=2, cache_dir=str(tmp_path / "cache"), max_documents=limits,
            num_workers=workers, block=7,
        )  # fmt: skip
        data.configure(train_batches=12, data_seed=4)
        data.prepare_data()
        data.setup("fit")
        return data

    data = made()
    assert sorted(p.name for p in data.packed.folder.iterdir()) == [
        "meta.json",
        "test.bin",
        "tokenizer.json",
        "val.bin",
    ]
    assert data.description["val_documents"] == 2
    whole = list(data.train_dataloader())
    assert len(whole) == 12
    again = made()
    again.load_state_dict({"batches": 5, "positions": [whole[4].position]})
    rest = list(again.train_dataloader())
    assert all(a.inputs.equal(b.inputs) for a, b in zip(rest, whole[5:], strict=True))
    again.load_state_dict({"batches": 5, "positions": ["", ""]})
    with pytest.raises(ConfigError, match="resumes on as many processes as it was left with: 2, got 1"):
        again.train_dataloader()
