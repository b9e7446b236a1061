"""What the optimizer knows: table, figures and the report's section, from the records in results/fisher. No torch.

    python -m experiments.theory.knows [--own runs/fisher] [--publish]

It writes results/fisher/table.md, its figures, the README's paragraph, and results/fisher/knows.json, from which the
report takes its section and the word on C10 (`experiments.analysis` imports nothing of this package). All of it comes
from the published records; how near this machine's own ones come is said.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.core.errors import AnalysisError
from experiments.core.files import END, between, write_whole
from experiments.core.table import listed
from experiments.theory import agreement, identity, sizes, uses
from experiments.theory.blocks import Block, Grid, Part, Picture, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Mapping[str, Mapping[str, Any]]
SCHEMAS = dict.fromkeys((*uses.USES, "closed_forms", "toy"), 1) | {"tasks": 2}
COMMANDS = {use: f"python -m examples.fisher {use}" for use in uses.USES} | {
    "tasks": "python -m experiments.theory.tasks",
    "closed_forms": "python -m experiments.theory.closed_forms",
    "toy": "python -m experiments.theory.fisher",
}
TOY = Path("theory/fisher.json")  # below results
BEGIN = "<!-- begin: Fisher information, made by `make fisher` -->"


def paths(results: Path) -> dict[str, Path]:
    """The published records; `toy` is that of `experiments.theory.fisher`."""
    return {name: results / "fisher" / f"{name}.json" for name in COMMANDS} | {"toy": results / TOY}


def own_paths(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.json" for name in COMMANDS}


def load(files: Mapping[str, Path]) -> dict[str, Any]:
    """The records by name.

    Raises:
        AnalysisError: one is missing, unreadable or of another schema, with the command that makes it.
    """
    found = {}
    for name, path in files.items():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            record, reason = {}, type(error).__name__
        else:
            reason = "of another schema"
        if not isinstance(record, dict) or record.get("schema") != SCHEMAS[name]:
            raise AnalysisError(f"{path} cannot be used ({reason}): {COMMANDS[name]} makes such a record")
        found[name] = record
    return found


# ---- texts -----------------------------------------------------------------------------------------------------------
def toy_sentence(record: Mapping[str, Any], likelihood: str = "categorical") -> str:
    """The factor on the small network of `experiments.theory.fisher`."""
    cases = [c for c in record["cases"] if c["likelihood"] == likelihood]
    first = min(int(c["step"]) for c in cases)

    def spread(chosen: Sequence[Mapping[str, Any]]) -> str:
        found = [c["batch"] * c["moment_empirical"]["ratio"] for c in chosen]
        return f"{min(found):.2f} to {max(found):.2f}"

    early, late = ([c for c in cases if (c["step"] == first) == at_first] for at_first in (True, False))
    batches = sorted({int(c["batch"]) for c in cases})
    step = min(int(c["step"]) for c in late)
    return (
        f"The small network of C10, {likelihood} likelihood, batches of {batches[0]} to {batches[-1]}: the median "
        f"ratio is {spread(late)} from step {step} on, and {spread(early)} at step {first}."
    )


def closed_grid(record: Mapping[str, Any]) -> Grid:
    rows = [
        [
            row["model"], row["situation"],
            f"{row['ratio']:.3g} ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})",
            f"{row['left_true']:.3g}", f"{row['left_empirical']:.3g}",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    header = (
        "model", "situation", "empirical / true, median (range)", "excess loss left by a step with the true one",
        "... with the empirical one",
    )  # fmt: skip
    return Grid("Empirical over true Fisher information, and a step with each", header, rows)


def headline(records: Records) -> str:
    """The README's paragraph."""
    gain, loss = uses.words(records, "free", "identity"), uses.words(records, "free", "true")
    n = len(uses.values(records["merging"], "FAdam", "free"))
    return (
        "**Fisher information for free.** FAdam ends training with the diagonal Fisher information of the model; "
        "`fadam.fisher.diagonal_fim` exports it, from torch's Adam and AdamW too, and states the factor that "
        "brings it to size. "
        f"On small models and {n} seeds it beat no Fisher information in {listed(gain[uses.BETTER])}; it lost to it in "
        f"{listed(gain[uses.WORSE])}. Against the true one, which costs a pass over the data, it was worse in "
        f"{listed(loss[uses.WORSE])}, better in {listed(loss[uses.BETTER])}, and elsewhere no difference was seen: "
        "[`results/fisher/table.md`](results/fisher/table.md)."
    )


