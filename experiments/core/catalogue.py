"""The names and looks of all arms, metrics, tasks and scales. A new one is entered here, and only here.

An arm that has no entry gets its own name and a colour that no other arm has. A metric that has no entry stands at the
end of its table under its key. A scale that has no entry is refused before training. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from experiments.core.errors import ConfigError

Mode = Literal["min", "max"]

# --- scales


@dataclass(frozen=True)
class Scale:
    """`shown`: whether its runs stand in tables."""

    name: str
    says: str
    shown: bool = True


SCALES = {
    s.name: s
    for s in (
        Scale("smoke", "seconds, for tests", shown=False),
        Scale("cpu", "at most about 5 minutes of one core a run"),
        Scale("gpu", "at most about an hour of one GPU a run"),
        Scale("paper", "the paper's sizes, on a cluster"),
    )
}


def check_scale(name: str) -> str:
    """`name`, if there is such a scale.

    Raises:
        ConfigError: there is none; names those there are.
    """
    if name not in SCALES:
        raise ConfigError(f"scale must be one of {', '.join(SCALES)}, got {name!r}")
    return name


# --- arms


@dataclass(frozen=True)
class Arm:
    """An optimizer with its clipping, as it is compared.

    Attributes:
        label: in tables and legends.
        phrase: inside a sentence.
        colour: legible on white and on near-black.
        dash: of lines, matplotlib's.
        marker: of points, matplotlib's.
    """

    name: str
    label: str
    phrase: str
    colour: str
    dash: str = "-"
    marker: str = "o"


def _arms(*entries: tuple[str, str, str, str, str, str]) -> dict[str, Arm]:
    return {e[0]: Arm(*e) for e in entries}


# Opponents first, FAdam and its kin after them, context last: the order of every table.
ARMS = _arms(
    ("adam", "Adam", "Adam", "#8c8c8c", ":", "x"),
    ("adamw", "AdamW", "AdamW without clipping", "#b08a00", "--", "s"),
    ("adamw_clip", "AdamW + clip", "AdamW with clipping", "#e06c00", "-", "s"),
    ("adamw_update_clip", "AdamW + update clip", "AdamW with clipped updates", "#a65628", "-.", "s"),
    ("fadam", "FAdam", "FAdam", "#2b83ba", "-", "o"),
    ("fadam_gradient_momentum", "FAdam, momentum of the gradient", "FAdam with Adam's momentum", "#12897b", "--", "^"),
    ("fadam_corrected_momentum", "FAdam, corrected momentum", "FAdam with corrected momentum", "#3f9b3f", "-.", "v"),
    ("fadam_decoupled_decay", "FAdam, AdamW's decay", "FAdam with AdamW's weight decay", "#7a7fd1", "--", "D"),
    (
        "fadam_global_clip",
        "FAdam, AdamW's decay, global clip",
        "FAdam with AdamW's weight decay and clipping of the global norm",
        "#9d6cc9",
        "-.",
        "P",
    ),
    ("fadam_no_clip", "FAdam without clip", "FAdam without clipping", "#5f8fd0", ":", "X"),
    ("fadam_fixed_eps", "FAdam, fixed epsilon", "FAdam with a fixed epsilon", "#3a98b8", ":", "<"),
    ("fadam_scaled_eps", "FAdam, v3 epsilon", "FAdam with the epsilon of revision 3", "#6f9fb8", ":", ">"),
    ("nadamw", "NAdamW", "NAdamW", "#b5651d", ":", "s"),
    ("lion", "Lion", "Lion", "#b04a4a", ":", "*"),
    ("muon", "Muon", "Muon", "#c2417c", "-", "*"),
    ("schedule_free", "Schedule-free AdamW", "schedule-free AdamW", "#708a2e", "-", "h"),
    ("soap", "SOAP", "SOAP", "#c04fc0", "--", "d"),
    ("ademamix", "AdEMAMix", "AdEMAMix", "#d0524f", "-.", "p"),
    ("mars", "MARS", "MARS", "#b5542d", "--", "H"),
    ("prodigy", "Prodigy", "Prodigy", "#6a8f3c", ":", "d"),
    ("adam_atan2", "Adam-atan2", "Adam-atan2", "#8a6a3b", "-.", "8"),
)
_FREE = ("#5b8c85", "#c48a3a", "#8a6d9f", "#5d9e57", "#c26b8f", "#4f8fc0", "#a07a5a", "#7f8f3f")


def arm(name: str, others: Iterable[str] = ()) -> Arm:
    """How an arm is shown. Unknown ones among `others` get different colours, in the order of their names."""
    if name in ARMS:
        return ARMS[name]
    unknown = sorted({name, *others} - set(ARMS))
    place = unknown.index(name)
    if place < len(_FREE):
        colour = _FREE[place]
    else:  # hues of the golden angle
        from colorsys import hls_to_rgb

        colour = "#" + "".join(f"{round(255 * v):02x}" for v in hls_to_rgb(place * 0.381966 % 1, 0.45, 0.5))
    return Arm(name, name, name, colour, (":", "-.", "--")[place % 3], ".")


def in_order(names: Iterable[str]) -> list[str]:
    """Arms in the order of the tables; unknown ones last, by name."""
    order = {name: i for i, name in enumerate(ARMS)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))


# --- metrics


@dataclass(frozen=True)
class Metric:
    """One measured quantity, by its key in the run record.

    Attributes:
        mode: which direction is better; None where neither is, or it is not known.
        digits: behind the point, as shown.
        percent: whether the recorded fraction is shown times 100.
        amount: of a difference in a sentence, `{}` being the number: "{} bits per byte".
        fewer, more: what an arm with the better (`fewer`) or worse value does: "needs {} fewer bits per byte".
        table: whether it stands in tables of results.
        limit: (metric, value): shown only where the best arm's mean of that metric is at most the value.
    """

    key: str
    label: str
    mode: Mode | None = None
    digits: int = 4
    percent: bool = False
    amount: str = "{}"
    fewer: str = ""
    more: str = ""
    table: bool = True
    limit: tuple[str, float] | None = None

    @property
    def title(self) -> str:
        """The label with the direction that is better."""
        return self.label + {"min": " ↓", "max": " ↑", None: ""}[self.mode]

    @property
    def worst(self) -> float:
        """What a diverged run gets."""
        return {"min": math.inf, "max": -math.inf, None: math.nan}[self.mode]

    def number(self, value: float, signed: bool = False, digits: int | None = None) -> str:
        """A value as shown; never "-0.00"."""
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "-∞" if value < 0 else "+∞" if signed else "∞"
        digits = self.digits if digits is None else digits
        text = f"{value * (100 if self.percent else 1):{'+' if signed else ''}.{digits}f}"
        return text.replace("-", "+" if signed else "") if float(text) == 0 else text

    def plain(self, value: float) -> str:
        """A value without trailing zeros, such as a declared difference."""
        return f"{value * (100 if self.percent else 1):g}"


def _speech() -> list[Metric]:
    found = []
    for split in ("test-clean", "test-other", "dev-clean", "dev-other", "test-human"):
        limit = (f"{split}/wer", 0.75) if split.endswith("other") else None
        shown = split != "test-human"
        found += [
            Metric(
                f"{split}/wer", f"{split} WER (%)", "min", 2, True, "{} in 100 words",
                "makes {} fewer word errors in 100 words", "makes {} more word errors in 100 words", shown, limit,
            ),
            Metric(
                f"{split}/cer", f"{split} CER (%)", "min", 2, True, "{} in 100 characters",
                "makes {} fewer character errors in 100", "makes {} more character errors in 100", shown, limit,
            ),
            Metric(f"{split}/loss", f"{split} CTC loss (nats per character)", "min", 3, table=shown, limit=limit),
        ]  # fmt: skip
    return found


def _language() -> list[Metric]:
    found = []
    for split, name in (("test", "test"), ("val", "validation")):
        found += [
            Metric(
                f"{split}/bits_per_byte", f"{name} bits per byte", "min", 4, False, "{} bits per byte",
                "needs {} fewer bits per byte", "needs {} more bits per byte",
            ),
            Metric(f"{split}/loss", f"{name} loss (nats per token)", "min", 4),
            Metric(f"{split}/perplexity", f"{name} perplexity", "min", 3),
        ]  # fmt: skip
    return [*found, Metric("speed/tokens_per_second", "tokens per second", None, 0, table=False)]


def _images() -> list[Metric]:
    found = []
    for split, name in (("test", "test"), ("val", "validation")):
        found += [
            Metric(
                f"{split}/bits_per_dim", f"{name} bits per dimension", "min", 4, False, "{} bits per dimension",
                "needs {} fewer bits per dimension", "needs {} more bits per dimension",
            ),
            Metric(
                f"{split}/psnr", f"{name} PSNR (dB)", "max", 3, False, "{} dB",
                "reconstructs {} dB more closely", "reconstructs {} dB less closely",
            ),
            Metric(f"{split}/ssim", f"{name} SSIM", "max", 4),
            Metric(f"{split}/mse", f"{name} MSE", "min", 6),
            Metric(f"{split}/lpips", f"{name} LPIPS", "min", 4),
            Metric(f"{split}/rfid", f"{name} rFID", "min", 3),
            Metric(f"{split}/codebook_perplexity", f"{name} codebook perplexity", None, 1),
            Metric(f"{split}/codebook_usage", f"{name} codes in use (%)", None, 1, True),
        ]  # fmt: skip
    return found


# --- tasks


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        title: of its page; phrase: inside a sentence ("on language").
        headline: the metrics of its short tables.
        curves: the metrics that are drawn against steps.
        caveat: what its numbers must not be taken for.
    """

    name: str
    title: str
    phrase: str
    metrics: Mapping[str, Metric]
    headline: tuple[str, ...]
    curves: tuple[str, ...]
    caveat: str

    def metric(self, key: str) -> Metric:
        """The metric of a key, known or not."""
        return self.metrics.get(key) or Metric(key, key)

    def recorded(self, keys: Iterable[str]) -> list[Metric]:
        """The metrics of some keys, in the order of the tables; unknown ones last, by key."""
        order = {key: i for i, key in enumerate(self.metrics)}
        return [self.metric(key) for key in sorted(set(keys), key=lambda key: (order.get(key, len(order)), key))]


