"""Each table of the pages, made once. A table without data says so in its only note."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from experiments.analysis.bowls import Bowl, taken
from experiments.analysis.comparisons import Compared, Ladder, Study, interval
from experiments.analysis.frame import metric_keys
from experiments.analysis.paper import OPTIMIZERS, Paper
from experiments.analysis.plain import Pilot, plain_pairs
from experiments.analysis.verdicts import Finding, amount, main_comparisons
from experiments.analysis.verdicts import word as verdict_word
from experiments.core.catalogue import Metric, arm, in_order, signed, task, variant, where
from experiments.core.protocol import Protocol, rate
from experiments.core.table import Cell, Table, word

NOTHING = "No run of this has been published yet."


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], *notes: str) -> Table:
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(str(c)) for c in row) for row in rows)
    return Table(caption, tuple(header), cells, tuple(note for note in notes if note) if cells else (NOTHING,))


def mean_sd(metric: Metric, values: ArrayLike, count: bool = True) -> str:
    """Mean ± standard deviation over runs, and their number; diverged runs are counted, not averaged."""
    found = np.asarray(values, dtype=np.float64)
    found = found[~np.isnan(found)]
    finite = found[np.isfinite(found)]
    if not len(found):
        return "–"
    lost = len(found) - len(finite)
    text = metric.number(float(finite.mean())) if len(finite) else ""
    text += f" ± {metric.number(float(finite.std(ddof=1)))}" if len(finite) > 1 else ""
    if lost:
        return f"{lost} of {len(found)} diverged" + (f", others {text}" if text else "")
    return f"{text} (n={len(found)})" if count else text


def gain_text(c: Compared) -> str:
    """Gain with its repeated interval."""
    v = c.verdict
    if v.mean is None or not v.pairs:
        return "–"
    return with_interval(c.metric, v.mean, v.interval)


def with_interval(metric: Metric, mean: float, ends: tuple[float, float] | None) -> str:
    """A mean gain, and its interval in brackets."""
    metric = signed(metric, mean)
    text = metric.number(mean, signed=True)
    return text if ends is None else f"{text} [{', '.join(metric.number(end, signed=True) for end in ends)}]"


def t_interval(metric: Metric, gains: ArrayLike) -> str:
    """Mean of gains that bear no word, with Student's interval."""
    found = interval(gains)
    return "–" if found is None else with_interval(metric, found[0], found[1:])


def _found(c: Compared) -> str:
    detectable = c.detectable()
    return "–" if detectable is None else c.metric.number(detectable)


GAIN = (
    "A gain is positive where the arm named first is better. Its 95% interval holds over all looks together, and may "
    "reach a little beyond what matters where the word is equivalent, which is asked at 5% on either side. "
    "“Detectable” is the true difference that the last look finds with a chance of 90%."
)


def headline(study: Study) -> Table:
    """FAdam against AdamW and clipping on every task."""
    rows = []
    for c in main_comparisons(study):
        n, p = c.verdict.pairs, c.protocol
        rows.append(
            [
                Cell(where(p.task, p.variant), href=f"tables/{p.task}.md"), c.metric.title,
                mean_sd(c.metric, c.baseline[:n], False), mean_sd(c.metric, c.challenger[:n], False), gain_text(c),
                word(verdict_word(c)), str(n), _found(c), c.metric.plain(p.matters),
            ]
        )  # fmt: skip
    header = (
        "task", "measure", arm("adamw_clip").label, arm("fadam").label, "gain [interval]", "word", "pairs",
        "detectable", "matters",
    )  # fmt: skip
    return _table("FAdam against AdamW with clipping", header, rows, GAIN)


def claims(findings: Sequence[Finding]) -> Table:
    """Every claim of the paper, and the word it has got at each place."""
    rows, last = [], ""
    for f in findings:
        says = [f.claim.says, f.claim.marks] if f.claim.id != last else ["", ""]
        rows.append([f.claim.id, *says, f.where, word(f.word), f.reading or "–"])
        last = f.claim.id
    header = ("claim", "the paper says", "mark", "asked here of", "word", "the claim")
    return _table("The paper's claims", header, rows)


