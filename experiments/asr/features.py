"""Log-mel features, their normalisation, a cache of them on disk, and SpecAugment."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchaudio.transforms import FrequencyMasking, MelSpectrogram, TimeMasking

from experiments.asr.librispeech import SAMPLE_RATE, Split, Utterance, checksum, read_audio
from experiments.core.errors import ConfigError, DataError
from experiments.core.files import write_whole

HOP = 160  # samples, 10 ms
_WINDOW = 400  # samples, 25 ms
_FFT = 512
_FLOOR = 1e-5  # of a mel band's power: exact silence, which synthesis makes, would be an outlier
_VERSION = 1  # of what lies in the cache


def frame_count(samples: int) -> int:
    """Feature frames of an utterance of `samples` samples at 16 kHz."""
    return samples // HOP + 1


class LogMel:
    """(samples,) float32 at 16 kHz -> (T, n_mels) float16, the log power in mel bands; 25 ms windows every 10 ms.

    Half precision, also when nothing is cached: features from the cache and features made on the fly are then equal.
    """

    def __init__(self, n_mels: int) -> None:
        self.n_mels = n_mels
        self._mel = MelSpectrogram(
            SAMPLE_RATE, n_fft=_FFT, win_length=_WINDOW, hop_length=HOP, f_min=20.0, f_max=7600.0, n_mels=n_mels
        )

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
        if len(samples) <= _FFT // 2:  # the window's reflection at the ends needs as many
            samples = np.pad(samples, (0, _FFT // 2 + 1 - len(samples)))
        with torch.no_grad():
            mel = self._mel(torch.from_numpy(np.ascontiguousarray(samples)))  # (n_mels, T)
            features: npt.NDArray[np.float16] = mel.clamp(min=_FLOOR).log().T.half().numpy()
        return features


class Source(Protocol):
    """Where a split's features come from."""

    def __getitem__(self, index: int) -> npt.NDArray[np.float16]:
        """(T, n_mels) features of the split's utterance `index`, not normalised."""


class AudioSource:
    """Features made from the audio files on the fly."""

    def __init__(self, split: Split, n_mels: int) -> None:
        self._folder, self._utterances, self._mel = split.folder, split.utterances, LogMel(n_mels)

    def __getitem__(self, index: int) -> npt.NDArray[np.float16]:
        """Raises DataError, naming the file, where the audio is no longer what the manifest says."""
        return _features(self._folder, self._utterances[index], self._mel)


def _features(folder: Path, utterance: Utterance, mel: LogMel) -> npt.NDArray[np.float16]:
    path = folder / utterance.path
    samples = read_audio(path)
    if len(samples) != utterance.samples_16k:
        raise DataError(f"{path} has {len(samples)} samples, {utterance.samples_16k} when it was first read")
    return mel(samples)


