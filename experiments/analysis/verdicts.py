"""Write a verdict on every claim of `results/claims.yaml`, from the published run records alone.

    python -m experiments.analysis.verdicts [--runs results/runs] [--out results]

Writes `<out>/tables/verdicts.md` and `<out>/verdicts.json`. The words: `supported`, `contradicted`, `no detectable
difference` (with the size that could have been detected) and `not tested here` (with what is missing).

A claim on several tasks is supported as a whole if it is supported on at least one of the tested tasks and contradicted
on none, contradicted the other way round; mixed evidence is no detectable difference, and is said to be mixed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.analysis.choose import write_text
from experiments.analysis.paper import DEFAULT as PAPER
from experiments.analysis.paper import Paper, load_paper
from experiments.analysis.plan import planned
from experiments.analysis.records import (
    COMPARED,
    AnalysisError,
    Record,
    check_one_kind,
    evaluation,
    load_records,
    one_line_warnings,
    select,
)
from experiments.analysis.stats import BETTER_ARM, LEAST_PAIRS, LEVEL, WORSE_ARM, decide, t_interval
from experiments.analysis.study import (
    OPPONENT,
    SCALE,
    Comparison,
    EpsSweep,
    Study,
    compare_runs,
    correct,
    interactions,
    metric_of,
    other_metric,
    study,
)
from experiments.analysis.tables import cell, markdown_table
from experiments.analysis.tasks import arm_label, task_spec
from experiments.core.errors import ConfigError
from experiments.core.study import FOLDER, TUNED, protocol

CLAIMS = Path("results/claims.yaml")
THEORY = Path("results/theory/fisher.json")
SUPPORTED, CONTRADICTED, NONE, NOT_TESTED = (
    "supported",
    "contradicted",
    "no detectable difference",
    "not tested here",
)
WORDS = (SUPPORTED, CONTRADICTED, NONE, NOT_TESTED)
TESTS = ("superiority", "noninferiority", "range", "interaction", "identity")
# What decides, for the reader.
RULES = (
    "Each verdict is of its scale alone: small models, minutes of training. A claim on several tasks is supported "
    "if it is supported on at least one of the tested tasks and contradicted on none, contradicted the other way "
    "round; mixed evidence is no detectable difference. What decides:",
    "",
    "- A gain is the mean of the differences seed by seed (same initial weights, same data order), positive where "
    "the arm named first is better. It counts where Student's 95% interval, and the bootstrap's (BCa) where there "
    "are five pairs, exclude zero, and it is at least what the protocol declared to matter. Five values are few to "
    "resample: the bootstrap's interval alone would be too short.",
    "- It must also survive the others: the paired t test's p, after Holm's correction over the family of all primary "
    "comparisons that are planned at its scale, is at most 0.05. What is better or worse only when taken alone is "
    "called so, and is no verdict.",
    "- The sign-flip permutation p is at least 1/16 for five pairs and 1/4 for three, however large the "
    "differences, and more after Holm's correction. So it is reported and decides nothing.",
    "- A diverged run counts as infinitely bad. Where one side alone has any, that decides, without a p value, if so "
    "on more than half of the pairs and the others do not point the other way.",
    "- The size that could have been detected is the true difference that the paired t test finds in 80% of cases at "
    "0.05 divided by the number of comparisons in the family (Holm's first step).",
)


@dataclass(frozen=True)
class Claim:
    """One entry of `results/claims.yaml`: what the paper says, what is tested here, and how."""

    id: str
    says: str
    mark: str
    source: str
    tested: str
    test: str
    tasks: tuple[str, ...]
    arm: str
    opponent: str
    also: tuple[tuple[str, ...], ...]
    limits: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What one scale says of a claim on one task, or (`task` is "") on all of them.

    Attributes:
        word: one of `WORDS`. sentence: the numbers behind it, or what is missing.
        comparison: what it rests on, where that is a comparison of two arms; also: those reported beside.
        sweeps: what it rests on, where that is the sweep of epsilon.
        records: paths, relative to the root of the records, of all runs behind it, tuning included.
        have, need: how many of the records needed there are.
        parts: of a claim on several tasks, the verdict of each.
        remark: what the word alone would hide, in a few words.
    """

    claim: Claim
    scale: str
    task: str
    word: str
    sentence: str
    comparison: Comparison | None = None
    also: tuple[Comparison, ...] = ()
    sweeps: tuple[EpsSweep, ...] = ()
    records: tuple[Path, ...] = ()
    have: int = 0
    need: int = 0
    parts: tuple[Verdict, ...] = ()
    remark: str = ""


