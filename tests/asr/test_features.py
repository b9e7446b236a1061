import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.asr.features import (
    AudioSource,
    LogMel,
    SpecAugment,
    build_cache,
    estimate_normalisation,
    frame_count,
)
from experiments.asr.librispeech import read_split
from experiments.core.errors import ConfigError, DataError


@pytest.mark.parametrize("samples", [1, 200, 257, 1599, 1600, 16_000])
def test_log_mel_has_a_frame_every_10_ms(samples: int) -> None:
    features = LogMel(80)(np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32))
    assert features.shape == (frame_count(max(samples, 257)), 80)
    assert features.dtype == np.float16
    assert np.isfinite(features).all()


def test_silence_is_finite_and_a_tone_is_loudest_in_its_band() -> None:
    mel = LogMel(80)
    assert np.isfinite(mel(np.zeros(4000, np.float32))).all()
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16_000).astype(np.float32)
    low = np.sin(2 * np.pi * 300 * np.arange(8000) / 16_000).astype(np.float32)
    peaks = [int(mel(wave).astype(np.float32).mean(axis=0).argmax()) for wave in (low, tone)]
    assert 0 < peaks[0] < peaks[1] < 40


def test_cached_features_equal_those_made_on_the_fly(speech_root: Path) -> None:
    split = read_split(speech_root, "train-clean")
    cached, fresh = build_cache(split, 40, speech_root / ".cache"), AudioSource(split, 40)
    for index in range(len(split.utterances)):
        np.testing.assert_array_equal(cached[index], fresh[index])


def test_the_cache_is_made_once_and_never_mixes_data_or_options(
    speech_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = speech_root / ".cache"
    split, other = read_split(speech_root, "dev-clean"), read_split(speech_root, "dev-other")
    first = np.array(build_cache(split, 40, cache)[0])
    build_cache(split, 20, cache)
    build_cache(other, 40, cache)
    assert len(list(cache.glob("features-*.npy"))) == 3
    monkeypatch.setattr("experiments.asr.features.read_audio", None)  # reading audio again would fail
    np.testing.assert_array_equal(build_cache(split, 40, cache)[0], first)


def test_a_cache_that_is_interrupted_leaves_nothing(speech_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.asr.features.read_audio", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_cache(read_split(speech_root, "dev-clean"), 40, speech_root / "cache")
    assert list((speech_root / "cache").iterdir()) == []


def test_a_damaged_cache_is_named(speech_root: Path) -> None:
    split = read_split(speech_root, "dev-clean")
    build_cache(split, 40, speech_root / ".cache")
    (file,) = (speech_root / ".cache").glob("features-*.npy")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=file.name):
        build_cache(split, 40, speech_root / ".cache")[0]


def test_a_pickled_cache_holds_no_features(speech_root: Path) -> None:
    source = build_cache(read_split(speech_root, "train-clean"), 40, speech_root / ".cache")
    features = np.array(source[3])
    content = pickle.dumps(source)
    assert len(content) < 10_000 < features.nbytes * 20
    np.testing.assert_array_equal(pickle.loads(content)[3], features)


def test_audio_that_changed_behind_the_manifest_is_named(speech_root: Path) -> None:
    from tests.asr.conftest import write_utterance

    split = read_split(speech_root, "dev-clean")
    write_utterance(speech_root, "dev-clean", 1, None, seconds=0.7, speaker=8)
    with pytest.raises(DataError, match=r"8-80-0001\.flac has 11200 samples, 18400"):
        AudioSource(split, 40)[1]


def test_normalised_training_features_have_mean_0_and_variance_1(speech_root: Path) -> None:
    split = read_split(speech_root, "train-clean")
    source = AudioSource(split, 40)
    normalise = estimate_normalisation([split], [source], 40, 1000, speech_root / ".cache")
    everything = torch.cat([normalise(source[i]) for i in range(20)])  # (T, 40)
    assert everything.dtype == torch.float32
    torch.testing.assert_close(everything.mean(dim=0), torch.zeros(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(everything.std(dim=0), torch.ones(40), atol=1e-2, rtol=0)


def test_normalisation_is_estimated_on_a_fixed_subset_and_kept(speech_root: Path) -> None:
    split, cache = read_split(speech_root, "train-clean"), speech_root / ".cache"
    source = AudioSource(split, 40)
    five = estimate_normalisation([split], [source], 40, 5, cache)
    assert five != estimate_normalisation([split], [source], 40, 20, cache)
    assert estimate_normalisation([split], [], 40, 5, cache) == five  # no source: it was read back
    for file in cache.glob("normalisation-*"):
        file.unlink()
    assert estimate_normalisation([split], [source], 40, 5, cache) == five


def test_specaugment_masks_within_each_utterances_length() -> None:
    torch.manual_seed(0)
    augment = SpecAugment(freq_masks=0, time_masks=3, time_width=20, time_share=0.2)
    lengths = torch.tensor([100, 40, 7])
    features = torch.ones(3, 100, 80)
    masked = torch.zeros(3)
    for _ in range(50):
        out = augment(features, lengths)  # (B, T, F)
        assert out.shape == features.shape
        for b, length in enumerate(lengths.tolist()):
            frames = (out[b] == 0).all(dim=1)  # (T,)
            assert not frames[length:].any()
            assert frames.sum() <= 3 * min(20, 0.2 * length)
            masked[b] += frames.sum()
    assert (masked[:2] > 0).all()
    assert (features == 1).all()


def test_specaugment_masks_bands_of_each_utterance_apart() -> None:
    torch.manual_seed(0)
    augment = SpecAugment(freq_masks=2, freq_width=10, time_masks=0)
    out = augment(torch.ones(8, 30, 80), torch.full((8,), 30))
    bands = (out == 0).all(dim=1)  # (B, F)
    assert torch.equal(out == 0, bands.unsqueeze(1).expand_as(out))
    assert 0 < bands.sum(dim=1).max() < 20
    assert len({tuple(row.tolist()) for row in bands}) > 1


def test_specaugment_does_nothing_in_evaluation_mode() -> None:
    features = torch.ones(2, 30, 80)
    assert SpecAugment().eval()(features, torch.tensor([30, 20])) is features


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"freq_masks": -1}, "freq_masks"),
        ({"time_masks": -1}, "time_masks"),
        ({"freq_width": 0}, "freq_width"),
        ({"time_width": 0}, "time_width"),
        ({"time_share": 0.0}, "time_share"),
        ({"time_share": 1.5}, "time_share"),
    ],
)
def test_specaugment_names_an_option_out_of_range(options: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{named} must be .* got {next(iter(options.values()))}"):
        SpecAugment(**options)  # type: ignore[arg-type]
