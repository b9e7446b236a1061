"""Write the README's two tables, verdicts and paper beside ours, from the published run records alone.

python -m experiments.analysis.summary [--readme README.md] [--runs results/runs]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.choose import write_text
from experiments.analysis.paper import DEFAULT, Paper, load_paper
from experiments.analysis.plan import planned
from experiments.analysis.records import (
    COMPARED,
    AnalysisError,
    Record,
    by_arm,
    check_one_kind,
    evaluation,
    load_records,
    sections,
    select,
)
from experiments.analysis.stats import paired_difference, summarise
from experiments.analysis.tables import markdown_table, reported, scale_in_words
from experiments.analysis.tasks import SPECS, TaskSpec, arm_label, opponents, values_by_seed
from experiments.analysis.verdicts import CLAIMS, THEORY, load_claims, load_theory, short_table, verdicts
from experiments.core.errors import ConfigError

BEGIN, END = "<!-- begin: made by `make tables` -->", "<!-- end -->"
BEGIN_VERDICTS = "<!-- begin: verdicts, made by `make tables` -->"
# The measures by which the paper judges each task.
HEADLINES = {
    "asr": ("test-clean/wer", "test-other/wer"),
    "llm": ("test/bits_per_byte",),
    "vqvae": ("test/bits_per_dim", "test/psnr"),
}


def rows(records: Sequence[Record], spec: TaskSpec, paper: Paper) -> tuple[list[list[str]], list[str]]:
    """Table rows of one task, and one sentence on each of its scales."""
    table, notes = [], []
    for scale, variant in sections(records):
        here = select(records, scale=scale, variant=variant)
        name = f"{spec.name} `{scale}`" + (f" {variant}" if variant else "")
        check_one_kind(here, f"the summary of {name}")
        arms = by_arm(here)
        rivals = opponents(list(arms))
        if "fadam" not in arms or not rivals:
            continue
        notes.append(f"- {name}: {scale_in_words(here, spec)}. [All numbers](results/tables/{spec.name}.md)")
        for metric in spec.metrics:
            values = {arm: values_by_seed(arms[arm], metric) for arm in (rivals[0], "fadam")}
            if metric.keys[0] not in HEADLINES[spec.name] or not all(values.values()):
                continue
            measure = metric.label + (f" ({metric.unit})" if metric.unit else "")
            sides = [reported(paper, spec, metric, optimizer, sources=False) for optimizer in ("adam", "fadam")]
            if sides == ["–", "–"]:
                claim = paper.claims_of(spec.name)[0]
                sides = ["–", f"claim {claim.id}: {claim.text} [{claim.mark}]"]
            paired = paired_difference(values["fadam"], values[rivals[0]], metric.mode)
            table.append(
                [
                    name,
                    f"{measure} {'↓' if metric.mode == 'min' else '↑'}",
                    *sides,
                    f"{arm_label(rivals[0])}: {metric.summary(summarise(list(values[rivals[0]].values())))}",
                    metric.summary(summarise(list(values["fadam"].values()))),
                    metric.difference(paired),
                    f"**{metric.verdict(paired)}**",
                ]
            )
    return table, notes


def block(records: Sequence[Record], paper: Paper) -> str:
    """The lines that stand between the two marks of the README."""
    table: list[list[str]] = []
    notes: list[str] = []
    for name, spec in SPECS.items():
        runs = [r for r in evaluation(records) if r.task == name and r.scale in COMPARED]
        more, words = rows(runs, spec, paper)
        table += more
        notes += words
    if not table:
        return "No published records yet."
    header = ["task, scale", "measure", "paper's side: Adam", "paper's side: FAdam", "ours: Adam", "ours: FAdam"]
    lines = markdown_table([*header, "FAdam - Adam, paired [95% interval]", "in words"], table)
    marks = " ".join(f"[{mark}] {text}." for mark, text in paper.marks.items())
    return "\n".join([*lines, *notes, "", f"Marks of reported numbers: {marks}"])


def verdict_block(records: Sequence[Record], paper: Paper, claims: str | Path, theory: str | Path) -> str:
    """The verdict table, and what of the study has not run."""
    found = verdicts(load_claims(claims, paper.marks), records, load_theory(theory))
    have = {record.relative for record in records}
    left = []
    for task in SPECS:
        parts: dict[str, list[bool]] = {}
        for run in planned(task):
            parts.setdefault(run.tier, []).append(run.record in have)
        words = [f"`{tier}` {sum(done)} of {len(done)}" for tier, done in parts.items()]
        left.append(f"{task}: {', '.join(words)}")
    lines = short_table(found)
    return "\n".join([*lines, "", f"Records of the study, tier by tier: {'; '.join(left)}."])


def insert(text: str, lines: str, begin: str = BEGIN) -> str:
    """`text` with `lines` between the marks.

    Raises:
        AnalysisError: the marks are missing.
    """
    head, found, rest = text.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise AnalysisError(f"the README lacks the lines {begin!r} and {END!r}, between which its table goes")
    return f"{head}{begin}\n{lines}\n{END}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.summary", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--paper", default=str(DEFAULT), help=f"the paper's numbers (default: {DEFAULT})")
    parser.add_argument("--claims", default=str(CLAIMS), help=f"the claims (default: {CLAIMS})")
    parser.add_argument("--theory", default=str(THEORY), help=f"record of the Fisher information (default: {THEORY})")
    parser.add_argument("--readme", default="README.md", help="file whose tables are rewritten (default: README.md)")
    options = parser.parse_args(argv)
    path = Path(options.readme)
    try:
        records, paper = load_records(options.runs), load_paper(options.paper)
        made = insert(path.read_text(encoding="utf-8"), block(records, paper))
        made = insert(made, verdict_block(records, paper, options.claims, options.theory), BEGIN_VERDICTS)
    except (AnalysisError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(path, made)
    print(f"wrote the tables of {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
