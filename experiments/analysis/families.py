"""Verdicts of families of comparisons: each is better, worse, equivalent, or undecided so far.

The sequential p's of a family (looks.py) are corrected by Holm, superiority and equivalence each by itself: at most 5%
of studies call anything better or worse that is not, and at most 5% call anything equivalent that is not. Comparisons
may be at different looks or not begun (p = 1), and stop one by one. A sequential p never rises with more pairs, so what
Holm rejects now is rejected whatever comes (but for a divergence, see looks.py). It also holds at any stopping: no
choice of when to look, or which comparison to go on with, raises the error (Maurer and Bretz 2013; Holm is the simplest
of their graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.analysis.looks import ALPHA, Array, Evidence, Looks, evidence, repeated_interval

Word = Literal["better", "worse", "equivalent", "undecided"]


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p's over the last axis of (..., m).

    As statsmodels' `multipletests(method="holm")`, which takes one family at a time and collects garbage at every call
    (0.1 s and more in a process that has loaded much).
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1.0, np.maximum.accumulate(steps, axis=-1)), -1)
    return adjusted


def words(superior: ArrayLike, direction: ArrayLike, equivalent: ArrayLike, alpha: float = ALPHA) -> NDArray[np.str_]:
    """The word of each comparison of a family from p's (..., m); Holm for either question by itself.

    "equivalent" comes first: a difference may be real and smaller than what matters.
    """
    found, side = holm(superior) <= alpha, np.asarray(direction)
    word = np.where(found & (side > 0), "better", np.where(found, "worse", "undecided"))
    return np.where(holm(equivalent) <= alpha, "equivalent", word)


@dataclass(frozen=True, eq=False)
class Comparison:
    """One of a family: (n,) differences in the order of their seeds (n may be 0), its looks, and what would matter."""

    differences: Array
    looks: Looks
    matters: float


@dataclass(frozen=True)
class Verdict:
    """What a comparison has come to.

    Attributes:
        word: "better", "worse", "equivalent" or "undecided".
        pairs: at the last look taken, which all figures are of; 0 before the first.
        decided: pairs at the look from which on the word has not been "undecided", the whole family being looked at in
            step; None if it still is.
        next_look: the pairs it takes to go on; None if it is decided or was looked at for the last time.
        p_superior, p_equivalent: sequential p's after Holm's correction; 1 before the first look.
        mean: of the differences; infinite where runs of one arm diverged, None where runs of both did, or no pairs.
        sd: their standard deviation (ddof=1); None without a mean that is finite.
        interval: repeated confidence interval of the mean at 1 - alpha (Jennison and Turnbull 1989): true at all looks
            together, so also at the one where a comparison stopped; None without sd.
        diverged: pairs in which only the challenger, only the baseline, both diverged.
    """

    word: Word
    pairs: int
    decided: int | None
    next_look: int | None
    p_superior: float
    p_equivalent: float
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    diverged: tuple[int, int, int]


def judge(family: Sequence[Comparison], alpha: float = ALPHA) -> list[Verdict]:
    """The verdicts of a family's comparisons, in their order, from all looks that have their pairs.

    Raises:
        ValueError: see `evidence`.
    """
    found = [evidence(c.differences, c.looks, c.matters) for c in family]
    most = max((e.superior.size for e in found), default=0)

    def after(k: int) -> Evidence:  # (m,): every comparison at its look k, or the last one it has
        rows = [[v[min(k, v.size) - 1] if v.size and k else 1.0 for v in e] for e in found]
        return Evidence(*np.reshape(rows, (-1, 3)).T)

    history = [words(*after(k), alpha) for k in range(most + 1)]
    now = after(most)
    superior, equivalent = holm(now.superior), holm(now.equivalent)
    verdicts = []
    for i, c in enumerate(family):
        taken = found[i].superior.size
        pairs = c.looks[taken - 1] if taken else 0
        said = [str(h[i]) for h in history]
        since = most
        while since and said[since - 1] != "undecided":
            since -= 1
        decided = said[most] != "undecided"
        d = np.asarray(c.differences, dtype=np.float64)[:pairs]
        finite = bool(pairs) and bool(np.isfinite(d).all())
        lost = int(np.isneginf(d).sum()), int(np.isposinf(d).sum()), int(np.isnan(d).sum())
        with np.errstate(invalid="ignore"):
            mean = float(d.mean()) if pairs else np.nan
        verdict = Verdict(
            word=said[most],  # type: ignore[arg-type]
            pairs=pairs,
            decided=c.looks[min(since, taken) - 1] if decided else None,
            next_look=c.looks[taken] if not decided and taken < len(c.looks) else None,
            p_superior=float(superior[i]),
            p_equivalent=float(equivalent[i]),
            mean=None if np.isnan(mean) else mean,
            sd=float(d.std(ddof=1)) if finite else None,
            interval=repeated_interval(d, c.looks, alpha) if finite else None,
            diverged=lost,
        )
        verdicts.append(verdict)
    return verdicts