def parts(records: Records) -> list[Part]:
    """The report's section."""
    return [_uses_part(records), _sizes_part(records), _closed_part(records)]


def _uses_part(records: Records) -> Part:
    n = len(uses.values(records["merging"], "FAdam", "free"))
    gain, loss = uses.words(records, "free", "identity"), uses.words(records, "free", "true")
    measured = "; ".join(f"{title}: {uses.MEASURES[use]}" for use, title in uses.USES.items())
    return Part(
        "knows-uses", "Four uses of what the optimizer knows",
        (
            "An optimizer of this family ends training with a moving average of squared gradients, a diagonal Fisher "
            "information matrix of the model for free. Here it is put to four uses, beside the two that cost a pass "
            "over the data: the empirical one (the data's labels) and the true one (labels drawn from the model), and "
            "beside the identity, no Fisher information at all.",
            f"Against the identity the free one is better in {listed(gain[uses.BETTER])}; worse in "
            f"{listed(gain[uses.WORSE])}; no difference is seen in {listed(gain[uses.SAME])}. Against the true one it "
            f"is worse in {listed(loss[uses.WORSE])}, and better in {listed(loss[uses.BETTER])}.",
            uses.grid(records),
            f"Means over {n} seeds, lower is better; differences are paired by seed, with 95 % intervals, each taken "
            f"alone. Measured is: {measured}. \"Without\" is the loss where nothing is done: the other domain's model, "
            "no penalty, nothing pruned, the trained weights alone.",
            f"The strengths of the penalty, chosen in decades on one seed, were: "
            f"{uses.strengths(records['consolidation'])}. Where they differ between methods, so does more than the "
            "Fisher information. At an end of the strengths or prior precisions tried, so that a better one may lie "
            f"outside: {listed(uses.edges(records))}.",
            uses.details_grid(records),
            Picture("fisher_pruning", "Loss over sparsity", lambda: uses.pruning_figure(records["pruning"])),
        ),
    )  # fmt: skip


def _sizes_part(records: Records) -> Part:
    record = records["tasks"]
    settings = record["settings"]
    return Part(
        "knows-size", "Its size on the real tasks",
        (
            "The square of a batch's mean gradient is no mean of squares: E[g_B^2] = F / B + (1 - 1/B) g^2. The "
            "factor B brings F back where the mean gradient g is small against the noise. Measured on the three "
            f"tasks' models of scale cpu, trained with FAdam, {settings['samples']} samples a pass, "
            f"{len(settings['seeds'])} seeds: the mean, and in brackets the least and the greatest. \"Predicted\" is "
            "1 + (B - 1) g^2 / F at the weights of that step, what the docstring says that the ratio becomes there.",
            *sizes.sentences(record),
            toy_sentence(records["toy"]),
            "Two things besides the mean gradient part the columns. A long average remembers the larger gradients of "
            "earlier steps, which the prediction, at one step's weights, does not know: with batches of 1 it is all "
            "that is left. And the data of one sample err together where the model takes them for independent (the "
            "pixels of an image given its codes): the empirical Fisher information of a sample then exceeds the true "
            "one by up to their number, and so does the free one.",
            Picture("fisher", "Ratio and rank correlation along training", lambda: sizes.figure(record)),
            sizes.batches_grid(record), sizes.steps_grid(record), sizes.layers_grid(record),
        ),
    )  # fmt: skip


def _closed_part(records: Records) -> Part:
    return Part(
        "knows-closed", "Where both are known in closed form (C9)",
        (
            "The categorical likelihood makes empirical and true Fisher information equal at its optimum. A Gaussian "
            "does so only where its sigma is that of the noise: else they differ by the square of the wrong factor, "
            "forever, and a step of length 1 with the empirical one is too short or too long by it. Far from the "
            "optimum the empirical step is short in every model, as 1 / (1 + g^T C^-1 g); that protects a model that "
            "is sure and wrong, for which the true step overshoots.",
            closed_grid(records["closed_forms"]),
        ),
    )  # fmt: skip


