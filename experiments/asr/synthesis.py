"""Synthesised speech: voices, the two engines, noise and reverberation.

Everything after the engines is integer arithmetic, exact in float64, so that the samples do not depend on the machine's
vector units or on a library's version. The engines themselves carry state from one utterance to the next; a shard is
therefore rendered in a fixed order by a fresh process of its own: `python -m experiments.asr.synthesis shard.json`,
with `ENVIRONMENT` set.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from experiments.core.errors import DataError

SAMPLE_RATE = 16_000

_MIN_PER_CHARACTER = SAMPLE_RATE // 20  # samples, 50 ms; a 4 times subsampled encoder has a frame every 40 ms

# Pico reads memory that it never wrote; glibc then fills each allocation, and the same samples come out every time.
ENVIRONMENT = {"MALLOC_PERTURB_": "165", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Voice:
    """One speaker. `pitch` and `rate` are the engine's own units: espeak 0-99 and words a minute, pico factors."""

    engine: str  # "espeak" | "pico"
    name: str
    pitch: float
    rate: float


def _espeak(*voices: tuple[str, int, int]) -> list[Voice]:
    return [Voice("espeak", name, pitch, rate) for name, pitch, rate in voices]


# No variant with "breath" in its definition: those give other samples in every process.
# Heard in training, and in dev-clean and test-clean.
CLEAN_VOICES = [
    *_espeak(
        ("en-us", 50, 145),
        ("en-us+f1", 60, 140),
        ("en-us+steph2", 55, 155),
        ("en-us+f4", 65, 150),
        ("en-us+m1", 45, 145),
        ("en-us+m3", 40, 160),
        ("en-us+m7", 35, 140),
        ("en-us+Andrea", 55, 145),
        ("en-us+Michael", 45, 150),
        ("en-us+edward2", 50, 155),
        ("en-us-nyc+linda", 50, 150),
        ("en-us-nyc+m2", 45, 155),
        ("en-us-nyc+m4", 55, 140),
        ("en-us-nyc+steph", 50, 145),
        ("en-gb-x-rp", 50, 145),
        ("en-gb-x-rp+f1", 55, 155),
        ("en-gb-x-rp+f4", 60, 140),
        ("en-gb-x-rp+m2", 40, 150),
        ("en-gb-x-rp+m5", 50, 160),
        ("en-gb-x-rp+grandma", 55, 145),
        ("en-gb-scotland+f1", 50, 150),
        ("en-gb-scotland+m1", 45, 140),
        ("en-gb-scotland+Alex", 50, 155),
        ("en-029+anika", 55, 145),
        ("en-029+m3", 45, 150),
    ),
    Voice("pico", "en-US", 1.0, 0.85),
    Voice("pico", "en-US", 0.82, 0.95),
    Voice("pico", "en-US", 1.2, 0.8),
]

# Never heard in training: other formants, and two more accents.
OTHER_VOICES = _espeak(
    ("en-us+Annie", 55, 145),
    ("en-us+m6", 45, 150),
    ("en-us+robert", 50, 150),
    ("en-us-nyc+belinda", 55, 140),
    ("en-us-nyc+rob", 50, 145),
    ("en-gb-x-rp+adam", 45, 155),
    ("en-gb-scotland+john", 50, 145),
    ("en-029+Denis", 50, 150),
    ("en-gb-x-gbclan+m8", 50, 145),
    ("en-gb-x-gbcwmd+aunty", 50, 150),
)

# Ranges of the room and the noise of "other": the reverberation's decay in seconds, the direct sound above it and the
# speech above the noise in dB, the noise's colour. Training is in silence, so that a little does much: a model with a
# WER of 33% in silence had 81% with 8 to 14 and 18 to 30 dB, in voices that it knew, and 66% with 12 to 18 and 25 to
# 40 dB, in voices much like these.
_ROOM, _DIRECT, _SNR, _COLOUR = (0.1, 0.25), (12.0, 18.0), (28.0, 40.0), (0.0, 1.5)


class Engine(Protocol):
    def speak(self, voice: Voice, text: str, pitch: float, rate: float) -> Samples:
        """(samples,) at 16 kHz. `pitch` and `rate` are factors on the voice's own."""