def load_claims(path: str | Path = CLAIMS, marks: Iterable[str] = ()) -> tuple[Claim, ...]:
    """Read and check the claims.

    Args:
        marks: those that a claim may have; any if empty.

    Raises:
        AnalysisError: the file is missing or an entry is not as it must be; the sentence names both.
    """
    import yaml

    path, marks = Path(path), set(marks)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise AnalysisError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) != {"schema", "claims"} or content["schema"] != 1:
        raise AnalysisError(f"{path}: must have schema 1 and exactly the keys ['claims', 'schema']")
    claims = []
    for i, node in enumerate(content["claims"]):
        where = f"{path}: claims[{i}]"
        identity = isinstance(node, dict) and node.get("test") == "identity"
        keys = {"id", "says", "mark", "source", "tested", "test", "tasks"}
        keys |= {"limits"} if identity else {"arm", "opponent", "also"}
        if not isinstance(node, dict) or set(node) != keys:
            got = sorted(map(str, node)) if isinstance(node, dict) else type(node).__name__
            raise AnalysisError(f"{where}: must have exactly the keys {sorted(keys)}, has {got}")
        if node["test"] not in TESTS:
            raise AnalysisError(f"{where}: test {node['test']!r} is none of {', '.join(TESTS)}")
        if marks and node["mark"] not in marks:
            raise AnalysisError(f"{where}: mark {node['mark']!r} is none of {sorted(marks)}")
        for task in () if identity else node["tasks"]:
            task_spec(task)
        also = tuple(tuple(entry) for entry in node.get("also", ()))
        if any(len(entry) not in (2, 3) for entry in also):
            raise AnalysisError(f'{where}: an entry of "also" must be two arms, or two arms and a metric')
        texts = {key: str(node.get(key, "")) for key in ("id", "says", "mark", "source", "tested", "test")}
        claims.append(
            Claim(
                **texts,
                tasks=tuple(node["tasks"]),
                arm=node.get("arm", ""),
                opponent=node.get("opponent", ""),
                also=also,
                limits=node.get("limits", {}),
            )
        )
    if len({c.id for c in claims}) < len(claims):
        raise AnalysisError(f"{path}: two claims have the same id")
    return tuple(claims)


