"""Words and sentences: what the comparisons say of the paper's claims (results/claims.yaml), in a person's units."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.analysis.bowls import Array, Bowl, jackknife, taken, width
from experiments.analysis.comparisons import JUDGED, Compared, Context, GridVerdict, Ladder, Point, Study, interval
from experiments.analysis.paper import entries, read_yaml
from experiments.core.catalogue import Metric, arm, signed, task, variant, where
from experiments.core.errors import AnalysisError
from experiments.core.protocol import Protocol
from experiments.core.table import listed

CLAIMS = Path("results/claims.yaml")
MARKS = "ALPW"
NOT_RUN = "not run yet"
TESTS = {
    "comparison": {"better", "worse", "equivalent"},
    "grid": {"supported", "contradicted"},
    "identity": {"supported", "contradicted"},
}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        reads: what a word means for it.
        effect: the mark of the change's effect, if it is another.
    """

    id: str
    says: str
    mark: str
    source: str
    tested: str
    test: str
    reads: Mapping[str, str]
    effect: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def marks(self) -> str:
        return f"change [{self.mark}], effect [{self.effect}]" if self.effect else f"[{self.mark}]"


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """Read and check the claims.

    Raises:
        AnalysisError: the file is missing or an entry is not as it must be; names both.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or content.get("schema") != 2 or not isinstance(content.get("claims"), list):
        raise AnalysisError(f"{path} must have schema 2 and a list of claims")
    found = entries(path, "claims", Claim, content["claims"])
    for i, claim in enumerate(found):
        texts = (claim.id, claim.says, claim.source, claim.tested)
        if not all(isinstance(text, str) and text for text in texts):
            raise AnalysisError(f"{path}: claims[{i}]: id, says, source and tested must be texts")
        if claim.mark not in MARKS or claim.effect not in MARKS:
            raise AnalysisError(f"{path}: {claim.id}: a mark must be one of {', '.join(MARKS)}")
        if claim.test not in TESTS or set(claim.reads) != TESTS[claim.test]:
            raise AnalysisError(f"{path}: {claim.id}: test {claim.test!r} does not fit the words of reads")
    return found


@dataclass(frozen=True)
class Finding:
    """What is found of one claim at one place.

    Attributes:
        where: task and variant in words.
        word: better, worse, equivalent, undecided after n pairs, supported, contradicted, or that it was not run yet.
        reading: what that means for the claim; "" while it means nothing.
        sentence: with numbers, in a person's units.
        compared: the comparison it is from, if it is from one.
    """

    claim: Claim
    where: str
    word: str
    reading: str
    sentence: str
    compared: Compared | None = None


# --- comparisons


def word(c: Compared) -> str:
    """The comparison's word as a person reads it."""
    if not c.verdict.pairs:
        return NOT_RUN if not c.seeds else "not looked at yet"
    return f"undecided after {c.verdict.pairs} pairs" if c.verdict.word == "undecided" else c.verdict.word


def amount(metric: Metric, value: float) -> str:
    """A difference that was declared, such as "0.01 bits per byte"."""
    return metric.amount.format(metric.plain(value))


def versus(metric: Metric, gain: float, challenger: str, baseline: str) -> str:
    """ "FAdam needs 0.004 fewer bits per byte than AdamW with clipping"."""
    one, other = (arm(name).phrase for name in (challenger, baseline))
    if gain == 0:
        return f"{one} does exactly as well as {other}"
    number = signed(metric, gain).number(abs(gain))
    words = (metric.fewer if gain > 0 else metric.more) or f"is {number} {'better' if gain > 0 else 'worse'}"
    return f"{one} {words.format(number)} than {other}"


def times(metric: Metric, low: float, high: float) -> str:
    """An interval of a gain."""
    return f"{metric.number(low, signed=True)} to {metric.number(high, signed=True)}"


