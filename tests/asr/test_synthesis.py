import hashlib

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from experiments.asr.synthesis import (
    CLEAN_VOICES,
    OTHER_VOICES,
    SAMPLE_RATE,
    Line,
    Samples,
    Voice,
    add_noise,
    render,
    resample,
    reverberate,
    trim,
    write_flac,
)
from experiments.core.errors import DataError


def tone(rate: int, hertz: float, seconds: float = 1.0, level: float = 8000) -> Samples:
    return np.rint(level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.int16)


def power(x: npt.NDArray[np.generic]) -> float:
    return float(np.mean(np.square(x.astype(np.float64))))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("hertz", [100, 1000, 2500])
def test_resampling_keeps_tones_in_place(rate: int, hertz: float) -> None:
    out = resample(tone(rate, hertz), rate)
    assert len(out) == SAMPLE_RATE
    np.testing.assert_allclose(out[500:-500], tone(SAMPLE_RATE, hertz)[500:-500], atol=8)


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    assert power(resample(tone(22_050, 9000), 22_050)[500:-500]) < 1e-4 * power(tone(22_050, 9000))


def test_resampling_at_the_same_rate_changes_nothing() -> None:
    np.testing.assert_array_equal(resample(tone(SAMPLE_RATE, 440), SAMPLE_RATE), tone(SAMPLE_RATE, 440))


def test_full_scale_does_not_wrap_around() -> None:
    square = np.where(np.arange(22_050) % 100 < 50, 32_767, -32_768).astype(np.int16)
    out = resample(square, 22_050).astype(np.int64)
    assert np.abs(out).max() <= 32_000
    assert np.corrcoef(out[:16_000:200], resample((square // 4).astype(np.int16), 22_050)[::200])[0, 1] > 0.99


def test_trimming_leaves_50_ms_on_both_sides() -> None:
    quiet = np.zeros(8000, np.int16)
    out = trim(np.concatenate([quiet, tone(SAMPLE_RATE, 1000), quiet]))
    assert abs(len(out) - (SAMPLE_RATE + 2 * SAMPLE_RATE // 20)) < 20
    assert len(trim(quiet)) == 0


@pytest.mark.parametrize("snr", [0.0, 10.0, 25.0])
@pytest.mark.parametrize("colour", [0.0, 1.0, 1.5])
def test_noise_has_the_ratio_asked_for(snr: float, colour: float) -> None:
    speech = tone(SAMPLE_RATE, 700, level=6000)
    noise = add_noise(speech, snr, colour, "seed").astype(np.int64) - speech
    assert 10 * np.log10(power(speech) / power(noise)) == pytest.approx(snr, abs=0.1)


def test_coloured_noise_has_more_power_below() -> None:
    silence = tone(SAMPLE_RATE, 700, level=6000)
    shares = []
    for colour in (0.0, 1.0, 2.0):
        noise = add_noise(silence, 0.0, colour, "seed").astype(np.float64) - silence
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        shares.append(spectrum[:1000].sum() / spectrum.sum())
    assert shares[0] == pytest.approx(1 / 8, abs=0.03)
    assert shares[0] < shares[1] < shares[2]


def test_a_room_adds_a_tail_of_the_energy_and_length_asked_for() -> None:
    click = np.zeros(SAMPLE_RATE, np.int16)
    click[100] = 20_000
    out = reverberate(click, rt60=0.3, direct_db=6.0, seed="room").astype(np.float64)
    tail = out[101:]
    assert 10 * np.log10(out[100] ** 2 / np.sum(tail**2)) == pytest.approx(6.0, abs=0.2)
    assert not tail[: SAMPLE_RATE // 200 - 1].any()
    assert not out[100 + round(0.3 * SAMPLE_RATE) :].any()
    early, late = tail[:1600], tail[2400:4000]
    assert power(late) < 0.01 * power(early)


def test_noise_and_rooms_are_the_same_on_every_machine() -> None:
    speech = tone(SAMPLE_RATE, 440, seconds=0.25)
    out = add_noise(reverberate(speech, 0.2, 5.0, "a"), 12.0, 1.0, "b")
    assert hashlib.md5(out.astype("<i2").tobytes()).hexdigest() == "93ceeda41610030ac9f3ed586ee82e7a"
    resampled = resample(tone(22_050, 440, seconds=0.25), 22_050)
    assert hashlib.md5(resampled.astype("<i2").tobytes()).hexdigest() == "b76f905f76f53fa92751c31dce086ee0"


class Metronome:
    """An engine whose speech is as long as its rate makes it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.rates = seconds, list[float]()

    def speak(self, voice: Voice, text: str, pitch: float, rate: float) -> Samples:
        self.rates.append(rate)
        return tone(SAMPLE_RATE, 400, self.seconds / rate)


def line(text: str, noisy: bool = False) -> Line:
    return Line("101-1010-0000", "a.flac", CLEAN_VOICES[0], text, noisy)


def test_a_phrase_spoken_too_fast_for_ctc_is_spoken_again_slower() -> None:
    text = "x" * 20  # needs a second
    engine = Metronome(0.9)
    samples = render(line(text), engine, seed=0)
    assert len(samples) >= SAMPLE_RATE
    assert len(engine.rates) > 1
    assert engine.rates == sorted(engine.rates, reverse=True)
    with pytest.raises(DataError, match=f"said too little for '{text}'"):
        render(line(text), Metronome(0.1), seed=0)


def test_rendering_depends_on_seed_and_id_alone() -> None:
    def rendered(seed: int, noisy: bool) -> bytes:
        return render(line("x" * 10, noisy), Metronome(1.0), seed).tobytes()

    assert rendered(0, True) == rendered(0, True)
    assert len({rendered(0, True), rendered(1, True), rendered(0, False)}) == 3


def test_written_audio_is_16_khz_mono_and_its_checksum_is_of_the_samples(tmp_path) -> None:
    samples = tone(SAMPLE_RATE, 300)
    made = write_flac(tmp_path / "1-2-0003.flac", samples)
    back, rate = soundfile.read(tmp_path / "1-2-0003.flac", dtype="int16")
    np.testing.assert_array_equal(back, samples)
    assert (made.id, made.samples, rate) == ("1-2-0003", SAMPLE_RATE, SAMPLE_RATE)
    assert made.md5 == hashlib.md5(back.tobytes()).hexdigest()


def test_a_file_that_cannot_be_written_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"missing/a\.flac"):
        write_flac(tmp_path / "missing" / "a.flac", tone(SAMPLE_RATE, 300))


def test_voices_of_other_are_never_heard_in_training() -> None:
    clean, other = {v.name for v in CLEAN_VOICES}, {v.name for v in OTHER_VOICES}
    assert not clean & other
    variants = [{name.partition("+")[2] for name in names} for names in (clean, other)]
    assert not (variants[0] & variants[1]) - {""}
    assert len(set(CLEAN_VOICES)) == len(CLEAN_VOICES) >= 28
    assert len(set(OTHER_VOICES)) == len(OTHER_VOICES)