def comparisons(study: Study, p: Protocol) -> Table:
    """All declared comparisons of a study."""
    rows = []
    for c in (c for c in study.comparisons if c.protocol is p):
        v = c.verdict
        rows.append(
            [
                f"{c.comparison.id}: {arm(c.comparison.challenger).label} against {arm(c.comparison.baseline).label}",
                gain_text(c), word(verdict_word(c)), f"{v.pairs} of {c.comparison.looks[-1]}",
                f"{v.p_superior:.2g}" if v.pairs else "–", f"{v.p_equivalent:.2g}" if v.pairs else "–",
                _found(c), str(c.pairs_needed() or "–"),
            ]
        )  # fmt: skip
    metric = task(p.task).metric(p.metric.name)
    header = (
        "comparison", "gain [interval]", "word", "pairs", "p of a difference", "p of equivalence", "detectable",
        "pairs it would take",
    )  # fmt: skip
    note = (
        f"Measured by {metric.label}; {amount(metric, p.matters)} would matter. The p's are corrected for looking "
        "several times and for the family (Holm)."
    )
    return _table(f"Comparisons: {where(p.task, p.variant)}", header, rows, note, GAIN)


def hidden(rows: pd.DataFrame, metric: Metric) -> bool:
    """Whether a metric says too little to be shown, see `Metric.limit`."""
    if not metric.table:
        return True
    if metric.limit is None or metric.limit[0] not in rows:
        return False
    best = rows.groupby("arm")[metric.limit[0]].mean().min()
    return bool(best > metric.limit[1])


def means(study: Study, p: Protocol) -> Table:
    """Every recorded metric of every arm on the evaluation seeds."""
    rows = study.evaluated(p)
    arms = in_order(rows["arm"])
    body = []
    for metric in task(p.task).recorded(metric_keys(rows)):
        if not hidden(rows, metric):
            by_arm = [rows.loc[rows["arm"] == name, metric.key] for name in arms]
            body.append([metric.title, *(mean_sd(metric, values) for values in by_arm)])
    header = ("measure", *(arm(name, arms).label for name in arms))
    return _table(f"Every measure: {where(p.task, p.variant)}", header, body, "Mean ± standard deviation over n seeds.")


def bowls(found: Mapping[str, Bowl], p: Protocol) -> Table:
    """What the learning rates gave for each main arm: how good at its best, and how easy to tune."""
    metric = task(p.task).metric(p.tuning.name)

    def text(value: float, ends: tuple[float, float] | None) -> str:
        return metric.number(value) + ("" if ends is None else f" [{metric.number(ends[0])}, {metric.number(ends[1])}]")

    rows = []
    for name, b in found.items():
        planned = max(p.bowl.planned, len(b.rates))
        chosen = f"{b.rates[taken(b, p)]:g}" if len(b.rates) == planned else "–"
        ends = "" if b.width_interval is None else f" [{b.width_interval[0]:.1f}, {b.width_interval[1]:.1f}]"
        rows.append(
            [
                arm(name).label, f"{b.rates[b.lowest]:g}", chosen, text(b.best, b.best_interval),
                f"{'≥ ' if b.open else ''}{b.width:.1f}{ends}", text(b.sensitivity, b.sensitivity_interval),
                f"{len(b.rates)} of {planned}",
            ]
        )  # fmt: skip
    note = (
        f"By {metric.label} on the tuning seeds. Width: the factor between the learning rates within "
        f"{amount(metric, p.matters)} of the best. Sensitivity: the mean excess over all rates. In brackets 95% "
        "intervals over seeds. Taken is the best rate that stands beside no cliff (docs/study.md)."
    )
    header = ("arm", "best rate", "rate taken", "best value", "width (factor)", "sensitivity", "rates run")
    return _table(f"Learning rates: {where(p.task, p.variant)}", header, rows, note)


def rates(study: Study, p: Protocol) -> Table:
    """Mean over tuning seeds at every learning rate and weight decay that was tried."""
    rows = study.table[(study.table["protocol"] == p.name) & (study.table["part"] == "tune")]
    metric = task(p.task).metric(p.tuning.name)
    if rows.empty:
        return _table("Every rate tried", ("arm",), [])
    steps = sorted(rows["lr"].unique())
    body = []
    chosen = study.tuned[p.name]
    for name in in_order(rows["arm"]):
        mine = rows[rows["arm"] == name]
        for decay in sorted(mine["weight_decay"].unique()):
            cells = []
            for lr in steps:
                values = mine.loc[(mine["lr"] == lr) & (mine["weight_decay"] == decay), metric.key]
                text = "" if values.empty else mean_sd(metric, values, False).split(" ±")[0]
                mine_is = name in chosen and (rate(chosen[name].step), chosen[name].weight_decay) == (lr, decay)
                cells.append(Cell(text, kind="good" if mine_is else ""))
            body.append([arm(name, rows["arm"]).label, f"{decay:g}", *cells])
    note = f"{metric.title}, mean over the tuning seeds. Marked: the chosen settings."
    if p.bowl.decays and p.bowl.decay_seeds < len(p.bowl.seeds):
        note += f" The decay is chosen on {p.bowl.decay_seeds} of the {len(p.bowl.seeds)} seeds, which all decays have."
    header = ("arm", "weight decay", *(f"{lr:g}" for lr in steps))
    return _table(f"Every rate tried: {where(p.task, p.variant)}", header, body, note)