def p_text(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval_text(comparison: Comparison, interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"[{', '.join(comparison.number(v) for v in interval)}]"


def gain_text(comparison: Comparison) -> str:
    """The gain with its intervals and p values, in words."""
    gain = comparison.gain
    if gain.n == 0:
        return "no seed in common"
    pairs = f"{gain.n} pair{'' if gain.n == 1 else 's'}"
    if gain.mean is None:
        return f"both diverged, on different seeds ({pairs})"
    text = comparison.number(gain.mean)
    if not math.isfinite(gain.mean):
        lost = sum(not math.isfinite(v) for v in gain.gains.values())
        text += f" (the {'second' if gain.mean > 0 else 'first'} diverged on {lost} of {gain.n} seeds)"
    if gain.t_interval is not None:
        text += f", 95% t interval {interval_text(comparison, gain.t_interval)}"
    if gain.bca is not None:
        text += f", bootstrap {interval_text(comparison, gain.bca)}"
    text += f", {pairs}, sign-flip p {p_text(gain.p)}"
    if comparison.p_holm is not None:
        text += f" (Holm {p_text(comparison.p_holm)})"
    if gain.p_t is not None:
        text += f", t test p {p_text(gain.p_t)}"
        if comparison.p_t_holm is not None:
            text += f" (Holm {p_text(comparison.p_t_holm)})"
    return text


def detectable_text(comparison: Comparison) -> str:
    """The size of a difference that could have been detected, with and without the others having been made."""
    assert comparison.detectable is not None
    assert comparison.gain.detectable is not None
    sizes = [comparison.number(v).lstrip("+") for v in (comparison.detectable, comparison.gain.detectable)]
    text = f"{sizes[0]} could have been detected (power 80%)"
    return text if comparison.family == 1 else f"{text[:-1]} after the correction, {sizes[1]} alone)"


def _matters(comparison: Comparison) -> str:
    return comparison.number(comparison.matters).lstrip("+")


def judge(claim: Claim, comparison: Comparison) -> tuple[str, str]:
    """The word and the sentence of a comparison that has all its records."""
    gain, matters = comparison.gain, comparison.matters
    text = f"{comparison.label}: gain {gain_text(comparison)}"
    word = {BETTER_ARM: SUPPORTED, WORSE_ARM: CONTRADICTED}.get(comparison.outcome, NONE)
    alone = decide(gain, matters)
    if alone != comparison.outcome:
        text += f"; {alone} taken alone, not after Holm's correction over all comparisons of its scale"
    if claim.test == "noninferiority" and word != CONTRADICTED and gain.n >= LEAST_PAIRS and gain.mean is not None:
        corrected = t_interval(list(gain.gains.values()), 1 - LEVEL / comparison.family) if gain.finite else None
        intervals = [i for i in (corrected, gain.bca) if i is not None]
        above = word == SUPPORTED or (gain.finite and all(low > -matters for low, _ in intervals))
        word = SUPPORTED if above else NONE
    if word == NONE:
        small = gain.mean is not None and abs(gain.mean) < matters
        if gain.finite and gain.t_interval is not None and small and not gain.t_interval[0] <= 0 <= gain.t_interval[1]:
            text += f"; below {_matters(comparison)}, the least that would matter"
        if comparison.detectable is not None:
            text += f"; {detectable_text(comparison)}, {_matters(comparison)} would matter"
    return word, text


def overall(claim: Claim, scale: str, parts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim on all its tasks; the rule stands at the top of this module."""
    have, need = sum(p.have for p in parts), sum(p.need for p in parts)
    records = tuple(dict.fromkeys(path for p in parts for path in p.records))
    words = [p.word for p in parts]
    tested = [p for p in parts if p.word != NOT_TESTED]
    if len(parts) == 1:
        return replace(parts[0], task="", parts=tuple(parts))
    if not tested:
        word, sentence = NOT_TESTED, f"{have} of {need} records"
    else:
        sentence = "; ".join(f"{p.word} on {p.task}" for p in parts)
        if SUPPORTED in words and CONTRADICTED in words:
            word, sentence = NONE, f"mixed: {sentence}"
        else:
            word = next((w for w in (SUPPORTED, CONTRADICTED) if w in words), NONE)
    return Verdict(claim, scale, "", word, sentence, records=records, have=have, need=need, parts=tuple(parts))


class Scale(ABC):
    """The comparisons of one scale, and which records each of them needs."""

    def __init__(self, name: str, comparisons: Sequence[Comparison]) -> None:
        self.name = name
        self.comparisons = comparisons

    def comparison(self, task: str, arm: str, opponent: str, test: str) -> Comparison | None:
        """The comparison of two arms on the main likelihood, or its interaction with the likelihood."""
        parts = ("interaction",) if test == "interaction" else ("main", "switches", "context", "clipping")
        found = [c for c in self.comparisons if (c.task, c.arm, c.opponent) == (task, arm, opponent)]
        return next((c for c in found if c.part in parts), None)

    def beside(self, claim: Claim, task: str) -> tuple[Comparison, ...]:
        """What is reported beside the comparison that decides."""
        found = [self.comparison(task, *entry, "superiority") for entry in claim.also if len(entry) == 2]
        found += [self.by_metric(task, *entry) for entry in claim.also if len(entry) == 3]
        if claim.test == "interaction":
            sides = ("main", "continuous", "interaction")
            mine = [c for c in self.comparisons if (c.task, c.arm, c.opponent) == (task, claim.arm, claim.opponent)]
            found += [c for c in mine if c.part in sides and c.metric is not None]
        return tuple(c for c in found if c is not None and c.gain.n)

    @abstractmethod
    def records(self, claim: Claim, task: str) -> tuple[tuple[Path, ...], int]:
        """Paths of the records that there are of those that the claim needs, and how many it needs."""

    @abstractmethod
    def by_metric(self, task: str, arm: str, opponent: str, metric: str) -> Comparison | None:
        """Two arms by another metric than the protocol's."""

    def sweeps(self, task: str) -> tuple[EpsSweep, ...]:
        return ()


class StudyScale(Scale):
    """The study: the protocol says which records a claim needs."""

    def __init__(self, numbers: Study, records: Sequence[Record], folder: Path, tuned: Path) -> None:
        found = [c for s in numbers.tasks.values() for c in s.comparisons]
        super().__init__(SCALE, [*found, *(c for c in (numbers.interaction, numbers.same_metric) if c is not None)])
        self._study, self._folder, self._tuned = numbers, folder, tuned
        self._paths = {r.relative for r in records}

    def records(self, claim: Claim, task: str) -> tuple[tuple[Path, ...], int]:
        arms = {claim.arm, claim.opponent}
        parts = {"main", "switches", "clipping"} | {"range": {"eps"}, "interaction": {"continuous"}}.get(
            claim.test, set()
        )
        runs = [r for r in planned(task, folder=self._folder, tuned=self._tuned) if r.arm in arms and r.part in parts]
        if claim.test == "interaction" and not any(r.part == "continuous" for r in runs):
            return (), 0
        return tuple(r.record for r in runs if r.record in self._paths), len(runs)

    def by_metric(self, task: str, arm: str, opponent: str, metric: str) -> Comparison | None:
        found = self._study.tasks[task]
        sides = [found.arms[name].runs for name in (arm, opponent)]
        return other_metric(task, SCALE, metric, found.protocol, *sides)

    def sweeps(self, task: str) -> tuple[EpsSweep, ...]:
        return self._study.tasks[task].eps


class PlainScale(Scale):
    """A scale of two arms with their published evaluation runs, at least `LEAST_PAIRS` pairs of them."""

    def __init__(self, name: str, records: Sequence[Record], tasks: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._sides: dict[tuple[str, str], tuple[list[Record], list[Record]]] = {}
        comparisons: list[Comparison] = []
        for task in tasks:
            plan = protocol(task, folder)
            continuous = plan["tiers"]["why"].get("continuous")
            found: dict[str, Comparison] = {}
            for part, declared in (("main", plan), ("continuous", continuous)):
                if declared is None:
                    continue
                here = evaluation(select(records, task=task, scale=name, variant=declared["variant"]))
                sides = (select(here, arm="fadam"), select(here, arm=OPPONENT))
                check_one_kind([*sides[0], *sides[1]], f"the verdicts on {task} {name} {declared['variant']}".strip())
                self._sides[task, part] = sides
                metric, matters = metric_of(task_spec(task), declared["metric"]), float(declared["metric"]["matters"])
                made = compare_runs(task, name, declared["variant"], metric, matters, *sides)
                found[part] = replace(made, part=part, arm="fadam", opponent=OPPONENT, primary=part == "main")
            comparisons += found.values()
            if "continuous" in found:
                comparisons += interactions(found["main"], found["continuous"], *self._sides[task, "main"])
        super().__init__(name, correct([c for c in comparisons if c.gain.n]))

    def by_metric(self, task: str, arm: str, opponent: str, metric: str) -> Comparison | None:
        if (arm, opponent) != ("fadam", OPPONENT):
            return None
        return other_metric(task, self.name, metric, protocol(task, self._folder), *self._sides[task, "main"])

    def records(self, claim: Claim, task: str) -> tuple[tuple[Path, ...], int]:
        if (claim.arm, claim.opponent) != ("fadam", OPPONENT):
            return (), 0
        parts = ("main", "continuous") if claim.test == "interaction" else ("main",)
        if any((task, part) not in self._sides for part in parts):
            return (), 0
        sides = [side for part in parts for side in self._sides[task, part]]
        # The pairs that there are, and no fewer than are needed.
        need = max(LEAST_PAIRS, *(len(side) for side in sides))
        return tuple(r.relative for side in sides for r in side), need * len(sides)


def sweep_verdict(claim: Claim, sweeps: Sequence[EpsSweep]) -> tuple[str, str]:
    """The word and the sentence of a complete sweep of epsilon."""
    by_arm = {s.arm: s for s in sweeps}
    mine, other = by_arm[claim.arm], by_arm[claim.opponent]

    def words(s: EpsSweep) -> str:
        assert s.range is not None
        assert s.noise is not None
        return (
            f"{arm_label(s.arm)} moves by {s.metric.number(s.range)}{s.metric.unit} "
            f"(by chance up to {s.metric.number(s.noise)}{s.metric.unit})"
        )

    assert mine.range is not None
    assert other.range is not None
    word = CONTRADICTED if mine.sensitive else NONE
    if not mine.sensitive and other.sensitive and mine.range < other.range:
        word = SUPPORTED
    text = f"over {len(mine.means)} values of eps {words(mine)}, {words(other)}"
    return word, f"{text}; {mine.metric.number(mine.matters)}{mine.metric.unit} would matter"


def verdict_of(claim: Claim, scale: Scale, task: str) -> Verdict:
    """The verdict on one claim from one task at one scale."""
    records, need = scale.records(claim, task)
    have = len(records)
    missing = "no such runs are part of this scale" if need == 0 else f"{have} of {need} records"
    verdict = Verdict(claim, scale.name, task, NOT_TESTED, missing, records=records, have=have, need=need)
    if need == 0 or have < need:
        return verdict
    verdict = replace(verdict, also=scale.beside(claim, task))
    if claim.test == "range":
        sweeps = tuple(s for s in scale.sweeps(task) if s.arm in (claim.arm, claim.opponent))
        if any(s.sensitive is None for s in sweeps) or len(sweeps) < 2:
            return replace(verdict, sentence="the spread of the evaluation runs is unknown: one of them diverged")
        word, sentence = sweep_verdict(claim, sweeps)
        return replace(verdict, word=word, sentence=sentence, sweeps=sweeps)
    comparison = scale.comparison(task, claim.arm, claim.opponent, claim.test)
    if comparison is None or comparison.gain.n < LEAST_PAIRS:
        n = 0 if comparison is None else comparison.gain.n
        return replace(verdict, sentence=f"{n} of at least {LEAST_PAIRS} pairs of runs with the same seed")
    word, sentence = judge(claim, comparison)
    return replace(verdict, word=word, sentence=sentence, comparison=comparison)


def verdicts(
    claims: Sequence[Claim],
    records: Sequence[Record],
    theory: Mapping[str, Any] | None = None,
    folder: Path = FOLDER,
    tuned: Path = TUNED,
) -> tuple[Verdict, ...]:
    """The verdicts on all claims, scale by scale; each has those of its tasks in `parts`.

    Args:
        theory: the content of `results/theory/fisher.json`, if there is one.

    Raises:
        ConfigError: a claim is on a task without a declared study.
        MixedRecordsError: runs that belong together are of two data sets or configurations.
    """
    tasks = sorted({task for c in claims if c.test != "identity" for task in c.tasks})
    scales: list[Scale] = [StudyScale(study(records, tasks, folder, tuned), records, folder, tuned)]
    present = {r.scale for r in evaluation(records)}
    scales += [PlainScale(name, records, tasks, folder) for name in COMPARED if name in present]
    found = []
    for claim in claims:
        if claim.test == "identity":
            found.append(theory_verdict(claim, theory))
            continue
        found += [overall(claim, s.name, [verdict_of(claim, s, task) for task in claim.tasks]) for s in scales]
    return tuple(found)


def load_theory(path: str | Path = THEORY) -> dict[str, Any] | None:
    """The record of `experiments.theory.fisher`; None if there is none.

    Raises:
        AnalysisError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnalysisError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != 1 or not content.get("cases"):
        raise AnalysisError(f"{path}: no record of experiments.theory.fisher with schema 1")
    return content


def _extremes(cases: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [case["moment_empirical"][key] for case in cases]
    return f"{min(values):.2g} to {max(values):.2g}"


def theory_verdict(claim: Claim, theory: Mapping[str, Any] | None) -> Verdict:
    """The verdict on an identity, from the study of the Fisher information."""
    scale = claim.tasks[0]
    limits = claim.limits
    cases = [c for c in (theory or {}).get("cases", ()) if c["batch"] == limits["batch"]]
    if theory is None or not cases:
        return Verdict(claim, scale, "", NOT_TESTED, f"no cases with batches of {limits['batch']}", need=1)

    # Two cases that agree to the last digit are one: the gradients of two likelihoods may differ by a factor only.
    cases = list({(c["moment_empirical"]["correlation"], c["moment_empirical"]["ratio"]): c for c in cases}.values())
    numbers = [case["moment_empirical"] for case in cases]
    exact = theory["rounding"] <= limits["rounding"]
    pattern = all(n["correlation"] >= limits["correlation"] for n in numbers)
    size = all(abs(math.log(n["ratio"])) <= math.log(limits["ratio"]) for n in numbers)
    word = SUPPORTED if exact and pattern and size else CONTRADICTED
    single = [c for c in theory["cases"] if c["batch"] == 1]
    scaled = [n["ratio"] * limits["batch"] for n in numbers]
    sentence = (
        f"f_t is Adam's corrected second moment up to {theory['rounding']:.0e} relative; against the diagonal "
        f"empirical FIM, at batches of {limits['batch']}, correlation of the logarithms "
        f"{_extremes(cases, 'correlation')}, median ratio {_extremes(cases, 'ratio')} ({len(cases)} different cases)"
        f", which is, times the batch, {min(scaled):.2g} to {max(scaled):.2g}"
    )
    remark = ""
    if pattern != size:
        remark = f"{'pattern' if pattern else 'size'} agrees, {'size' if pattern else 'pattern'} does not"
        sentence += f"; {remark}"
    if single:
        sentence += (
            f"; at batches of 1, {_extremes(single, 'correlation')} and {_extremes(single, 'ratio')}: the square of a "
            "mean over a batch is no mean of squares"
        )
    return Verdict(claim, scale, "", word, sentence, records=(), have=1, need=1, remark=remark)


# --- what is written


def _gain_json(comparison: Comparison) -> dict[str, Any]:
    gain = comparison.gain

    def number(value: float | None) -> float | str | None:
        if value is None:
            return None
        return float(f"{value:.6g}") if math.isfinite(value) else "inf" if value > 0 else "-inf"

    def pair(interval: tuple[float, float] | None) -> list[float | str | None] | None:
        return None if interval is None else [number(v) for v in interval]

    return {
        "arm": comparison.arm,
        "opponent": comparison.opponent,
        "metric": comparison.metric.keys[0] if comparison.metric else "gain in units of what matters",
        "matters": comparison.matters,
        "pairs": gain.n,
        "gain": number(gain.mean),
        "sd": number(gain.sd),
        "t_interval": pair(gain.t_interval),
        "bootstrap_interval": pair(gain.bca),
        "p_sign_flip": number(gain.p),
        "p_sign_flip_holm": number(comparison.p_holm),
        "p_t": number(gain.p_t),
        "p_t_holm": number(comparison.p_t_holm),
        "detectable": number(comparison.detectable),
        "detectable_alone": number(gain.detectable),
        "outcome": comparison.said,
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    content: dict[str, Any] = {
        "verdict": verdict.word,
        "sentence": verdict.sentence,
        "have": verdict.have,
        "need": verdict.need,
    }
    if verdict.comparison is not None:
        content["comparison"] = _gain_json(verdict.comparison)
    if verdict.also:
        content["also"] = [_gain_json(c) for c in verdict.also]
    if verdict.sweeps:
        content["sweeps"] = [
            {
                "arm": s.arm,
                "metric": s.metric.keys[0],
                "means": {f"{eps:g}": float(f"{mean:.6g}") for eps, mean in s.means.items() if math.isfinite(mean)},
                "range": float(f"{s.range:.6g}") if s.range is not None and math.isfinite(s.range) else "inf",
                "chance": None if s.noise is None else float(f"{s.noise:.6g}"),
            }
            for s in verdict.sweeps
        ]
    content["records"] = [path.as_posix() for path in verdict.records]
    return content


def as_json(found: Sequence[Verdict]) -> str:
    """The verdicts for other programs; paths of records are relative to the root of the runs."""
    entries = []
    for verdict in found:
        claim = verdict.claim
        head = {
            "claim": claim.id,
            "says": claim.says,
            "mark": claim.mark,
            "source": claim.source,
            "tested": claim.tested,
            "test": claim.test,
            "scale": verdict.scale,
        }
        parts = verdict.parts or (verdict,)
        whole = {key: value for key, value in _verdict_json(verdict).items() if key in ("verdict", "sentence")}
        entries.append({**head, **whole, "tasks": {p.task or p.scale: _verdict_json(p) for p in parts}})
    return json.dumps({"schema": 1, "verdicts": entries}, indent=1, ensure_ascii=False) + "\n"


def scales_of(found: Sequence[Verdict]) -> list[str]:
    """The scales that there are, in the order of their first verdict."""
    return list(dict.fromkeys(v.scale for v in found))


def short_table(found: Sequence[Verdict]) -> list[str]:
    """One row a claim, one column a scale, as Markdown."""
    scales = scales_of(found)
    words = {(v.claim.id, v.scale): v for v in found}
    rows = []
    for claim in dict.fromkeys(v.claim.id for v in found):
        here = {scale: words.get((claim, scale)) for scale in scales}
        first = next(v for v in here.values() if v is not None).claim
        rows.append([claim, f"{first.says} [{first.mark}]", *(_short(v) for v in here.values())])
    return markdown_table(["claim", "the paper says", *(f"scale `{s}`" for s in scales)], rows)


def _short(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    text = f"**{verdict.word}**" if verdict.word != NOT_TESTED else verdict.word
    if verdict.word == NOT_TESTED:
        return f"{text} ({verdict.have} of {verdict.need} records)" if verdict.need else "–"
    if verdict.remark:
        text += f" ({verdict.remark})"
    if len(verdict.parts) > 1:
        if len({p.word for p in verdict.parts}) == 1:
            text += f" (each of {', '.join(p.task for p in verdict.parts)})"
        else:
            text += f" ({'; '.join(f'{p.task}: {p.word}' for p in verdict.parts)})"
    return text


def _links(verdict: Verdict, root: Path, out: Path) -> str:
    """The evaluation records behind a verdict as links, the others counted."""
    chosen = verdict.comparison.runs if verdict.comparison else tuple(r for s in verdict.sweeps for r in s.runs)
    links = []
    for run in chosen:
        link = Path(os.path.relpath(root / run.relative, out)).as_posix()
        links.append(f"[{run.arm} {f'{run.trial} ' if run.trial != 'main' else ''}{run.seed}]({link})")
    others = len(verdict.records) - len({r.relative for r in chosen})
    text = ", ".join(links)
    return text + (f" and {others} of tuning and spread" if others > 0 and text else "")


def page(found: Sequence[Verdict], paper: Paper, root: Path, out: Path) -> str:
    """The Markdown page; links go from `out` to the records under `root`."""
    lines = [
        "# Verdicts on the paper's claims",
        "",
        "Generated by `python -m experiments.analysis.verdicts` from the published records, `results/claims.yaml` and "
        "the protocols in `configs/study/`; not to be edited.",
        "",
        *short_table(found),
        *RULES,
        "- Numbers for programs, with every record: [`verdicts.json`](../verdicts.json).",
        "",
    ]
    for claim in {v.claim.id: v.claim for v in found}.values():
        lines += [
            f"## {claim.id}: {claim.says}",
            "",
            f"[{claim.mark}] {claim.source}. Tested here: {claim.tested}.",
            "",
        ]
        rows = []
        for verdict in (v for v in found if v.claim == claim):
            parts = verdict.parts or (verdict,)
            if verdict.word == NOT_TESTED:
                missing = "; ".join(dict.fromkeys(f"{p.task or p.scale}: {p.sentence}" for p in parts if p.need))
                row = [f"`{verdict.scale}`", ", ".join(p.task for p in parts) or "–", verdict.word]
                rows.append([*row, missing or parts[0].sentence, "–"])
                continue
            if len(parts) > 1:
                rows.append([f"`{verdict.scale}`", "all", f"**{verdict.word}**", verdict.sentence, "–"])
            for part in parts:
                also = "".join(f" Beside: {c.label} {gain_text(c)} ({c.said})." for c in part.also)
                row = [f"`{part.scale}`", part.task or "–", f"**{part.word}**", f"{part.sentence}.{also}"]
                rows.append([*row, _links(part, root, out) or "–"])
        lines += markdown_table(["scale", "task", "verdict", "numbers", "records (arm and seed)"], rows)
    used = sorted({v.claim.mark for v in found})
    lines.append("Marks: " + "; ".join(f"[{mark}] {cell(paper.marks[mark])}" for mark in used) + ".")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.verdicts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--claims", default=str(CLAIMS), help=f"the claims (default: {CLAIMS})")
    parser.add_argument("--paper", default=str(PAPER), help=f"the paper's numbers (default: {PAPER})")
    parser.add_argument("--theory", default=str(THEORY), help=f"record of the Fisher information (default: {THEORY})")
    parser.add_argument(
        "--out", default="results", help="folder of verdicts.json and tables/verdicts.md (default: results)"
    )
    options = parser.parse_args(argv)
    one_line_warnings()
    out = Path(options.out)
    try:
        paper = load_paper(options.paper)
        claims = load_claims(options.claims, paper.marks)
        found = verdicts(claims, load_records(options.runs), load_theory(options.theory))
        text = page(found, paper, Path(options.runs), out / "tables")
    except (AnalysisError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(out / "tables" / "verdicts.md", text)
    write_text(out / "verdicts.json", as_json(found))
    for path in (out / "tables" / "verdicts.md", out / "verdicts.json"):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