class CachedSource:
    """Features read from one memory-mapped file, made by `build_cache`."""

    def __init__(self, file: Path, split: Split, n_mels: int) -> None:
        frames = [frame_count(max(u.samples_16k, _FFT // 2 + 1)) for u in split.utterances]
        self._ends = np.cumsum([0, *frames])
        self._file, self._shape = file, (int(self._ends[-1]), n_mels)
        self._features: npt.NDArray[np.float16] | None = None

    def _open(self) -> npt.NDArray[np.float16]:
        if self._features is None:
            try:
                features = np.load(self._file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{self._file} cannot be read: {error}; delete it, and it is made again") from error
            if features.shape != self._shape or features.dtype != np.float16:
                raise DataError(f"{self._file} does not hold the features that its name says; delete it")
            self._features = features
        return self._features

    def __getitem__(self, index: int) -> npt.NDArray[np.float16]:
        return self._open()[self._ends[index] : self._ends[index + 1]]

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker maps the file itself; a pickled map would be a copy of all features.
        return {**self.__dict__, "_features": None}


def build_cache(split: Split, n_mels: int, cache_dir: Path) -> CachedSource:
    """All features of a split in one file below `cache_dir`, made if it is not there.

    The file's name holds the split's fingerprint: other data, or other feature options, never meet an old file.

    Raises:
        DataError: an audio file cannot be read, or the cache cannot be written.
    """
    from rich.console import Console
    from rich.progress import track

    key = hashlib.sha256(f"{_VERSION} {split.fingerprint} {_options(n_mels)}".encode()).hexdigest()[:16]
    file = cache_dir / f"features-{split.name}-{key}.npy"
    source = CachedSource(file, split, n_mels)
    if file.is_file():
        return source
    mel = LogMel(n_mels)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
            partial = Path(scratch) / file.name
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=source._shape)
            steps = track(
                enumerate(split.utterances),
                total=len(split.utterances),
                description=f"features of {split.name}",
                transient=True,
                disable=not Console().is_terminal,
            )
            for index, utterance in steps:
                out[source._ends[index] : source._ends[index + 1]] = _features(split.folder, utterance, mel)
            out.flush()
            del out
            os.replace(partial, file)
    except OSError as error:
        raise DataError(f"{file} cannot be written ({error}): name another folder with data.cache_dir") from error
    return source


def _options(n_mels: int) -> str:
    return f"n_mels={n_mels} hop={HOP} window={_WINDOW} fft={_FFT} floor={_FLOOR}"


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each mel band, (n_mels,) each, over the training data."""

    mean: list[float]
    std: list[float]

    def __call__(self, features: npt.NDArray[np.float16]) -> Tensor:
        """(T, n_mels) float16 -> (T, n_mels) float32 with mean 0 and variance 1 in each band."""
        x = torch.from_numpy(features.astype(np.float32))
        return (x - torch.tensor(self.mean)) / torch.tensor(self.std)


def estimate_normalisation(
    splits: Sequence[Split], sources: Sequence[Source], n_mels: int, utterances: int, cache_dir: Path
) -> Normalisation:
    """Statistics of the features of `utterances` training utterances: estimated once, then read from the cache.

    The choice depends on the data's fingerprint alone, so that runs with other seeds see the same features.
    """
    lines = [f"{_VERSION} {_options(n_mels)} {utterances}", *sorted(split.fingerprint for split in splits)]
    key = checksum(lines)
    file = cache_dir / f"normalisation-{key.removeprefix('sha256:')[:16]}.json"
    try:
        kept = Normalisation(**json.loads(file.read_text(encoding="utf-8")))
        if np.shape(kept.mean) == np.shape(kept.std) == (n_mels,) and np.isfinite([kept.mean, kept.std]).all():
            return kept
    except (OSError, ValueError, TypeError):
        pass  # absent, or not ours: it is made again
    everything = [(s, i) for s, split in enumerate(splits) for i in range(len(split.utterances))]
    chosen = random.Random(key).sample(everything, min(utterances, len(everything)))
    count, total, squares = 0, np.zeros(n_mels), np.zeros(n_mels)
    for s, i in sorted(chosen):
        x = sources[s][i].astype(np.float64)  # (T, n_mels)
        count, total, squares = count + len(x), total + x.sum(axis=0), squares + np.square(x).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 1e-4))
    result = Normalisation(mean.tolist(), std.tolist())
    try:
        write_whole(file, json.dumps(asdict(result)))
    except OSError as error:
        raise DataError(f"{file} cannot be written ({error}): name another folder with data.cache_dir") from error
    return result


class SpecAugment(nn.Module):
    """Masks of random bands and of random stretches of time (Park et al., arXiv:1904.08779), in normalised features.

    Time masks lie inside each utterance's own length, and are at most `time_share` of it (as in arXiv:1912.05533).
    Does nothing in evaluation mode.

    Args:
        freq_masks: number of frequency masks.
        freq_width: each is narrower than this many bands.
        time_masks: number of time masks of each utterance.
        time_width: each is shorter than this many frames.
        time_share: and at most this share of the utterance.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 2,
        time_width: int = 40,
        time_share: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value in (("freq_masks", freq_masks), ("time_masks", time_masks)):
            if value < 0:
                raise ConfigError(f"augment.{name} must be at least 0, got {value}")
        for name, value in (("freq_width", freq_width), ("time_width", time_width)):
            if value < 1:
                raise ConfigError(f"augment.{name} must be at least 1, got {value}")
        if not 0.0 < time_share <= 1.0:
            raise ConfigError(f"augment.time_share must be more than 0 and at most 1, got {time_share}")
        self.freq_masks, self.time_masks = freq_masks, time_masks
        self.freq = FrequencyMasking(freq_width, iid_masks=True)
        self.time = TimeMasking(time_width, p=time_share)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """
        Args:
            features: (B, T, F), normalised: masked values become 0, the mean.
            lengths: (B,) frames of each utterance.

        Returns:
            (B, T, F), a copy; padding is left as it is.
        """
        if not self.training:
            return features
        x = features.transpose(1, 2).unsqueeze(1).clone()  # (B, 1, F, T)
        for _ in range(self.freq_masks):
            x = self.freq(x)
        if self.time_masks:
            for utterance, length in zip(x, lengths.tolist(), strict=True):
                for _ in range(self.time_masks):
                    utterance[..., :length] = self.time(utterance[..., :length])
        return x.squeeze(1).transpose(1, 2)
