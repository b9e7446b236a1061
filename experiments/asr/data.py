"""The speech data module: manifests, checks, features and batches, for any tree in LibriSpeech's layout."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from experiments.asr.features import (
    HOP,
    AudioSource,
    Normalisation,
    Source,
    build_cache,
    estimate_normalisation,
    frame_count,
)
from experiments.asr.librispeech import (
    SAMPLE_RATE,
    Split,
    combined_fingerprint,
    download,
    read_split,
    split_folder,
)
from experiments.asr.model import subsampled
from experiments.asr.text import CharTokenizer, SentencePieceTokenizer, Tokenizer, ctc_frames
from experiments.core.data import ResumableDataModule
from experiments.core.errors import ConfigError, DataError

TOO_SHORT = "too-short-for-ctc"
OUTSIDE_DURATION = "outside-duration"
_NAMED = 5  # files in the warning, for each kind of problem


class SpeechBatch(NamedTuple):
    """Utterances padded to the longest; Lightning moves the tensors and leaves the rest."""

    features: Tensor  # (B, T, n_mels) float32, normalised, zeros behind each end
    feature_lengths: Tensor  # (B,) int64
    targets: Tensor  # (B, U) int64, the blank behind each end
    target_lengths: Tensor  # (B,) int64
    ids: list[str]
    texts: list[str]
    frames: int  # sum of the lengths, on the host


class Item(NamedTuple):
    """One utterance."""

    features: Tensor  # (T, n_mels) float32
    target: Tensor  # (U,) int64
    id: str
    text: str


class SpeechDataset(Dataset[Item]):
    """The usable utterances of one or more splits.

    Args:
        entries: (source, index in that source, labels, id, text) of each utterance.
        seconds: duration of each.
        normalisation: of the features.
    """

    def __init__(
        self,
        entries: Sequence[tuple[Source, int, list[int], str, str]],
        seconds: Sequence[float],
        normalisation: Normalisation,
    ) -> None:
        self.entries, self.seconds, self.normalisation = entries, seconds, normalisation

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        source, position, labels, key, text = self.entries[index]
        return Item(self.normalisation(source[position]), torch.tensor(labels, dtype=torch.int64), key, text)


def collate(items: list[Item], blank: int) -> SpeechBatch:
    """Items, in their order, to one batch."""
    features, targets = [item.features for item in items], [item.target for item in items]
    return SpeechBatch(
        pad_sequence(features, batch_first=True),
        torch.tensor([len(x) for x in features]),
        pad_sequence(targets, batch_first=True, padding_value=blank),
        torch.tensor([len(y) for y in targets]),
        [item.id for item in items],
        [item.text for item in items],
        sum(len(x) for x in features),
    )


def pack(order: Sequence[int], seconds: Sequence[float], budget: float, max_utterances: int) -> list[list[int]]:
    """Cut an order of utterances into batches whose padded duration, longest times number, is within the budget."""
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        longest = max(longest, seconds[index])
        if not batches or len(batches[-1]) == max_utterances or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = seconds[index]
        batches[-1].append(index)
    return batches


def bucketed_batches(
    seconds: Sequence[float], budget: float, max_utterances: int, seed: int, epoch: int, jitter: float = 0.1
) -> list[list[int]]:
    """All utterances once, in batches of like duration, in random order: a function of nothing but its arguments.

    Durations are scaled by a random 1 ± `jitter` before they are sorted, so that batches differ from epoch to epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    keys = np.asarray(seconds) * rng.uniform(1 - jitter, 1 + jitter, len(seconds))
    batches = pack(np.argsort(keys, kind="stable").tolist(), seconds, budget, max_utterances)
    return [batches[i] for i in rng.permutation(len(batches))]


def even_batches(batches: list[list[int]], processes: int) -> list[list[int]]:
    """The same utterances in a number of batches that `processes` divides, by halving the largest.

    Processes that evaluate together must take the same number of steps.

    Raises:
        DataError: there are fewer utterances than processes.
    """
    batches = list(batches)
    while len(batches) % processes:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[largest]
        if len(batch) < 2:
            raise DataError(f"{len(batches)} utterances cannot be evaluated by {processes} processes")
        batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return batches


