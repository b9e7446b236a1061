"""What the tables and figures need to know of each task: its metrics, their direction and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.analysis.records import AnalysisError, Mode, Record
from experiments.analysis.stats import Paired, Summary

ARM_LABELS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "adamw_clip": "AdamW + clip",
    "adamw_update_clip": "AdamW + update clip",
    "nadamw": "NAdamW",
    "lion": "Lion",
    "muon": "Muon",
    "schedule_free": "Schedule-free AdamW",
    "fadam": "FAdam",
    "fadam_fixed_eps": "FAdam, fixed epsilon",
    "fadam_gradient_momentum": "FAdam, momentum of the gradient",
    "fadam_no_clip": "FAdam without clip",
    "fadam_decoupled_decay": "FAdam, decoupled decay",
    "fadam_corrected_momentum": "FAdam, corrected momentum",
    "fadam_scaled_eps": "FAdam, v3 epsilon",
    "fadam_global_clip": "FAdam, decoupled decay, global-norm clip",
}
# The fair opponent first: FAdam clips inside.
OPPONENTS = ("adamw_clip", "adamw", "adam")


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Attributes:
        keys: names it may have in a record, the first one being the name used in `paper.yaml`.
        mode: whether lower ("min") or higher ("max") is better.
        percent: whether the record's fraction is shown as a percentage.
        brief: whether it is also shown in the terminal, where room is short.
        judged: whether a difference is called better or worse; codebook statistics only describe.
    """

    keys: tuple[str, ...]
    label: str
    mode: Mode
    percent: bool = False
    digits: int = 3
    judged: bool = True
    brief: bool = True

    @property
    def unit(self) -> str:
        return "%" if self.percent else ""

    def number(self, value: float, signed: bool = False) -> str:
        if math.isinf(value):
            return "-∞" if value < 0 else "+∞" if signed else "∞"
        text = f"{value * (100 if self.percent else 1):{'+' if signed else ''}.{self.digits}f}"
        # No "-0.00".
        return text.replace("-", "+" if signed else "") if float(text) == 0 else text

    def summary(self, summary: Summary | None) -> str:
        """Mean ± standard deviation and number of runs, as one cell."""
        if summary is None:
            return "–"
        rest = ""
        if summary.diverged:
            if summary.finite_mean is not None:
                spread = "" if summary.finite_sd is None else f" ± {self.number(summary.finite_sd)}"
                rest = f"; others {self.number(summary.finite_mean)}{spread}"
            return f"{self.number(summary.mean)} ({summary.diverged} of {summary.n} diverged{rest})"
        spread = "" if summary.sd is None else f" ± {self.number(summary.sd)}"
        return f"{self.number(summary.mean)}{spread} (n={summary.n})"

    def difference(self, paired: Paired) -> str:
        """Mean difference, its 95% interval and the number of pairs, as one cell."""
        if paired.mean is None:
            return f"– ({_pairs(paired)})"
        text = self.number(paired.mean, signed=True)
        if paired.interval is not None:
            text += f" [{', '.join(self.number(v, signed=True) for v in paired.interval)}]"
        if paired.bca is not None:
            text += f", BCa [{', '.join(self.number(v, signed=True) for v in paired.bca)}]"
        return f"{text} ({_pairs(paired)})"

    def verdict(self, paired: Paired) -> str:
        if self.judged or paired.interval is None:
            return paired.word
        return "no detectable difference" if paired.interval[0] <= 0 <= paired.interval[1] else "differs"


def _pairs(paired: Paired) -> str:
    words = f"{paired.n} pair" + ("" if paired.n == 1 else "s")
    if paired.left_out:
        words += f"; {len(paired.left_out)} unpaired left out"
    return words