def sentence(c: Compared) -> str:
    """What a comparison has come to, in one sentence."""
    v, metric = c.verdict, c.metric
    names = (c.comparison.challenger, c.comparison.baseline)
    labels = [arm(name).phrase for name in names]
    if not v.pairs:
        some = f"{len(c.seeds)} of the {c.comparison.looks[0]} pairs of the first look are there"
        there = some if c.seeds else "no pair has been run"
        return f"{labels[0]} against {labels[1]}: {there}, so nothing is said yet."
    matters = amount(metric, c.protocol.matters)
    next_look = f"looked at again after {v.next_look}" if v.next_look else "the last look that was planned"
    if v.sd is None or v.mean is None:
        lost = [v.diverged[0] + v.diverged[2], v.diverged[1] + v.diverged[2]]
        ran = f"{labels[0]} diverged in {lost[0]} and {labels[1]} in {lost[1]} of {v.pairs} runs"
        return f"{ran}: {word(c)}{f', {next_look}' if v.word == 'undecided' else ''}."
    assert v.interval is not None
    says = versus(metric, v.mean, *names)
    around = f"95% interval of the gain {times(signed(metric, v.mean), *v.interval)}, {v.pairs} pairs"
    if v.word == "equivalent":
        return f"{says}: equivalent, since less than {matters} would not matter ({around})."
    if v.word in ("better", "worse"):
        low, high = v.interval if v.word == "better" else (-v.interval[1], -v.interval[0])
        less = "though by less than" if high <= c.protocol.matters else "though perhaps by less than"
        more = "by more than" if low >= c.protocol.matters else less
        return f"{says}: {v.word}, {more} the {matters} that would matter ({around})."
    says += f", which may be chance: undecided after {v.pairs} pairs, {next_look}"
    if v.next_look:
        return f"{says} ({around})."
    needed = c.pairs_needed()
    takes = f"; about {needed} pairs would decide it" if needed else ""
    return f"{says}{takes} ({around}; {matters} would matter)."


# --- C4


def grid_finding(claim: Claim, study: Study, name: str) -> Finding:
    """Claim C4 on the study that decides it."""
    p = study.planners[name].protocol
    place, metric = where(p.task, p.variant), task(p.task).metric(p.metric.name)
    if name not in study.grids or not study.grids[name][1].done:
        return Finding(claim, place, NOT_RUN, "", "No run of the grid has been made yet.")
    verdict = study.grids[name][1]
    found = verdict.word or f"{verdict.done} of {verdict.planned} runs"
    said = ("" if verdict.word else "So far: ") + grid_words(verdict, metric, p.matters)
    return Finding(claim, place, found, claim.reads.get(found, ""), said)


def grid_words(verdict: GridVerdict, metric: Metric, matters: float) -> str:
    """How far each arm strays from its own result at epsilon 1e-8 and unscaled gradients."""
    parts = []
    for name, points in verdict.farthest.items():
        point = max(points, key=Point.distance)
        gain, runs = point.gain, len(point.gains)
        lost = f"{'gains' if gain > 0 else 'loses'} at most {metric.amount.format(metric.number(abs(gain)))}"
        if not math.isfinite(gain):
            here = int((np.isneginf(point.gains) | np.isnan(point.gains)).sum())
            lost = f"diverges in {here} of {runs} runs" if here else "diverges at its own reference"
        elif point.same:
            lost = "gives the reference's result everywhere"
        shown = "" if name not in verdict.within else (
            ", shown to be within what matters everywhere" if verdict.within[name]
            else ", shown to be worse by more than matters somewhere" if verdict.beyond[name] else ", neither shown"
        )  # fmt: skip
        each = ", ".join(f"{q.text(metric)} at {q.eps:g}" for q in points)
        parts.append(f"{arm(name).phrase} {lost} (by epsilon: {each}){shown}")
    said = "; ".join(parts) or "no point and its reference have run on one seed yet"
    return f"{said}. {amount(metric, matters)[0].upper()}{amount(metric, matters)[1:]} would matter."