class SpeechDataModule(ResumableDataModule):
    """Speech in LibriSpeech's layout.

    Args:
        root: folder that holds the splits, or LibriSpeech's own folder.
        name: the data set's name in tables.
        train_splits, val_splits, test_splits: names of splits; training splits are read as one.
        optional_test_splits: evaluated as well where they are present; not part of the fingerprint.
        download: fetch missing splits of LibriSpeech.
        batch_seconds: most audio in a training batch, padding included.
        max_utterances: most utterances in a training batch. Evaluation batches are up to four times as large in both.
        min_seconds, max_seconds: training utterances outside these are left out, and counted.
        tokenizer: "char" or "sentencepiece".
        vocab_size: labels of the sentence pieces, the blank included; characters have 29.
        n_mels: bands of the features.
        stats_utterances: training utterances from which the features' normalisation is estimated.
        cache_features: make all features once and keep them on disk (a megabyte a minute at 80 bands).
        cache_dir: where manifests, features and statistics are kept; `root/.cache` by default.
        num_workers: loader processes; with cached features none are needed.
        pin_memory: for GPUs.
        max_bad_share: the share of a split's files that may be bad; beyond that training on the rest would be wrong.

    Raises:
        ConfigError: an option is out of range.
        DataError: in `prepare_data` and `setup`, when the data are missing, empty, or too bad.
    """

    frame_seconds = HOP / SAMPLE_RATE

    def __init__(
        self,
        root: str,
        name: str = "synthetic",
        train_splits: Sequence[str] = ("train-clean",),
        val_splits: Sequence[str] = ("dev-clean", "dev-other"),
        test_splits: Sequence[str] = ("test-clean", "test-other"),
        optional_test_splits: Sequence[str] = (),
        download: bool = False,
        batch_seconds: float = 32.0,
        max_utterances: int = 16,
        min_seconds: float = 0.1,
        max_seconds: float = 20.0,
        tokenizer: str = "char",
        vocab_size: int = 256,
        n_mels: int = 80,
        stats_utterances: int = 1000,
        cache_features: bool = True,
        cache_dir: str | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bad_share: float = 0.05,
    ) -> None:
        super().__init__()
        for option, splits in (
            ("train_splits", train_splits),
            ("val_splits", val_splits),
            ("test_splits", test_splits),
        ):
            if isinstance(splits, str) or not splits or len(set(splits)) != len(splits):
                raise ConfigError(f"data.{option} must be a list of at least one name, each once, got {splits!r}")
        if tokenizer not in ("char", "sentencepiece"):
            raise ConfigError(f"data.tokenizer must be char or sentencepiece, got {tokenizer!r}")
        if not 0.0 <= min_seconds < max_seconds:
            raise ConfigError(
                f"data.min_seconds must be at least 0 and less than data.max_seconds={max_seconds}, got {min_seconds}"
            )
        if batch_seconds < max_seconds:
            raise ConfigError(
                f"data.batch_seconds must be at least data.max_seconds={max_seconds}, or the longest utterance fits "
                f"into no batch, got {batch_seconds}"
            )
        for option, value, low in (
            ("max_utterances", max_utterances, 1),
            ("vocab_size", vocab_size, 3),
            ("n_mels", n_mels, 1),
            ("stats_utterances", stats_utterances, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < low:
                raise ConfigError(f"data.{option} must be at least {low}, got {value}")
        if not 0.0 <= max_bad_share <= 1.0:
            raise ConfigError(f"data.max_bad_share must be between 0 and 1, got {max_bad_share}")
        self.root, self.name, self.download = Path(root), name, download
        self.train_splits, self.val_splits, self.test_splits = list(train_splits), list(val_splits), list(test_splits)
        self.optional_test_splits = list(optional_test_splits)
        self.batch_seconds, self.max_utterances = batch_seconds, max_utterances
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.tokenizer_kind, self.vocab_size = tokenizer, vocab_size
        self.n_mels, self.stats_utterances = n_mels, stats_utterances
        self.cache_features = cache_features
        self.cache_dir = Path(cache_dir) if cache_dir else self.root / ".cache"
        self.num_workers, self.pin_memory, self.max_bad_share = num_workers, pin_memory, max_bad_share
        self.tokenizer: Tokenizer
        self.train_set: SpeechDataset
        self.eval_sets: dict[str, SpeechDataset] = {}
        self._splits: dict[str, Split] = {}
        self._left_out: dict[str, list[str]] = {}  # what this task's options leave out, beside the splits' own problems

    @property
    def required_splits(self) -> list[str]:
        """All splits but the optional ones, each once."""
        return list(dict.fromkeys([*self.train_splits, *self.val_splits, *self.test_splits]))

    @property
    def val_names(self) -> list[str]:
        """The validation loaders' splits, in their order."""
        return self.val_splits

    @property
    def test_names(self) -> list[str]:
        """The test loaders' splits, in their order."""
        present = [s for s in self.optional_test_splits if split_folder(self.root, s) is not None]
        return [*self.test_splits, *present]

    def prepare_data(self) -> None:
        """Download, if asked to, and fill the cache; several runs that start together wait for the first."""
        if self.download:
            for split in self.required_splits:
                download(self.root, split)
        self._read()

    def setup(self, stage: str) -> None:
        """Read all splits, say once what is wrong with them, and build the data sets. A second call does nothing."""
        if self.eval_sets:
            return
        self._splits, sources = self._read()
        training = [self._splits[s] for s in self.train_splits]
        texts = [u.text for split in training for u in split.utterances]
        # The cache's lock makes two runs that need the same model train it one after the other.
        with self._lock():
            self.tokenizer = (
                CharTokenizer()
                if self.tokenizer_kind == "char"
                else SentencePieceTokenizer.train(texts, self.vocab_size, self.cache_dir)
            )
            normalisation = estimate_normalisation(
                training, [sources[s] for s in self.train_splits], self.n_mels, self.stats_utterances, self.cache_dir
            )
        self.train_set = self._dataset(self.train_splits, sources, normalisation, training=True)
        self.eval_sets = {
            s: self._dataset([s], sources, normalisation, training=False)
            for s in dict.fromkeys([*self.val_names, *self.test_names])
        }
        # A split may be trained on and evaluated, too.
        self._left_out = {kind: list(dict.fromkeys(reasons)) for kind, reasons in self._left_out.items()}
        self._check()

    def _lock(self) -> FileLock:
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        return FileLock(self.cache_dir / ".lock")

    def _read(self) -> tuple[dict[str, Split], dict[str, Source]]:
        """Manifests and feature sources of all splits, made where the cache has none."""
        names = list(dict.fromkeys([*self.required_splits, *self.test_names]))
        if not self.root.is_dir():
            read_split(self.root, names[0], self.cache_dir)  # says how to make it
        try:
            lock = self._lock()
        except OSError as error:
            raise DataError(
                f"{self.cache_dir} cannot be written ({error}): name another folder with data.cache_dir"
            ) from error
        with lock:
            splits = {name: read_split(self.root, name, self.cache_dir) for name in names}
            for name, split in splits.items():
                if not split.utterances:
                    some = f": {_name_some(split.bad)}" if split.bad else ", and no audio file"
                    raise DataError(f"{split.folder} holds no usable utterance of {name}{some}")
            sources: dict[str, Source] = {
                name: build_cache(split, self.n_mels, self.cache_dir)
                if self.cache_features
                else AudioSource(split, self.n_mels)
                for name, split in splits.items()
            }
        return splits, sources

    def _dataset(
        self, names: Sequence[str], sources: dict[str, Source], normalisation: Normalisation, training: bool
    ) -> SpeechDataset:
        entries, seconds = [], []
        for name in names:
            split = self._splits[name]
            frames = torch.tensor([frame_count(u.samples_16k) for u in split.utterances], dtype=torch.int64)
            for index, (u, steps) in enumerate(zip(split.utterances, subsampled(frames).tolist(), strict=True)):
                labels = self.tokenizer.encode(u.text)
                if training and not self.min_seconds <= u.seconds <= self.max_seconds:
                    reason = f"{split.folder / u.path}: {u.seconds:.2f} s"
                    self._left_out.setdefault(OUTSIDE_DURATION, []).append(reason)
                elif steps < ctc_frames(labels):
                    reason = f"{split.folder / u.path}: {steps} frames for {ctc_frames(labels)}"
                    self._left_out.setdefault(TOO_SHORT, []).append(reason)
                else:
                    entries.append((sources[name], index, labels, u.id, u.text))
                    seconds.append(u.seconds)
        return SpeechDataset(entries, seconds, normalisation)

    def _all_problems(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for problems in (*(split.problems for split in self._splits.values()), self._left_out):
            for kind, files in problems.items():
                found.setdefault(kind, []).extend(files)
        return found

    def _check(self) -> None:
        """One warning for everything that is wrong; an error where the rest is not what was asked for."""
        for name, split in self._splits.items():
            short = [reason for reason in self._left_out.get(TOO_SHORT, []) if reason.startswith(f"{split.folder}/")]
            bad = split.bad + short
            if len(bad) > self.max_bad_share * (len(bad) + len(split.utterances) - len(short)):
                raise DataError(
                    f"{len(bad)} utterances of {name} are bad, more than data.max_bad_share={self.max_bad_share} "
                    f"allows: {_name_some(bad)}"
                )
        for name, dataset in {"the training data": self.train_set, **self.eval_sets}.items():
            if len(dataset) == 0:
                raise DataError(f"no usable utterance in {name}, under {self.root}")
        if found := self._all_problems():
            parts = [f"{len(files)} {kind} ({_name_some(files)})" for kind, files in sorted(found.items())]
            warnings.warn("speech data: " + "; ".join(parts), stacklevel=2)

    def train_dataloader(self) -> DataLoader[Item]:
        """Exactly `train_batches` batches, from `start_batch` on."""
        batches = partial(
            bucketed_batches, self.train_set.seconds, self.batch_seconds, self.max_utterances, self.data_seed
        )
        return self._loader(self.train_set, self.step_sampler(batches))

    def _eval_loader(self, split: str) -> DataLoader[Item]:
        dataset = self.eval_sets[split]
        order = np.argsort(dataset.seconds, kind="stable")[
            ::-1
        ].tolist()  # longest first: too large a batch fails early
        batches = pack(order, dataset.seconds, 4 * self.batch_seconds, 4 * self.max_utterances)
        if self.trainer is not None and self.trainer.world_size > 1:
            batches = even_batches(batches, self.trainer.world_size)[
                self.trainer.global_rank :: self.trainer.world_size
            ]
        return self._loader(dataset, batches)

    def _loader(self, dataset: SpeechDataset, batches: Any) -> DataLoader[Item]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=partial(collate, blank=self.tokenizer.blank),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[Item]]:
        """One loader for each of `val_names`."""
        return [self._eval_loader(name) for name in self.val_names]

    def test_dataloader(self) -> list[DataLoader[Item]]:
        """One loader for each of `test_names`."""
        return [self._eval_loader(name) for name in self.test_names]

    @property
    def fingerprint(self) -> str:
        """Checksum of the samples and transcripts of all splits but the optional ones; known after `setup`."""
        return combined_fingerprint(self._splits[name] for name in self.required_splits)

    @property
    def description(self) -> dict[str, Any]:
        """Name and size, for the run record."""
        training = [self._splits[s] for s in self.train_splits]
        return {
            "name": self.name,
            "train_utterances": len(self.train_set),
            "train_hours": round(sum(split.hours for split in training), 3),
            "eval_utterances": {name: len(dataset) for name, dataset in self.eval_sets.items()},
            "optional": {
                name: self._splits[name].fingerprint for name in self.test_names if name not in self.test_splits
            },
        }

    @property
    def problems(self) -> dict[str, int]:
        """Number of utterances left out, or resampled, by kind."""
        return {kind: len(files) for kind, files in sorted(self._all_problems().items())}


def _name_some(files: Sequence[str]) -> str:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(files[:_NAMED]) + more
