"""Data modules of language modelling: packed text read from disk, and text streamed while training.

Documents follow each other with an end token between them and are cut into sequences of equal length: no padding, and
attention may look across a document's end.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import print as say
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from experiments.core.data import ResumableDataModule
from experiments.core.errors import ConfigError, DataError
from experiments.llm import packing
from experiments.llm import tokenizer as tok
from experiments.llm.text import Role, Source

IGNORE = -100  # a target that no loss counts
ENCODED = 32  # streamed documents tokenised at once
BEGINNING: dict[str, Any] = {"epoch": 0, "block": 0, "state": None, "document": 0, "token": 0}  # of a stream


class TextBatch(NamedTuple):
    """Sequences of tokens.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64, the tokens that follow; `IGNORE` where nothing is counted.
        position: of a streamed batch, where the stream stands after it; "" otherwise.
    """

    inputs: Tensor
    targets: Tensor
    position: str = ""


def text_batch(rows: np.ndarray[Any, np.dtype[np.int64]], position: str = "") -> TextBatch:
    """Inputs and targets of (B, T + 1) tokens."""
    tokens = torch.from_numpy(rows)
    return TextBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), position)


class TrainWindows(Dataset[TextBatch]):
    """Batches of training sequences by their numbers."""

    def __init__(self, tokens: packing.Tokens, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return packing.windows(len(self.tokens), self.length)

    def __getitem__(self, index: int) -> TextBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> TextBatch:
        first = np.asarray(indices, dtype=np.int64) * self.length
        return text_batch(packing.window(self.tokens, first, self.length))


class EvaluationBatches(Dataset[TextBatch]):
    """A whole split, each token but the first as a target exactly once over all processes.

    Every process gets the same number of batches, as sharded models need; one without work left repeats a batch with
    nothing to count.
    """

    def __init__(self, tokens: packing.Tokens, length: int, batch_size: int, rank: int, world_size: int) -> None:
        self.tokens = tokens
        every = packing.evaluation_windows(len(tokens), length, batch_size)
        self.mine = every[rank::world_size]
        self.count = -(-len(every) // world_size)
        self.spare = every[0]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TextBatch:
        counted = index < len(self.mine)
        first, length = self.mine[index] if counted else self.spare
        batch = text_batch(packing.window(self.tokens, first, length))
        return batch if counted else batch._replace(targets=torch.full_like(batch.targets, IGNORE))


def _same(batch: Any) -> Any:
    return batch


class TextData(ResumableDataModule):
    """What both data modules share: the tokenizer, the evaluation splits and the checks.

    Args:
        source: of the documents.
        tokenizer: kind ("bpe": trained on the training split; "bytes"; "file": a byte-level `tokenizer.json`),
            vocab_size, file, end (text of its end token), train_documents (how many to train it on; None for all).
        length: T, tokens of a sequence.
        batch_size: training sequences of a batch and process.
        eval_batch_size: the same in evaluation.
        cache_dir: where tokens are kept.
        max_documents: role -> most documents to keep on disk; all where there is none.
        num_workers: loader processes.

    Raises:
        ConfigError: an option is out of range.
    """

    roles: tuple[Role, ...] = ("train", "val", "test")

    def __init__(
        self,
        source: Source,
        tokenizer: Mapping[str, Any],
        length: int,
        batch_size: int,
        cache_dir: str,
        eval_batch_size: int | None = None,
        max_documents: Mapping[str, int | None] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        counts = {"length": length, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in counts.items():
            least = 2 if name == "length" else 1  # a sample needs a token to begin with and one to go on with
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"data.{name} must be a whole number of at least {least}, got {value!r}")
        if num_workers < 0:
            raise ConfigError(f"data.num_workers must be at least 0, got {num_workers}")
        unknown = set(tokenizer) - {"kind", "vocab_size", "file", "end", "train_documents"}
        if unknown:
            raise ConfigError(f"data.tokenizer has no option {', '.join(sorted(unknown))}")
        tok.check_choice(tokenizer["kind"], tokenizer["vocab_size"], tokenizer.get("file"))
        self.source, self.spec = source, dict(tokenizer)
        self.length, self.batch_size, self.eval_batch_size = length, batch_size, eval_batch_size
        self.limits: dict[Role, int | None] = {role: (max_documents or {}).get(role) for role in self.roles}
        self.cache_dir, self.num_workers = Path(cache_dir), num_workers
        self._packed: packing.PackedFolder | None = None

    def prepare_data(self) -> None:
        made_from = packing.identity(self.source, self.spec, self.limits)
        folder = packing.folder_for(self.cache_dir, self.source, made_from)
        if not (folder / "meta.json").is_file():
            packing.pack(folder, self.source, self.spec, self.limits, self.roles, report=say)

    def setup(self, stage: str) -> None:
        if self._packed is not None:
            return
        made_from = packing.identity(self.source, self.spec, self.limits)
        packed = packing.PackedFolder(packing.folder_for(self.cache_dir, self.source, made_from), made_from)
        if packed.tokenizer.vocab_size != self.spec["vocab_size"]:
            raise ConfigError(
                f"data.tokenizer.vocab_size must be {packed.tokenizer.vocab_size}, the size of the tokenizer, "
                f"got {self.spec['vocab_size']}"
            )
        for role in self.roles:
            tokens = packed.splits[role]["tokens"]
            needed = self.batch_size if role == "train" else 1
            if packing.windows(tokens, self.length) < needed:
                what = f"{needed} sequences" if needed > 1 else "one sequence"
                raise DataError(
                    f"the {role} split of {self.source.name} has {tokens} tokens, fewer than {what} of "
                    f"data.length={self.length}: lower it, or take more text"
                )
        self._packed = packed

    @property
    def packed(self) -> packing.PackedFolder:
        if self._packed is None:
            raise RuntimeError("the data module is not set up")
        return self._packed

    @property
    def tokenizer(self) -> tok.Tokenizer:
        return self.packed.tokenizer

    @property
    def ranks(self) -> tuple[int, int]:
        """This process's number and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _evaluation(self, role: Role) -> DataLoader[TextBatch]:
        batches = EvaluationBatches(self.packed.tokens(role), self.length, self.eval_batch_size, *self.ranks)
        return DataLoader(batches, batch_size=None, collate_fn=_same, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader[TextBatch]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[TextBatch]:
        return self._evaluation("test")

    def prompts(
        self, count: int, prompt: int, continuation: int
    ) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Beginnings of the first test documents that are long enough: the first `prompt` tokens, the end token before
        them included, and the `continuation` tokens that follow."""
        tokens = self.packed.tokens("test")
        ends = np.flatnonzero(tokens == self.tokenizer.end)
        long = ends[:-1][np.diff(ends) >= prompt + continuation][:count]
        return [(tokens[i : i + prompt], tokens[i + prompt : i + prompt + continuation]) for i in long]

    @property
    def fingerprint(self) -> str:
        return self.packed.fingerprint

    @property
    def description(self) -> dict[str, Any]:
        counts = {
            f"{role}_{name}": int(values[name])
            for role, values in self.packed.splits.items()
            for name in ("documents", "bytes", "tokens")
        }
        return {
            "name": self.source.name,
            "tokenizer": self.spec["kind"],
            "vocab_size": self.tokenizer.vocab_size,
            **counts,
        }

    @property
    def problems(self) -> dict[str, int]:
        return self.packed.problems


class PackedText(TextData):
    """All splits tokenised once and read from disk; training sequences in a new random order each epoch."""

    def train_dataloader(self) -> DataLoader[TextBatch]:
        dataset = TrainWindows(self.packed.tokens("train"), self.length)

        def epoch_batches(epoch: int) -> Any:
            order = np.random.default_rng([self.data_seed, epoch]).permutation(len(dataset))
            usable = len(order) // self.batch_size * self.batch_size
            return order[:usable].reshape(-1, self.batch_size)

        return DataLoader(
            dataset,
            batch_sampler=self.step_sampler(epoch_batches),
            collate_fn=_same,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


class StreamedBatches(IterableDataset[TextBatch]):
    """Batches from a stream of documents, continued exactly from a position.

    Documents are shuffled in blocks: a block's state in the stream and the place within it say where a batch ended, so
    nothing has to be kept but a few numbers. When the stream ends it begins anew, with other orders.

    Args:
        source, role: of the documents.
        tokenizer: of their text.
        length, batch_size: T and B.
        steps: batches of the whole run, counted from its first.
        start: batches already taken.
        position: where batch `start` begins, as `TextBatch.position` gave it; "" at the beginning.
        block: documents that are shuffled together.
        seed: of the shuffling.
        rank, world_size: the share of the documents that this process takes.
    """

    def __init__(
        self,
        source: Source,
        role: Role,
        tokenizer: tok.Tokenizer,
        length: int,
        batch_size: int,
        steps: int,
        start: int = 0,
        position: str = "",
        block: int = 512,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source, self.role, self.tokenizer = source, role, tokenizer
        self.length, self.batch_size = length, batch_size
        self.steps, self.start, self.position = steps, start, position
        self.block, self.seed, self.rank, self.world_size = block, seed, rank, world_size

    def __len__(self) -> int:
        # The whole run's length, also when resuming: Lightning counts the batches before `start` as done.
        return self.steps

    def _documents(self, epoch: int, start: dict[str, Any]) -> Iterator[tuple[np.ndarray[Any, Any], dict[str, Any]]]:
        """One pass's documents as tokens, each with its place: block, the stream's state before it, number in it."""
        stream, document = self.source.stream(self.role, self.rank, self.world_size)
        if start["state"] is not None:
            stream.load_state_dict(start["state"])
        rows = self.source.read(stream)
        state, skip = start["state"], start["document"]
        for block in count(start["block"]):
            texts = list(islice((text for row in rows if (text := document(row))), self.block))
            if not texts:
                return
            order = np.random.default_rng([self.seed, epoch, self.rank, block]).permutation(len(texts))[skip:]
            for first in range(0, len(order), ENCODED):
                part = order[first : first + ENCODED]
                for number, tokens in enumerate(self.tokenizer.encode([texts[i] for i in part]), skip + first):
                    yield tokens, {"epoch": epoch, "block": block, "state": state, "document": number}
            # A copy: the stream may go on changing the object that it gave.
            state, skip = json.loads(json.dumps(stream.state_dict())), 0

    def __iter__(self) -> Iterator[TextBatch]:
        start = json.loads(self.position) if self.position else {**BEGINNING}
        needed = self.batch_size * self.length + 1
        end = np.array([self.tokenizer.end], dtype=np.int64)
        # Tokens not yet taken, and where in them each document begins; the first may have begun before them.
        left = np.zeros(0, dtype=np.int64)
        begins: deque[tuple[int, dict[str, Any]]] = deque()
        batches, drop = self.start, start["token"]
        while batches < self.steps:
            found = False
            for encoded, place in self._documents(start["epoch"], start):
                found = True
                tokens = np.concatenate([end, encoded.astype(np.int64)])
                begins.append((len(left) - drop, place))
                left = np.concatenate([left, tokens[drop:]])
                drop = 0
                while len(left) >= needed:
                    rows = np.lib.stride_tricks.sliding_window_view(left[:needed], self.length + 1)[:: self.length]
                    taken = needed - 1  # the last target is the next batch's first input
                    while len(begins) > 1 and begins[1][0] <= taken:
                        begins.popleft()
                    at, place = begins[0]
                    yield text_batch(rows.copy(), json.dumps({**place, "token": taken - at}))
                    batches += 1
                    if batches == self.steps:
                        return
                    left = left[taken:]
                    begins = deque((begin - taken, where) for begin, where in begins)
            if not found and start["state"] is None:
                raise DataError(f"{self.source.name} holds no text for {self.role} on process {self.rank}")
            start = {**BEGINNING, "epoch": start["epoch"] + 1}


class StreamedText(TextData):
    """Training text streamed and tokenised on the way; validation and test splits kept on disk.

    The tokenizer is trained on the first `tokenizer.train_documents` of the training stream, unless it is a file.

    Args:
        block: documents that are shuffled together.
        others: see `TextData`; at most one loader process, which reads ahead.

    Raises:
        ConfigError: an option is out of range.
    """

    roles = ("val", "test")

    def __init__(self, *args: Any, block: int = 512, **others: Any) -> None:
        super().__init__(*args, **others)
        if self.num_workers > 1:
            raise ConfigError(f"data.num_workers must be 0 or 1 for a stream, got {self.num_workers}")
        if block < 1:
            raise ConfigError(f"data.block must be at least 1, got {block}")
        if self.spec["kind"] == "bpe" and not self.spec.get("train_documents"):
            raise ConfigError("data.tokenizer.train_documents must be a number for a tokenizer trained on a stream")
        self.block = block
        self._starts: list[str] | None = None
        self._positions: dict[int, str] = {}
        self._handed = 0

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.source.stream("train")  # whether it can be reached is known before training

    def train_dataloader(self) -> DataLoader[TextBatch]:
        rank, world_size = self.ranks
        if self._starts is not None and len(self._starts) != world_size:
            raise ConfigError(
                f"a stream resumes on as many processes as it was left with: {len(self._starts)}, got {world_size}"
            )
        position = self._starts[rank] if self._starts is not None else ""
        # With one worker at most, nothing is handed out twice.
        warnings.filterwarnings("ignore", message=r"Your `IterableDataset` has `__len__` defined")
        self._handed, self._positions = self.start_batch, {self.start_batch: position}
        dataset = StreamedBatches(
            self.source, "train", self.tokenizer, self.length, self.batch_size, self.train_batches,
            start=self.start_batch, position=position, block=self.block, seed=self.data_seed,
            rank=rank, world_size=world_size,
        )  # fmt: skip
        return DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_same,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def on_before_batch_transfer(self, batch: TextBatch, dataloader_idx: int) -> TextBatch:
        if self.trainer is not None and self.trainer.training:
            self._handed += 1
            self._positions[self._handed] = batch.position
            self._positions.pop(self._handed - 4, None)
        return batch

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if not state:
            return state
        # Where the stream stood after the last finished batch: one that is under way is taken again.
        mine = self._positions[state["batches"]]
        starts: list[Any] = [mine]
        if self.ranks[1] > 1:
            starts = [None] * self.ranks[1]
            torch.distributed.all_gather_object(starts, mine)
        return {**state, "positions": starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._starts = state_dict.get("positions")