def load_theory(path: Path, of: str, needs: str) -> dict[str, Any] | None:
    """What a module of `experiments.theory` wrote; None if there is nothing.

    Raises:
        AnalysisError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AnalysisError(f"{path}: no valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != 1 or not content.get(needs):
        raise AnalysisError(f"{path}: nothing of {of} with schema 1")
    return content


# --- the whole


def findings(study: Study, claims: Sequence[Claim], judged: Mapping[str, Any]) -> list[Finding]:
    """Every claim at every place where it is asked, in their order; `judged`: what is decided where it is measured."""
    found = []
    for claim in claims:
        if claim.test == "identity":
            said = judged.get(claim.id, {"word": "", "remark": "", "sentence": "Nothing has been measured."})
            reading = claim.reads.get(said["word"], "") + said["remark"]
            place = "A small network and the tasks' models"
            found.append(Finding(claim, place, said["word"] or NOT_RUN, reading, said["sentence"]))
        elif claim.test == "grid":
            deciding = next((p.name for p in study.protocols if p.task == JUDGED and p.epsilon is not None), None)
            found += [grid_finding(claim, study, deciding)] if deciding else []
        else:
            for c in study.comparisons:
                if c.comparison.claim == claim.id:
                    place = where(c.protocol.task, c.protocol.variant)
                    found.append(Finding(claim, place, word(c), claim.reads.get(c.verdict.word, ""), sentence(c), c))
    return found


def main_comparisons(study: Study) -> list[Compared]:
    """The comparison of FAdam with AdamW and clipping on each task, the tasks in their order."""
    return [
        c for c in study.comparisons
        if c.protocol.size is None and (c.comparison.challenger, c.comparison.baseline) == ("fadam", "adamw_clip")
    ]  # fmt: skip


def tuning(found: Mapping[str, Bowl], p: Protocol) -> tuple[str, str, str] | None:
    """Which of FAdam and AdamW with clipping is easier to tune: the wider bowl, where an interval says so.

    With it, the factors between learning rates that the bowls of both span; None while some rate has not been run.
    """
    if min(len(found[name].rates) if name in found else 0 for name in ("fadam", "adamw_clip")) < p.bowl.planned:
        return None
    one, other = found["fadam"], found["adamw_clip"]

    def factor(b: Bowl) -> str:
        return f"{'at least ' if b.open else ''}{b.width:.1f}"

    says = "Neither is shown to be easier to tune"
    shared = sorted(set(one.rates) & set(other.rates))
    if len(shared) >= 3:

        def log_width(values: Array) -> float:
            trains = np.isfinite(values).all(axis=1).any()  # at some rate no seed diverged
            return math.log(width(shared, values, p.tuning.mode, p.matters)) if trains else math.nan

        tables = [b.values[np.isin(b.rates, shared)] for b in (one, other)]
        ends = jackknife(lambda a, b: log_width(a) - log_width(b), *tables)
        if ends is not None and (ends[0] > 0 or ends[1] < 0):
            says = f"FAdam is {'easier' if ends[0] > 0 else 'harder'} to tune"
    return says, factor(one), factor(other)


def easier(found: Sequence[Compared], bowls: Mapping[str, Mapping[str, Bowl]]) -> str:
    """Which is easier to tune at each place, and how wide the bowls are."""
    places: dict[str, list[str]] = {}
    spans = []
    for c in found:
        judged = tuning(bowls[c.protocol.name], c.protocol)
        places.setdefault(judged[0] if judged else "It is not known yet", []).append(_place(c))
        spans += [f"{judged[1]} and {judged[2]} on {_place(c)}"] if judged else []
    said = [f"{says} on {listed(on)}." for says, on in places.items()]
    if spans:
        stay = f"FAdam and {arm('adamw_clip').phrase} stay within what matters of their best over learning rates that"
        said.append(f"{stay} span a factor of {'; '.join(spans)}.")
    return " ".join(said)


def passed_over(name: str, b: Bowl, p: Protocol) -> str:
    """Why an arm is not run at the rate of its best mean; "" where it is, or while some rate has not been run."""
    best, chosen = b.lowest, taken(b, p)
    if best == chosen or len(b.rates) < p.bowl.planned:
        return ""
    metric = task(p.task).metric(p.tuning.name)
    excess = abs(b.values.mean(axis=1) - b.best)

    def worse(by: float) -> str:
        return f"worse by {metric.amount.format(metric.number(by))}"

    reason = "is the last one tried"
    if 0 < best < len(b.rates) - 1:
        beside = max(best - 1, best + 1, key=lambda i: float(excess[i]))
        reason = f"stands beside a cliff ({b.rates[beside]:g} was {worse(excess[beside])})"
    return (
        f"The best rate of {arm(name).phrase}, {b.rates[best]:g}, {reason}; {b.rates[chosen]:g} was taken, which was "
        f"{worse(excess[chosen])} on the tuning seeds."
    )


def _place(c: Compared) -> str:
    p = c.protocol
    return task(p.task).phrase + (f" ({variant(p.variant)})" if p.variant else "")


def parts(study: Study) -> str:
    """What each of FAdam's parts does on each task: the words of the comparisons of switches."""
    words: dict[tuple[str, str], dict[str, list[str]]] = {}
    for c in study.comparisons:
        switches, names = c.protocol.switches, (c.comparison.challenger, c.comparison.baseline)
        if switches is not None and c.comparison.baseline in switches.arms:
            words.setdefault(names, {}).setdefault(word(c), []).append(_place(c))
    said = [
        f"{arm(one).phrase} against {arm(other).phrase}: {', '.join(f'{w} on {listed(p)}' for w, p in found.items())}."
        for (one, other), found in words.items()
    ]
    return " ".join(["Each pair differs in one part, and the learning rate is tuned anew.", *said])