class Espeak:
    """eSpeak NG in this process, through ctypes. One instance a process: the library's state is global.

    Raises:
        DataError: the package is missing, or the library refuses to start or to take a voice.
    """

    _SYNCHRONOUS, _UTF8 = 2, 1
    _RATE, _PITCH = 1, 3

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise DataError(
                "the package espeakng-loader, which carries the voices, is missing: pip install 'fadam[speech]'"
            ) from None
        library = espeakng_loader.load_library()
        if library is None:
            raise DataError(f"eSpeak NG's library cannot be loaded: {espeakng_loader.get_library_path()}")
        rate = library.espeak_Initialize(self._SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate <= 0:
            raise DataError(f"eSpeak NG does not start (status {rate}) with {espeakng_loader.get_data_path()}")
        self._library, self._rate, self._chunks = library, int(rate), list[bytes]()
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

        def take(samples: int | None, count: int, events: int | None) -> int:
            if samples and count > 0:
                self._chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        self._callback = callback(take)  # kept: the library holds only a pointer to it
        library.espeak_SetSynthCallback(self._callback)

    def speak(self, voice: Voice, text: str, pitch: float, rate: float) -> Samples:
        library = self._library
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise DataError(f"eSpeak NG has no voice {voice.name}")
        library.espeak_SetParameter(self._RATE, round(voice.rate * rate), 0)
        library.espeak_SetParameter(self._PITCH, round(voice.pitch * pitch), 0)
        self._chunks.clear()
        raw = text.encode()
        status = library.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, self._UTF8, None, None)
        if status != 0 or library.espeak_Synchronize() != 0:
            raise DataError(f"eSpeak NG could not speak {text!r} with the voice {voice.name}")
        return resample(np.frombuffer(b"".join(self._chunks), dtype="<i2"), self._rate)


class Pico:
    """SVOX Pico, through py-nanotts; 16 kHz of its own.

    Raises:
        DataError: the package is missing.
    """

    def __init__(self) -> None:
        try:
            from py_nanotts import NanoTTS
        except ImportError:
            raise DataError("the package py-nanotts is missing: pip install 'fadam[speech]'") from None
        self._tts = NanoTTS()

    def speak(self, voice: Voice, text: str, pitch: float, rate: float) -> Samples:
        # At its own volume the engine clips; a third of it is as loud as eSpeak.
        pcm = self._tts.speak(text, voice=voice.name, pitch=voice.pitch * pitch, speed=voice.rate * rate, volume=0.35)
        return np.frombuffer(pcm, dtype="<i2")


ENGINES: dict[str, Callable[[], Engine]] = {"espeak": Espeak, "pico": Pico}


