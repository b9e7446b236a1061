"""What the optimizer knows: table, figures and the report's section, from the records in results/fisher. No torch.

    python -m experiments.theory.knows [--records results/fisher] [--out results]

It writes fisher/table.md, fisher/fisher.{png,svg}, fisher/fisher_pruning.{png,svg} and the README's paragraph.
`section` is the report's text.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Mapping[str, Mapping[str, Any]]
USES = {
    "merging": "merging two checkpoints",
    "consolidation": "elastic weight consolidation",
    "pruning": "pruning",
    "laplace": "diagonal Laplace",
}
MEASURES = {
    "merging": "test loss of both domains, nats a character",
    "consolidation": "test loss of both domains after learning one after the other, nats a character",
    "pruning": "test loss, mean over the sparsities, nats a character",
    "laplace": "test loss of the averaged prediction, nats a character",
}
METHODS = {"free": "free", "empirical": "empirical", "true": "true"}
TASKS = {"asr": "speech", "llm": "language", "vqvae": "images"}
TOY = Path("results/theory/fisher.json")
BEGIN, END = "<!-- begin: Fisher information, made by `make fisher` -->", "<!-- end -->"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


class MissingRecordError(Exception):
    """A record that a table needs is not there."""


def load(folder: Path, toy: Path = TOY) -> dict[str, Any]:
    """The records by name; `toy` is that of `experiments.theory.fisher`.

    Raises:
        MissingRecordError: one is missing or of another schema, with the command that makes it.
    """
    commands = {use: f"python -m examples.fisher {use}" for use in USES}
    commands["tasks"] = "python -m experiments.theory.tasks"
    commands["closed_forms"] = "python -m experiments.theory.closed_forms"
    paths = {name: folder / f"{name}.json" for name in commands} | {"toy": toy}
    commands["toy"] = "python -m experiments.theory.fisher"
    found = {}
    for name, command in commands.items():
        path = paths[name]
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if record.get("schema") != 1:
            raise MissingRecordError(f"{path} is missing or of another schema: make it with {command}")
        found[name] = record
    return found


# ---- the four uses ---------------------------------------------------------------------------------------------------
def values(record: Mapping[str, Any], optimizer: str, method: str, key: str = "value") -> dict[int, float]:
    """By seed."""
    rows = [r for r in record["rows"] if (r["optimizer"], r["method"]) == (optimizer, method)]
    return {int(r["seed"]): float(r[key]) for r in rows if key in r}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; infinitely wide for fewer than two."""
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half


def against(record: Mapping[str, Any], optimizer: str, one: str, other: str) -> tuple[float, float, float]:
    """Method `one` minus method `other`, seed by seed."""
    a, b = values(record, optimizer, one), values(record, optimizer, other)
    return interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def word(low: float, high: float) -> str:
    """What an interval of a difference in loss says."""
    return "better" if high < 0 else "worse" if low > 0 else "no difference seen"