def grid(study: Study, name: str) -> Table:
    """Claim C4: what each arm gains or loses against its own result at epsilon 1e-8 and unscaled gradients."""
    p = study.planners[name].protocol
    points = study.grids[name][0]
    metric = task(p.task).metric(p.metric.name)
    eps = sorted({q.eps for q in points}, reverse=True)
    by = {(q.arm, q.weights, q.scale, q.eps): q for q in points}
    rows = []
    for arm_name, weights, scale in dict.fromkeys((q.arm, q.weights, q.scale) for q in points):
        cells = [q.text(metric) if (q := by.get((arm_name, weights, scale, e))) else "" for e in eps]
        rows.append([arm(arm_name).label, weights.removesuffix(" weights"), f"{scale:.2g}", *cells])
    header = ("arm", "weights", "gradients times", *(f"eps {e:g}" for e in eps))
    note = (
        f"Gain in {metric.label} against the same arm at epsilon 1e-8 and scale 1; “same”: equal to the last bit. "
        f"{amount(metric, p.matters)} would matter."
    )
    return _table(f"Epsilon and the scale of the gradients: {where(p.task, p.variant)}", header, rows, note)


def ladder(study: Study, found: Ladder) -> Table:
    """The gain at each size of language model, and the learning rates that were taken there."""
    rows, names = [], ("adamw_clip", "fadam")
    for size, c in found.sizes:
        n, tuned = c.verdict.pairs, study.tuned[c.protocol.name]
        values = (mean_sd(c.metric, side[:n], False) for side in (c.baseline, c.challenger))
        rates = " and ".join(f"{rate(tuned[name].step):g}" for name in names) if {*names} <= set(tuned) else "–"
        rows.append([f"{size:g} M", rates, *values, gain_text(c), f"{n} of {c.comparison.looks[-1]}"])
    header = ("parameters", "learning rates", *(arm(name).label for name in names), "gain [interval]", "pairs")
    note = "Test bits per byte ↓. No word rests on one size. Intervals are over seeds, at rates chosen on other seeds."
    return _table("Language models of four sizes", header, rows, note)


def context(study: Study, p: Protocol) -> Table:
    """The optimizers that are shown beside the study's, on the same seeds."""
    mine = [c for c in study.contexts if c.protocol is p]
    mains = list(dict.fromkeys(name for c in mine for name in c.gains))
    rows = []
    for c in mine:
        cells = [t_interval(c.metric, c.gains.get(name, ())) for name in mains]
        rows.append([arm(c.arm).label, mean_sd(c.metric, c.values), *cells])
    header = ("optimizer", task(p.task).metric(p.metric.name).title, *(f"gain over {arm(n).label}" for n in mains))
    return _table(
        "Other optimizers, tuned on fewer rates and seeds, at one weight decay", header, rows,
        "95% t intervals of paired gains, after as many steps (whose times differ). They are part of no verdict.",
    )  # fmt: skip


def costs(study: Study, p: Protocol) -> Table:
    """What a run takes, by arm."""
    rows = study.table[(study.table["protocol"] == p.name) & (study.table["part"] != "epsilon")]
    body = []
    for name in in_order(rows["arm"]):
        mine = rows[rows["arm"] == name]
        numbers = [mine[k].median() for k in ("minutes", "step_ms", "memory_gb")]
        cells = ["–" if math.isnan(v) else f"{v:.{d}f}" for v, d in zip(numbers, (1, 0, 2), strict=True)]
        body.append([arm(name, rows["arm"]).label, str(len(mine)), *cells])
    note = (
        "Medians. Runs were made two at a time on busy machines, with one memory allocator or another, and some beside "
        "what earlier runs of the process still held: this tells what it took, not which step is faster or smaller."
    )
    header = ("arm", "runs", "minutes a run", "ms a step", "memory (GB)")
    return _table(f"What a run takes: {where(p.task, p.variant)}", header, body, note)