def _task(
    name: str, title: str, phrase: str, metrics: list[Metric], headline: str, curves: str, caveat: str
) -> tuple[str, Task]:
    by_key = {m.key: m for m in metrics}
    return name, Task(name, title, phrase, by_key, tuple(headline.split()), tuple(curves.split()), caveat)


TASKS = dict(
    (
        _task(
            "llm", "Language modelling", "language", _language(), "test/bits_per_byte", "val/bits_per_byte",
            "not comparable with a 1B-parameter model",
        ),
        _task(
            "asr", "Speech recognition", "speech", _speech(), "test-clean/wer test-clean/cer test-clean/loss",
            "dev-clean/wer", "not comparable with LibriSpeech numbers of the paper",
        ),
        _task(
            "vqvae", "VQ-VAE", "images", _images(), "test/bits_per_dim test/psnr", "val/bits_per_dim val/psnr",
            "not comparable with ImageNet numbers",
        ),
    )
)  # fmt: skip
OURS = frozenset(TASKS)  # others add theirs
VARIANTS = {
    "discretized_logistic": "discrete likelihood",
    "gaussian": "Gaussian likelihood",
    "categorical": "categorical likelihood",
}


def task(name: str) -> Task:
    """The entry of a task.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def metric(name: str, key: str) -> Metric:
    """The metric of a task and a key, each known or not."""
    return TASKS[name].metric(key) if name in TASKS else Metric(key, key)


def variant(name: str) -> str:
    """A variant in words."""
    return VARIANTS.get(name, name.replace("_", " "))


def where(task_name: str, variant_name: str = "") -> str:
    """A task and its variant in words, as a heading begins: "VQ-VAE, Gaussian likelihood"."""
    title = TASKS[task_name].title if task_name in TASKS else task_name
    return f"{title}, {variant(variant_name)}" if variant_name else title


def signed(metric: Metric, gain: float) -> Metric:
    """`metric` with as many digits as a small `gain` needs to show one that is not 0, at most two more."""
    shown = abs(gain) * (100 if metric.percent else 1)
    if not math.isfinite(shown) or shown == 0:
        return metric
    needed = max(metric.digits, min(metric.digits + 2, -math.floor(math.log10(shown))))
    return replace(metric, digits=needed)