def difference(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def optimizers(record: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(str(row["optimizer"]) for row in record["rows"]))


def uses_rows(records: Records) -> list[list[str]]:
    """The one table: a row for each use and optimizer."""
    rows = []
    for use, title in USES.items():
        record = records[use]
        for optimizer in optimizers(record):
            cells = [title, optimizer]
            for method in ("none", "identity"):
                cells.append(f"{statistics.fmean(values(record, optimizer, method).values()):.4f}")
            cells += [difference(against(record, optimizer, method, "identity")) for method in METHODS]
            free = against(record, optimizer, "free", "true")
            rows.append([*cells, f"{difference(free)}: {word(*free[1:])}"])
    return rows


USES_HEADER = (
    "use", "trained with", "without", "identity", "free - identity", "empirical - identity", "true - identity",
    "free - true",
)  # fmt: skip


def words(records: Records, one: str, other: str) -> dict[str, list[str]]:
    """Uses by what the difference of two methods says, with the optimizers where it is not the same for all."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "no difference seen": []}
    for use, title in USES.items():
        record = records[use]
        said = {o: word(*against(record, o, one, other)[1:]) for o in optimizers(record)}
        for said_, names in found.items():
            of = [o for o in said if said[o] == said_]
            if of:
                names.append(title if len(of) == len(said) else f"{title} ({', '.join(of)})")
    return found


def strengths(record: Mapping[str, Any]) -> str:
    """Of elastic weight consolidation, as chosen for each optimizer and method."""
    parts = []
    for optimizer in optimizers(record):
        chosen = {m: values(record, optimizer, m, "strength").values() for m in ("identity", *METHODS)}
        parts.append(f"{optimizer} " + ", ".join(f"{m} {next(iter(v)):g}" for m, v in chosen.items() if v))
    return "; ".join(parts)


def edges(records: Records) -> list[str]:
    """What was chosen at an end of the values that were tried, where a better one may lie outside."""
    found: list[str] = []
    for use, key in (("consolidation", "strength"), ("laplace", "precision")):
        tried = records[use]["settings"].get({"strength": "strengths", "precision": "precisions"}[key], [])
        for row in records[use]["rows"]:
            if row["method"] != "none" and tried and row.get(key) in (min(tried), max(tried)):
                found.append(f"{USES[use]} ({row['optimizer']}, {row['method']}: {row[key]:g})")
    return list(dict.fromkeys(found))


# ---- the factor on the tasks -----------------------------------------------------------------------------------------
def last(record: Mapping[str, Any], task: str, batch: int, layer: str = "all") -> Mapping[str, Any]:
    """The row of the last step."""
    rows = [r for r in record["rows"] if (r["task"], r["batch"], r["layer"]) == (task, batch, layer)]
    found: Mapping[str, Any] = max(rows, key=lambda r: int(r["step"]))
    return found


def of_beta2(row: Mapping[str, Any], beta2: float) -> Mapping[str, Any]:
    return next(free for free in row["free"] if free["beta2"] == beta2)


def tasks_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """All layers together: a row for each task, batch size, step and beta2."""
    rows = []
    for row in record["rows"]:
        if row["layer"] != "all":
            continue
        for free in row["free"]:
            e, t, et = free["empirical"], free["true"], row["empirical_true"]
            cells = [TASKS[row["task"]], row["batch"], row["step"], f"{free['beta2']:g}"]
            cells += [f"{e['ratio']:.2f}", f"{e['rank']:.2f}", f"{t['ratio']:.2f}", f"{t['rank']:.2f}"]
            cells += [f"{et['ratio']:.2f}", f"{et['rank']:.2f}", f"{1 + row['excess']:.2f}", f"{row['ceiling']:.2f}"]
            rows.append([str(c) for c in cells])
    return rows


def measures(record: Mapping[str, Any], beta2: float) -> list[dict[str, Any]]:
    """What a verdict on C10 needs, at the last step of each task and batch size.

    With the factor, f_t over the empirical Fisher (`ratio`, 1 if the size agrees; `predicted` by the mean gradient);
    the same without the factor (`bare`); the rank correlation with the true one (`rank`) and of two true ones
    (`ceiling`).
    """
    found = []
    for task in TASKS:
        for batch in record["settings"]["batches"]:
            row = last(record, task, batch)
            free = of_beta2(row, beta2)
            ratio = free["empirical"]["ratio"]
            numbers = {"ratio": ratio, "predicted": 1 + row["excess"], "bare": ratio / batch}
            more = {"rank": free["true"]["rank"], "ceiling": row["ceiling"]}
            found.append({"task": task, "batch": batch, "step": row["step"], **numbers, **more})
    return found


TASKS_HEADER = (
    "task", "batch", "step", "beta2", "free / empirical", "rank corr.", "free / true", "rank corr.",
    "empirical / true",
    "rank corr.", "predicted free / empirical", "rank corr. of two true ones",
)  # fmt: skip


def layers_rows(record: Mapping[str, Any], beta2: float) -> list[list[str]]:
    """Each layer at the last step: a row for each task and batch size."""
    rows = []
    final = max(int(r["step"]) for r in record["rows"])
    for row in record["rows"]:
        if row["step"] == final and row["layer"] != "all":
            free = of_beta2(row, beta2)
            cells = [TASKS[row["task"]], row["batch"], f"`{row['layer']}`", row["entries"]]
            cells += [f"{free[k][n]:.2f}" for k in ("empirical", "true") for n in ("ratio", "rank")]
            rows.append([str(c) for c in [*cells, f"{1 + row['excess']:.2f}", f"{row['ceiling']:.2f}"]])
    return rows


LAYERS_HEADER = (
    "task", "batch", "layer", "entries", "free / empirical", "rank corr.", "free / true", "rank corr.",
    "predicted free / empirical", "rank corr. of two true ones",
)  # fmt: skip


def closed_rows(record: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            row["model"], row["situation"],
            f"{row['ratio']:.3g} ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})",
            f"{row['left_true']:.3g}", f"{row['left_empirical']:.3g}",
        ]
        for row in record["rows"]
    ]  # fmt: skip


CLOSED_HEADER = (
    "model", "situation", "empirical / true, median (range)", "excess loss left by a step with the true one",
    "... with the empirical one",
)  # fmt: skip


# ---- texts -----------------------------------------------------------------------------------------------------------
def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "none"


def factor_sentences(record: Mapping[str, Any]) -> list[str]:
    """Whether the docstring's factor held at the end of each task's run, a sentence a task."""
    found = []
    for task, name in TASKS.items():
        parts = []
        for batch in record["settings"]["batches"]:
            row = last(record, task, batch)
            by_beta2 = [of_beta2(row, b)["empirical"]["ratio"] for b in record["settings"]["betas2"]]
            spread = f"{min(by_beta2):.2f} to {max(by_beta2):.2f}"
            parts.append(f"{spread} with batches of {batch} ({1 + row['excess']:.2f} predicted at the last weights)")
        found.append(f"{name.capitalize()}: f_t times the factor is {' and '.join(parts)} times the empirical Fisher.")
    return found


def toy_sentence(record: Mapping[str, Any], likelihood: str = "categorical") -> str:
    """The same on the toy problem of `experiments.theory.fisher`, from its record."""
    cases = [c for c in record["cases"] if c["likelihood"] == likelihood]
    first = min(int(c["step"]) for c in cases)

    def spread(chosen: Sequence[Mapping[str, Any]]) -> str:
        found = [c["batch"] * c["moment_empirical"]["ratio"] for c in chosen]
        return f"{min(found):.2f} to {max(found):.2f}"

    early, late = ([c for c in cases if (c["step"] == first) == at_first] for at_first in (True, False))
    batches = sorted({int(c["batch"]) for c in cases})
    return (
        f"On the toy problem (C10), {likelihood} likelihood, batches of {batches[0]} to {batches[-1]}: the median "
        f"ratio is {spread(late)} "
        f"from step {min(int(c['step']) for c in late)} on, and {spread(early)} at step {first}."
    )


def headline(records: Records) -> str:
    """The README's paragraph."""
    gain, loss = words(records, "free", "identity"), words(records, "free", "true")
    n = len(values(records["merging"], "FAdam", "free"))
    return (
        "**Fisher information for free.** FAdam ends training with the diagonal Fisher information of the model; "
        "`fadam.fisher.diagonal_fim` exports it, from torch's Adam and AdamW too, and states the factor that "
        "brings it to size. "
        f"On small models and {n} seeds it beat no Fisher information in {listed(gain['better'])}; it lost to it in "
        f"{listed(gain['worse'])}. Against the true one, which costs a pass over the data, it was worse in "
        f"{listed(loss['worse'])}, better in {listed(loss['better'])}, and elsewhere no difference was seen: "
        "[`results/fisher/table.md`](results/fisher/table.md)."
    )


def section(records: Records) -> str:
    """The report's section in Markdown, with its headings from the second level on."""
    settings = records["tasks"]["settings"]
    n = len(values(records["merging"], "FAdam", "free"))
    measured = "; ".join(f"{title}: {MEASURES[use]}" for use, title in USES.items())
    gain = words(records, "free", "identity")
    loss = words(records, "free", "true")
    lines = [
        "## What the optimizer knows",
        "",
        "An optimizer of this family ends training with a moving average of squared gradients, a diagonal Fisher "
        "information matrix "
        "of the model for free. Here it is put to four uses, beside the two that cost a pass over the data: the "
        "empirical one (the "
        "data's labels) and the true one (labels drawn from the model), and beside the identity, no Fisher "
        "information at all.",
        "",
        f"Losses are means over {n} seeds, lower is better; differences are paired by seed, with 95 % intervals, "
        f"each taken alone. "
        f"Measured is: {measured}. \"Without\" is the loss where nothing is done: the other domain's model, no "
        f"penalty, nothing "
        "pruned, the trained weights alone.",
        "",
        table(USES_HEADER, uses_rows(records)),
        "",
        f"Against the identity the free one is better in {listed(gain['better'])}; worse in "
        f"{listed(gain['worse'])}; no difference "
        f"is seen in {listed(gain['no difference seen'])}. Against the true one it is worse in "
        f"{listed(loss['worse'])}, and better in "
        f"{listed(loss['better'])}.",
        "",
        f"The strengths of the penalty, chosen in decades on one seed, were: {strengths(records['consolidation'])}. "
        "Where they differ between methods, so does more than the Fisher information.",
        "",
        f"At an end of the strengths or prior precisions tried, so that a better one may lie outside: "
        f"{listed(edges(records))}.",
        "",
        "![Loss over sparsity](fisher_pruning.png)",
        "",
        "### Its size on the real tasks",
        "",
        "The square of a batch's mean gradient is no mean of squares: E[g_B^2] = F / B + (1 - 1/B) g^2. The "
        "factor B brings F back "
        "where the mean gradient g is small against the noise. Measured on the three tasks' models of scale "
        "`cpu`, FAdam, "
        f"{settings['samples']} samples a pass, one seed; \"predicted\" is 1 + (B - 1) g^2 / F at the weights of "
        f"that step, what the "
        "docstring says that the ratio becomes there.",
        "",
        *(f"- {sentence}" for sentence in (*factor_sentences(records["tasks"]), toy_sentence(records["toy"]))),
        "",
        "Two things besides the mean gradient part the columns. A long average remembers the larger gradients of "
        "earlier steps, which the prediction, at one step's weights, does not know. And the data of one sample err "
        "together where the model takes them for independent (the pixels of an image given its codes): the empirical "
        "Fisher of a sample then exceeds the true one by up to their number, and so does the free one.",
        "",
        "![Ratio and rank correlation along training](fisher.png)",
        "",
        table(TASKS_HEADER, tasks_rows(records["tasks"])),
        "",
        f"Layer by layer at step {max(settings['stages'])}, beta2 {max(settings['betas2']):g}:",
        "",
        table(LAYERS_HEADER, layers_rows(records["tasks"], max(settings["betas2"]))),
        "",
        "### Where both are known in closed form (C9)",
        "",
        "The categorical likelihood makes empirical and true Fisher equal at its optimum. A Gaussian does so "
        "only where its sigma is "
        "that of the noise: else they differ by the square of the wrong factor, forever, and a step of length 1 "
        "with the empirical "
        "one is too short or too long by it. Far from the optimum the empirical step is short in every model, as "
        "1 / (1 + g^T C^-1 g); "
        "that protects a model that is sure and wrong, for which the true step overshoots.",
        "",
        table(CLOSED_HEADER, closed_rows(records["closed_forms"])),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def page(records: Records) -> str:
    """fisher/table.md."""
    commands = listed([f"`{record['command']}`" for record in records.values()])
    made = (
        "Generated by `python -m experiments.theory.knows` from the records in `results/fisher` "
        f"({commands}); not to be edited."
    )
    text = section(records).replace("## What the optimizer knows\n", f"# What the optimizer knows\n\n{made}\n", 1)
    return text.replace("\n### ", "\n## ")


def insert(readme: str, paragraph: str) -> str:
    """The README with the paragraph between its marks.

    Raises:
        MissingRecordError: it has no such marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MissingRecordError(f"the README has no place for the paragraph: {BEGIN} and, behind it, {END}")
    return f"{before}{begin}\n{paragraph}\n{end}{after}"


# ---- figures ---------------------------------------------------------------------------------------------------------
def _canvas(rows: int, columns: int) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def tasks_figure(record: Mapping[str, Any]) -> Figure:
    """Ratio (upper row) and rank correlation (lower row) along the run; a column a task."""
    from matplotlib.ticker import LogLocator

    settings = record["settings"]
    figure, axes = _canvas(2, len(TASKS))
    for column, (task, name) in enumerate(TASKS.items()):
        upper, lower = axes[0][column], axes[1][column]
        for batch, dash in zip(settings["batches"], ("-", "--", ":"), strict=False):
            rows = [r for r in record["rows"] if (r["task"], r["batch"], r["layer"]) == (task, batch, "all")]
            steps = [r["step"] for r in rows]
            for beta2, colour in zip(settings["betas2"], _COLOURS, strict=False):
                free = [of_beta2(r, beta2) for r in rows]
                label = f"batch {batch}, beta2 {beta2:g}"
                upper.plot(steps, [f["empirical"]["ratio"] for f in free], dash, color=colour, marker="o", label=label)
                lower.plot(steps, [f["true"]["rank"] for f in free], dash, color=colour, marker="o")
            upper.plot(
                steps,
                [1 + r["excess"] for r in rows],
                dash,
                color="black",
                linewidth=1,
                label=f"batch {batch}, predicted",
            )
            lower.plot(steps, [r["ceiling"] for r in rows], dash, color="black", linewidth=1)
        upper.set_title(name)
        upper.set_yscale("log")
        upper.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        upper.yaxis.set_major_formatter("{x:g}")
        upper.axhline(1.0, color="#888888", linewidth=0.8)
        for axis in (upper, lower):
            axis.set_xscale("log")
            axis.set_xticks(settings["stages"], [str(s) for s in settings["stages"]])
            axis.minorticks_off()
            axis.set_xlabel("optimizer step")
    axes[0][0].set_ylabel("free / empirical, with the factor")
    axes[1][0].set_ylabel("rank correlation, free with true\n(black: two true ones)")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


def pruning_figure(record: Mapping[str, Any]) -> Figure:
    """Test loss over sparsity, mean over seeds; a column an optimizer."""
    found = optimizers(record)
    figure, axes = _canvas(1, len(found))
    sparsities = record["settings"]["sparsities"]
    for axis, optimizer in zip(axes[0], found, strict=True):
        for method, colour in zip(("identity", *METHODS), ("#000000", *_COLOURS), strict=False):
            rows = [r for r in record["rows"] if (r["optimizer"], r["method"]) == (optimizer, method)]
            curves = list(zip(*(r["curve"] for r in rows), strict=True))
            found_ = [interval(c) for c in curves]
            label = "magnitude (identity)" if method == "identity" else method
            axis.plot(sparsities, [m for m, _, _ in found_], color=colour, marker="o", label=label)
            if len(rows) > 1:
                low, high = [a for _, a, _ in found_], [b for _, _, b in found_]
                axis.fill_between(sparsities, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(statistics.fmean(values(record, optimizer, "none").values()), color="#888888", linewidth=0.8)
        axis.set_title(f"trained with {optimizer}")
        axis.set_xlabel("share of the matrices' weights set to 0")
    axes[0][0].set_ylabel("test loss (nats a character)")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """As PNG and SVG, the same bytes from the same records."""
    import matplotlib

    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "fadam"}):
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(stem.with_suffix(".png"), dpi=110, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.theory.knows", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--records", default="results/fisher", help="default: %(default)s")
    parser.add_argument("--out", default="results", help="folder of tables/ and figures/ (default: %(default)s)")
    parser.add_argument("--toy", default=str(TOY), help="record of experiments.theory.fisher (default: %(default)s)")
    parser.add_argument("--readme", default="README.md", help="gets the headline (default: %(default)s)")
    options = parser.parse_args(argv)
    readme = Path(options.readme)
    try:
        records = load(Path(options.records), Path(options.toy))
        headed = insert(readme.read_text(encoding="utf-8"), headline(records))
    except MissingRecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = Path(options.out)
    write_whole(out / "fisher" / "table.md", page(records))
    save(tasks_figure(records["tasks"]), out / "fisher" / "fisher")
    save(pruning_figure(records["pruning"]), out / "fisher" / "fisher_pruning")
    write_whole(readme, headed)
    print(table(USES_HEADER, uses_rows(records)))
    print(f"wrote {out / 'fisher' / 'table.md'} and figures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