def _convolve(x: npt.NDArray[Any], h: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Full convolution of integers; the FFT's rounding error is far below 1/2, so the result is exact."""
    length = len(x) + len(h) - 1
    size = 1 << (length - 1).bit_length()
    product = np.fft.rfft(x.astype(np.float64), size) * np.fft.rfft(h.astype(np.float64), size)
    return np.rint(np.fft.irfft(product, size)[:length]).astype(np.int64)


def _to_int16(x: npt.NDArray[np.int64], bits: int) -> Samples:
    """x / 2^bits, rounded; made quieter where it would clip."""
    peak = int(np.abs(x).max(initial=0)) + (1 << bits) >> bits
    if peak > 32_000:
        x = x * 32_000 // peak
    return ((x + (1 << (bits - 1))) >> bits).astype(np.int16)


@lru_cache
def _lowpass(up: int, down: int) -> npt.NDArray[np.float64]:
    """(inputs, up) integers: what `up` outputs in a row take from all the inputs that they reach."""
    half = 12 * max(up, down)  # twelve zero crossings
    reach = half // up + 1  # inputs on each side
    cutoff = 0.94 / max(up, down)
    # Distance of each input from each output, in steps of the common multiple of both rates.
    offset = up * np.arange(-reach, down + reach)[:, None] - down * np.arange(up)[None, :]
    inside = np.abs(offset) <= half
    window = np.i0(8.0 * np.sqrt(np.where(inside, 1.0 - (offset / half) ** 2, 0.0))) * inside
    taps = np.sinc(cutoff * offset) * window
    return np.asarray(np.rint(taps * up / taps.sum() * (1 << 15)))


def resample(samples: npt.NDArray[Any], rate: int, target: int = SAMPLE_RATE) -> Samples:
    """(samples,) int16 at `rate` Hz -> int16 at `target` Hz, through a polyphase filter with integer coefficients."""
    if rate == target:
        return samples.astype(np.int16)
    common = int(np.gcd(rate, target))
    up, down = target // common, rate // common
    h = _lowpass(up, down)
    reach = (len(h) - down) // 2
    padded = np.pad(samples.astype(np.float64), (reach, reach + down))
    x = np.lib.stride_tricks.sliding_window_view(padded, len(h))[::down]  # (blocks, inputs)
    y = (x @ h).reshape(-1)[: -(-len(samples) * up // down)]  # integers below 2^53: exact in any order
    return _to_int16(y.astype(np.int64), 15)


def trim(samples: Samples, margin: int = SAMPLE_RATE // 20, threshold: int = 200) -> Samples:
    """Cut the silence before and after, but for `margin` samples (50 ms)."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > threshold)
    if len(loud) == 0:
        return samples[:0]
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def _white(seed: str, count: int) -> npt.NDArray[np.int64]:
    """Uniform integers in [-32768, 32767]; the raw bit stream, which numpy promises never to change."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")
    return (np.random.PCG64(key).random_raw(count) >> np.uint64(48)).astype(np.int64) - 32_768


def reverberate(samples: Samples, rt60: float, direct_db: float, seed: str) -> Samples:
    """A synthetic room: the direct path, then noise that decays by 60 dB in `rt60` seconds.

    `direct_db` is the energy of the direct path over that of the noise.
    """
    count = int(rt60 * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    tail = _white(seed, count) * np.power(10.0, -3.0 * time / rt60)
    tail[: SAMPLE_RATE // 200] = 0.0  # nothing comes back within 5 ms
    tail *= np.power(10.0, -direct_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return _to_int16(_convolve(samples, np.rint(tail * (1 << 14)))[: len(samples)], 14)


def add_noise(samples: Samples, snr_db: float, colour: float, seed: str) -> Samples:
    """Noise with a power spectrum of 1/f^colour (0 white, 1 pink, 2 brown), `snr_db` below the speech's mean power."""
    taps = 512
    frequency = np.arange(taps // 2 + 1) / taps
    frequency[0] = frequency[1]
    response = np.fft.fftshift(np.fft.irfft(frequency ** (-colour / 2))) * np.hanning(taps)
    h = np.rint(response / np.sqrt(np.sum(response**2)) * 1024)
    noise = _convolve(_white(seed, len(samples) + taps - 1), h)[taps - 1 : taps - 1 + len(samples)] >> 10
    speech = samples.astype(np.int64)
    ratio = float(np.dot(speech, speech)) / max(1.0, float(np.dot(noise, noise)))
    gain = round(np.sqrt(ratio) * np.power(10.0, -snr_db / 20) * (1 << 14))
    return _to_int16((speech << 14) + noise * gain, 14)


@dataclass(frozen=True)
class Line:
    """One utterance to be made. `path` is relative to the data set's root."""

    id: str
    path: str
    voice: Voice
    text: str
    noisy: bool


@dataclass(frozen=True)
class Made:
    """One utterance made: `md5` is of its samples as little-endian 16-bit integers, the sum that FLAC keeps as well."""

    id: str
    samples: int
    md5: str


def render(line: Line, engine: Engine, seed: int) -> Samples:
    """(samples,) of one utterance. Speakers vary a little from one sentence to the next, as people do."""
    rng = random.Random(f"{seed}-{line.id}")
    pitch, rate, gain = rng.uniform(0.94, 1.06), rng.uniform(0.93, 1.08), round(rng.uniform(0.5, 1.0) * 256)
    # Short words run together: spoken again, slower, until CTC has frames to spare.
    for slower in (1.0, 0.85, 0.7, 0.55):
        samples = trim(engine.speak(line.voice, line.text, pitch, rate * slower))
        if len(samples) >= len(line.text) * _MIN_PER_CHARACTER:
            break
    else:
        raise DataError(f"the voice {line.voice.name} said too little for {line.text!r}")
    samples = ((samples.astype(np.int64) * gain) >> 8).astype(np.int16)
    if line.noisy:
        rt60, direct, snr, colour = (rng.uniform(*low_high) for low_high in (_ROOM, _DIRECT, _SNR, _COLOUR))
        padded = np.concatenate([samples, np.zeros(SAMPLE_RATE // 10, np.int16)])
        samples = reverberate(padded, rt60, direct, f"{seed}-room-{line.id}")
        samples = add_noise(samples, snr, colour, f"{seed}-noise-{line.id}")
    return samples


def write_flac(path: Path, samples: Samples) -> Made:
    """Write 16 kHz mono FLAC; the id is the file's name.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        soundfile.write(path, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    except (OSError, soundfile.LibsndfileError) as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    return Made(path.stem, len(samples), hashlib.md5(samples.astype("<i2").tobytes()).hexdigest())


def write_shard(shard: Path, root: Path, lines: list[Line], seed: int) -> None:
    """Write down the work of one process."""
    job = {"root": str(root), "seed": seed, "lines": [asdict(line) for line in lines]}
    shard.write_text(json.dumps(job), encoding="utf-8")


def run_shard(shard: Path, progress: Callable[[int], None]) -> list[Made]:
    """Render all lines of a shard in their order, into folders that exist."""
    job = json.loads(shard.read_text(encoding="utf-8"))
    engines: dict[str, Engine] = {}
    made = []
    for number, entry in enumerate(job["lines"], start=1):
        line = Line(**{**entry, "voice": Voice(**entry["voice"])})
        if line.voice.engine not in engines:
            engines[line.voice.engine] = ENGINES[line.voice.engine]()
        samples = render(line, engines[line.voice.engine], job["seed"])
        made.append(write_flac(Path(job["root"]) / line.path, samples))
        if number % 50 == 0:
            progress(50)
    progress(len(made) % 50)
    return made


def main() -> int:
    """Render the shard named on the command line; one line of standard output for every few utterances made."""
    shard = Path(sys.argv[1])
    try:
        made = run_shard(shard, lambda count: print(count, flush=True))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    shard.with_suffix(".made").write_text(json.dumps([asdict(m) for m in made]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