def paper(study: Study, book: Paper, name: str) -> Table:
    """What others report, beside the arms here."""
    entry = task(name)
    references = book.of(name)
    keys = [m.key for m in entry.recorded(key for r in references for key in r.values)]
    rows = []
    for r in references:
        values = [f"{r.values[k]:.2f}" if k in r.values else "–" for k in keys]
        rows.append([r.name, OPTIMIZERS[r.optimizer], *values, f"{r.setting} [{r.mark}] {r.source}"])
    for p in study.of_task(name) if references else ():
        evaluated = study.evaluated(p)
        for arm_name in ("adamw_clip", "fadam"):
            mine = evaluated[evaluated["arm"] == arm_name]
            if len(mine):
                values = [mean_sd(entry.metric(k), mine[k], False) if k in mine else "–" for k in keys]
                rows.append(["here", arm(arm_name).label, *values, f"{len(mine)} seeds; {entry.caveat}"])
    marks = "; ".join(f"[{mark}] {words}" for mark, words in book.marks.items())
    note = f"The paper's own Adam is not known to us. {marks}."
    labels = [entry.metric(k).label if k in entry.metrics else k for k in keys]
    header = ("system", "optimizer", *labels, "setting and source")
    return _table(f"Reported by others: {entry.title}", header, rows, note)


def pilot(found: Sequence[Pilot]) -> Table:
    """The runs made before a study was declared: how much noise a minute buys."""
    rows = []
    for q in found:
        metric = task(q.task).metric(q.metric)
        arms = "; ".join(f"{arm(name).label} {mean_sd(metric, values)}" for name, values in q.values.items())
        sd = "–" if q.sd is None else metric.number(q.sd)
        product = "–" if q.sd is None else f"{q.sd**2 * 2 * q.minutes:.3g}"
        rows.append([where(q.task, q.variant), q.label, arms, f"{q.minutes:.1f}", str(q.pairs or "–"), sd, product])
    header = ("task", "settings", "arms", "minutes a run", "pairs", "sd of a pair", "variance x minutes")
    note = (
        "Seeds from 1001, which no study uses. The smaller variance x minutes, the fewer minutes decide a comparison."
    )
    return _table("The pilot", header, rows, note)


THEORY_PAIRS = {
    "moment_empirical": "Adam's second moment over the empirical FIM",
    "frozen_empirical": "squared batch gradients now over the empirical FIM",
    "empirical_true": "empirical FIM over the true FIM",
}
THEORY_WORDS = (
    "The empirical FIM is the mean squared gradient of one sample. The square of a batch's mean gradient is not: "
    "where the mean is small against the noise, it is the empirical FIM divided by the batch size. That is one factor "
    "for all parameters, so it changes the size of the metric and not its shape, and the correlation stays high. Early "
    "on and with large batches the mean counts, and the shape differs too.",
    "The empirical FIM is the true one where the model's distribution fits the data. The categorical likelihood gets "
    "there by itself. Under a Gaussian the two differ by the squared size of the residuals over sigma squared: they "
    "agree only late, and only if sigma is that of the noise.",
)


def theory(content: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
    """Every case of the study of the Fisher information (FIM: Fisher information matrix)."""
    rows = []
    for case in content["cases"]:
        cells = [titles.get(case["likelihood"], case["likelihood"]), str(case["batch"]), str(case["step"])]
        for numbers in (case[pair] for pair in THEORY_PAIRS):
            cells += [f"{numbers['ratio']:.3g} [{numbers['low']:.3g}, {numbers['high']:.3g}]"]
            cells += [f"{numbers['correlation']:.3f}"]
        rows.append(cells)
    header = ["likelihood", "batch", "step"]
    for words in THEORY_PAIRS.values():
        header += [f"{words}: median ratio [quartiles]", "correlation of logarithms"]
    return _table("Adam's second moment and the Fisher information", header, rows)


def plain(study: Study, name: str) -> Table:
    """Comparisons that no study declared, such as runs at another scale."""
    rows = []
    for q in plain_pairs(study.records.all(), study.protocols):
        if q.task != name:
            continue
        metric = task(q.task).metric(q.metric)
        place = ", ".join(part for part in (q.scale, variant(q.variant) if q.variant else "") if part)
        values = (mean_sd(metric, q.baseline), mean_sd(metric, q.challenger), t_interval(metric, q.gains))
        rows.append([place, metric.title, *values, str(len(q.gains))])
    header = ("scale", "measure", arm("adamw_clip").label, arm("fadam").label, "gain [95% t interval]", "pairs")
    note = "Made outside the study, by `make reproduce-...`: no word rests on these."
    return _table(f"Other scales: {task(name).title}", header, rows, note)