def page(records: Records) -> str:
    """fisher/table.md."""
    commands = listed([f"`{record['command']}`" for record in records.values()])
    made = (
        f"Generated by `python -m experiments.theory.knows` from the records in `results/fisher` ({commands}); not to "
        "be edited."
    )
    return "\n\n".join(["# What the optimizer knows", made, *(part.markdown() for part in parts(records))]) + "\n"


def insert(readme: str, paragraph: str) -> str:
    """The README with the paragraph between its marks.

    Raises:
        AnalysisError: it has no such marks.
    """
    missing = f"the README has no place for the paragraph: {BEGIN} and, behind it, {END}"
    return between(readme, BEGIN, lambda: paragraph, missing)


# ---- files -----------------------------------------------------------------------------------------------------------
def save(figure: Figure, stem: Path) -> None:
    """As PNG and SVG, the same bytes from the same records."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=110, facecolor="white", metadata={"Software": None})
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stem.with_suffix(".svg"), transparent=True, metadata=nothing)


def as_data(block: Block) -> Any:
    if isinstance(block, Picture):
        return {"figure": block.name, "says": block.says}
    if isinstance(block, Grid):
        rows = [list(row) for row in block.rows]
        return {"caption": block.caption, "header": list(block.header), "rows": rows, "folded": block.folded}
    return block


def for_report(records: Records, claims: Path) -> str:
    """The content of knows.json: the sections' blocks, and what is found of the claims that are judged here."""
    judged = {}
    for claim in yaml.safe_load(claims.read_text(encoding="utf-8"))["claims"]:
        if claim["test"] == "identity":
            judged[claim["id"]] = asdict(identity.judge(claim["limits"], records["toy"], records["tasks"]))
    sections = [{"id": p.id, "title": p.title, "blocks": [as_data(b) for b in p.blocks]} for p in parts(records)]
    return json.dumps({"schema": 1, "claims": judged, "sections": sections}, indent=1, ensure_ascii=False) + "\n"


def write(records: Records, results: Path, readme: Path, claims: Path) -> None:
    """Everything that is made of the records, the report apart."""
    headed = insert(readme.read_text(encoding="utf-8"), headline(records))
    write_whole(results / "fisher" / "table.md", page(records))
    write_whole(results / "fisher" / "knows.json", for_report(records, claims))
    with style():
        for part in parts(records):
            for block in part.blocks:
                if isinstance(block, Picture):
                    save(block.draw(), results / "fisher" / block.name)
    write_whole(readme, headed)


def agreements(published: Records, own: Records) -> list[str]:
    """How near the own records come, a sentence a record, and whether README's paragraph would be another."""
    found = [agreement.compared(name, record, own[name]) for name, record in published.items()]
    same = headline(published) == headline(own)
    return [*found, f"README's paragraph would be {'the same' if same else 'another: ' + headline(own)}"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.theory.knows", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--own", type=Path, metavar="FOLDER", help="this machine's records, to be compared")
    parser.add_argument("--publish", action="store_true", help="make the own records the published ones first")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--claims", type=Path, default=Path("results/claims.yaml"), help="default: %(default)s")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="default: %(default)s")
    options = parser.parse_args(argv)
    if options.publish and options.own is None:
        parser.error("--publish needs --own FOLDER")
    width = min(100, shutil.get_terminal_size().columns)
    try:
        own = load(own_paths(options.own)) if options.own else None
        if options.publish:
            for name, path in own_paths(options.own).items():
                write_whole(paths(options.results)[name], path.read_bytes())
        published = load(paths(options.results))
        write(published, options.results, options.readme, options.claims)
    except (AnalysisError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    said = agreements(published, own) if own else []
    wrote = f"wrote {options.results / 'fisher' / 'table.md'}, its figures and README's paragraph"
    paragraph = re.sub(r"\[`(.*?)`\]\(.*?\)", r"\1", headline(published)).translate({ord(mark): None for mark in "*`"})
    for text in (*said, paragraph, wrote):
        print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