@dataclass(frozen=True)
class TaskSpec:
    """One task's page.

    Attributes:
        metrics: in the order of the table; those that no record has are not shown.
        curves: metrics drawn against steps, by their key in a record's history.
        caveat: what its numbers must not be taken for, unless they come from a run of the paper's scale.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    curves: tuple[Metric, ...]
    caveat: str


def _speech() -> TaskSpec:
    splits = ("test-clean", "test-other", "dev-clean", "dev-other", "test-human")
    metrics = [
        Metric((f"{split}/{name}",), f"{split} {name.upper()}", "min", percent=True, digits=2, brief=name == "wer")
        for split in splits
        for name in ("wer", "cer")
    ]
    curves = tuple(
        Metric((f"{split}/wer",), f"{split} WER", "min", percent=True, digits=2) for split in ("dev-clean", "dev-other")
    )
    return TaskSpec(
        "asr", "Speech recognition", tuple(metrics), curves, "not comparable with LibriSpeech numbers of the paper"
    )


def _language() -> TaskSpec:
    metrics = (
        Metric(("test/bits_per_byte",), "test bits per byte", "min", digits=4),
        Metric(("test/loss",), "test loss (nats per token)", "min", digits=4),
        Metric(("test/perplexity",), "test perplexity", "min", digits=3, brief=False),
        Metric(("val/bits_per_byte",), "validation bits per byte", "min", digits=4),
        Metric(("val/loss",), "validation loss (nats per token)", "min", digits=4),
        Metric(("val/perplexity",), "validation perplexity", "min", digits=3, brief=False),
    )
    curves = (
        Metric(("val/loss",), "validation loss (nats per token)", "min"),
        Metric(("val/bits_per_byte",), "validation bits per byte", "min"),
    )
    return TaskSpec("llm", "Language model pretraining", metrics, curves, "not comparable with a 1B-parameter model")


def _images() -> TaskSpec:
    def quantities(split: str, name: str) -> list[Metric]:
        return [
            Metric((f"{split}/bits_per_dim",), f"{name} bits per dimension", "min", digits=4),
            Metric((f"{split}/psnr",), f"{name} PSNR (dB)", "max", digits=3),
            Metric((f"{split}/ssim",), f"{name} SSIM", "max", digits=4),
            Metric((f"{split}/mse",), f"{name} MSE", "min", digits=6),
            Metric((f"{split}/lpips",), f"{name} LPIPS", "min", digits=4),
            Metric((f"{split}/rfid",), f"{name} rFID", "min", digits=3),
            Metric(
                (f"{split}/codebook_perplexity", f"{split}/perplexity"),
                f"{name} codebook perplexity",
                "max",
                digits=1,
                judged=False,
            ),
            Metric(
                (f"{split}/codebook_usage", f"{split}/usage"),
                f"{name} share of codes in use",
                "max",
                percent=True,
                digits=1,
                judged=False,
            ),
        ]

    curves = (
        Metric(("val/bits_per_dim",), "validation bits per dimension", "min"),
        Metric(("val/psnr",), "validation PSNR (dB)", "max"),
    )
    metrics = (*quantities("val", "validation"), *quantities("test", "test"))
    return TaskSpec("vqvae", "VQ-VAE", metrics, curves, "not comparable with ImageNet numbers")


SPECS = {spec.name: spec for spec in (_speech(), _language(), _images())}


def task_spec(name: str) -> TaskSpec:
    """The spec of a task.

    Raises:
        AnalysisError: there is no such task.
    """
    if name not in SPECS:
        raise AnalysisError(f"unknown task {name!r}; choose from {', '.join(SPECS)}")
    return SPECS[name]


def task_names(words: Sequence[str]) -> list[str]:
    """The tasks named on a command line; all of them for none or "all"."""
    if not words or "all" in words:
        return list(SPECS)
    return [task_spec(word).name for word in words]


def arm_label(arm: str) -> str:
    return ARM_LABELS.get(arm, arm)


def opponents(arms: Sequence[str]) -> list[str]:
    """The arms that FAdam is compared with, the fair one first."""
    others = [arm for arm in OPPONENTS if arm in arms]
    return others + [arm for arm in arms if arm != "fadam" and arm not in others]


def values_by_seed(records: Sequence[Record], metric: Metric) -> dict[int, float]:
    """Seed -> final value of `metric`; runs that did not measure it are absent."""
    found = {r.seed: r.value(metric.keys, metric.mode) for r in records}
    return {seed: value for seed, value in found.items() if value is not None}


def measured(records: Sequence[Record], metrics: Sequence[Metric]) -> list[Metric]:
    """Those metrics that at least one record has."""
    return [m for m in metrics if any(key in r.metrics for r in records for key in m.keys)]