def advice(found: Sequence[Compared]) -> str:
    """Whether a person should use FAdam, from the main comparisons alone."""
    said = {
        "better": "on {}, yes: it is better there",
        "worse": "on {}, no: it is worse there",
        "equivalent": "on {} there is no reason to leave a tuned AdamW: the two are equivalent",
        "open": "on {} there is no reason to leave a tuned AdamW: no gain has been shown",
        "": "on {} it is not known yet",
    }
    places: dict[str, list[str]] = {}
    for c in found:
        v = c.verdict
        name = "" if not v.pairs else v.word if v.word in said else "open"
        places.setdefault(name, []).append(_place(c))
    text = "; ".join(words.format(listed(places[name])) for name, words in said.items() if name in places)
    return f"{text[:1].upper()}{text[1:]}. Models are small here; of large ones nothing is shown."


def size_sentence(ladder: Ladder | None) -> str:
    """Whether the gain grows with size."""
    if ladder is None:
        return ""
    run = ladder.looked_at
    missing = [f"{size:g}" for size, c in ladder.sizes if not c.verdict.pairs]
    rest = f" Models of {listed(missing)} million are not all run." if missing else ""
    if ladder.slope is None:
        if any(c.verdict.sd is None for _, c in run):
            return f"It has no slope: some runs diverged.{rest}"
        sizes = f"{ladder.sizes[0][0]:g} to {ladder.sizes[-1][0]:g}"
        return f"Not known yet: models of {sizes} million parameters are not all run."
    slope, low, high = ladder.slope
    metric = signed(run[0][1].metric, slope)
    grows = "grows" if low > 0 else "shrinks" if high < 0 else "cannot be shown to change"
    by = metric.amount.format(metric.number(slope, signed=True))
    ends = " to ".join(metric.number(m, signed=True) for _, c in (run[0], run[-1]) if (m := c.verdict.mean) is not None)
    return (
        f"Over language models of {run[0][0]:g} to {run[-1][0]:g} million parameters FAdam's gain {grows} with size, "
        f"from {ends}: {by} for ten times the parameters (95% interval {times(metric, low, high)}, "
        f"{ladder.pairs} seeds).{rest}"
    )


def context_sentence(contexts: Sequence[Context], p: Protocol) -> str:
    """Which of a protocol's context optimizers do better than both of the study's."""
    better, seen, pairs = [], [], set()
    mine = [c for c in contexts if c.protocol is p]
    done = [c for c in mine if len(c.values) == c.planned and min(map(len, c.gains.values()), default=0) > 1]
    left = [name for name in (p.context.arms if p.context else ()) if name not in {c.arm for c in done}]
    for c in done:
        gains = [interval(g) for g in c.gains.values()]
        diverged = int((~np.isfinite(c.values)).sum())
        seen.append(arm(c.arm).phrase + (f" (diverged in {diverged} of {c.planned} runs)" if diverged else ""))
        pairs |= {len(g) for g in c.gains.values()}
        if all(g is not None and g[1] > 0 for g in gains):
            least = min(g[0] for g in gains if g is not None)
            better.append(f"{arm(c.arm).phrase} by {c.metric.amount.format(c.metric.number(least))}")
    if not seen:
        return "Not known yet: no other has run in pairs with them."
    each = f"{min(pairs)} pairs each" if len(pairs) == 1 else f"{min(pairs)} to {max(pairs)} pairs each"
    if better:
        says = f"Yes, every main arm: {listed(better)} or more, where {amount(c.metric, p.matters)} would matter"
    elif len(seen) == 1:
        says = f"{seen[0]} does not do better than every main arm"
    else:
        says = f"None of {listed(seen)} does better than every main arm"
    says += f" (after as many steps, {each}, 95% intervals, no verdict)."
    return says + (f" Not all run: {listed([arm(name).phrase for name in left])}." if left else "")


def as_json(found: Sequence[Finding]) -> str:
    """The content of results/verdicts.json."""

    def number(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")

    entries = []
    for f in found:
        entry: dict[str, Any] = {
            "claim": f.claim.id, "says": f.claim.says, "marks": f.claim.marks, "where": f.where, "word": f.word,
            "reading": f.reading, "sentence": f.sentence,
        }  # fmt: skip
        if f.compared is not None:
            c, v = f.compared, f.compared.verdict
            entry["comparison"] = {
                "study": c.protocol.name, "challenger": c.comparison.challenger, "baseline": c.comparison.baseline,
                "metric": c.metric.key, "matters": c.protocol.matters, "looks": list(c.comparison.looks),
                "pairs": v.pairs, "gain": number(v.mean), "sd": number(v.sd),
                "interval": None if v.interval is None else [number(x) for x in v.interval],
                "p_superior": number(v.p_superior), "p_equivalent": number(v.p_equivalent),
                "diverged": list(v.diverged), "detectable": number(c.detectable()), "pairs_needed": c.pairs_needed(),
            }  # fmt: skip
        entries.append(entry)
    return json.dumps({"schema": 2, "verdicts": entries}, indent=1, ensure_ascii=False) + "\n"
