"""Write `results/report.html`: the whole comparison as one page that needs no network.

    python -m experiments.analysis.report [--runs results/runs] [--out results/report.html]

Everything on it comes from the published run records, the protocols of `configs/study/`, `results/paper.yaml` and
`results/claims.yaml`; the same files give the same bytes. Every number leads to the record or records behind it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.analysis import report_figures as draw
from experiments.analysis.choose import write_text
from experiments.analysis.paper import DEFAULT as PAPER
from experiments.analysis.paper import Paper, load_paper
from experiments.analysis.plan import TIERS
from experiments.analysis.records import AnalysisError, Record, load_records, one_line_warnings
from experiments.analysis.report_answer import answer, claim_views, paper_views, verdict_table
from experiments.analysis.report_parts import (
    Cell,
    Group,
    Links,
    Table,
    group_table,
    grouped,
    pair_table,
    run_kind,
    unit_text,
)
from experiments.analysis.report_samples import language_views, picture_views, transcript_views
from experiments.analysis.report_tasks import (
    after_view,
    far_view,
    likelihood_view,
    missing_words,
    profile_view,
    task_view,
    why_view,
)
from experiments.analysis.study import Study, study
from experiments.analysis.summary import HEADLINES
from experiments.analysis.tables import count_text
from experiments.analysis.tasks import SPECS, arm_label
from experiments.analysis.verdicts import CLAIMS, THEORY, Claim, load_claims, load_theory, verdicts
from experiments.core.errors import UserError
from experiments.core.study import FOLDER, TUNED, afterwards

TEMPLATES = Path(__file__).parent / "templates"


# --- how it was run


def protocol_table(numbers: Study, folder: Path, links: Links) -> Table:
    rows: list[tuple[Cell, ...]] = []
    tasks = list(numbers.tasks.values())

    def row(title: str, values: Iterable[str]) -> None:
        rows.append((Cell(title), *(Cell(v) for v in values)))

    def span(limits: Mapping[str, Any]) -> str:
        return f"{float(limits['low']):g} to {float(limits['high']):g}"

    plans = [t.protocol for t in tasks]
    rows.append((Cell("declared in"), *(Cell(f"{t.task}.yaml", links.file(folder / f"{t.task}.yaml")) for t in tasks)))
    row("decided by", (f"{t.metric.label}, {'lower' if t.metric.mode == 'min' else 'higher'} is better" for t in tasks))
    row("smallest difference that matters", (t.metric.number(t.matters) + unit_text(t.metric) for t in tasks))
    row("tuned by", (t.tuning_metric.label for t in tasks))
    row("trials of every arm", (str(p["points"]) for p in plans))
    row("learning rate, log-uniform", (span(p["space"]["lr"]) for p in plans))
    row("decoupled weight decay (AdamW)", (span(p["space"]["weight_decay"]["decoupled"]) for p in plans))
    row("natural weight decay (FAdam)", (span(p["space"]["weight_decay"]["natural"]) for p in plans))
    row("tuning seed", (str(p["tuning"]["seed"]) for p in plans))
    row("evaluation seeds", (", ".join(map(str, p["seeds"])) for p in plans))
    row(
        "learning-rate factors of the switches",
        (", ".join(f"{f:g}" for f in p["tiers"]["why"]["factors"]) for p in plans),
    )
    return Table("The protocol, declared before its runs", ("setting", *(t.spec.title for t in tasks)), tuple(rows))


def machine_table(records: Sequence[Record], links: Links) -> Table | None:
    """What the published runs cost, and what they ran on."""
    rows = []
    for task in SPECS:
        for scale, _ in dict.fromkeys((r.scale, "") for r in records if r.task == task):
            here = [r for r in records if (r.task, r.scale) == (task, scale)]
            seconds = [r.wall_time_s for r in here if r.wall_time_s is not None]
            devices = sorted({r.device for r in here if r.device})
            threads = sorted({r.threads for r in here if r.threads is not None})
            days = sorted({r.finished[:10] for r in here if r.finished})
            rows.append(
                (
                    Cell(f"{SPECS[task].title}, {scale}", f"#records-{task}"),
                    Cell(str(len(here))),
                    Cell(str(sum(r.diverged for r in here))),
                    Cell(f"{sum(seconds) / 3600:.1f}" if seconds else "–"),
                    Cell(f"{statistics.median(seconds) / 60:.1f}" if seconds else "–"),
                    Cell(" / ".join(devices) + (f", {'/'.join(map(str, threads))} thread a run" if threads else "")),
                    Cell(" to ".join(dict.fromkeys((days[0], days[-1]))) if days else "–"),
                    Cell(" ".join(sorted({r.commit[:7] for r in here if r.commit}))),
                )
            )
    if not rows:
        return None
    header = ("task, scale", "records", "diverged", "hours in all", "minutes a run", "machine", "days", "commits")
    return Table("What the published runs cost", header, tuple(rows))


def version_lines(records: Sequence[Record]) -> list[str]:
    lines = []
    counts = Counter(tuple(sorted(r.versions.items())) for r in records if r.versions)
    for versions, n in counts.items():
        lines.append(f"{n} records: " + ", ".join(f"{name} {version}" for name, version in versions))
    return lines


def data_lines(records: Sequence[Record]) -> list[str]:
    found: dict[tuple[str, str], int] = {}
    for r in records:
        key = (f"{r.task}: {r.data.get('name', 'unnamed')}", r.fingerprint)
        found[key] = found.get(key, 0) + 1
    return [f"{name}, {fingerprint.split(':')[-1][:16]}…, {n} records" for (name, fingerprint), n in found.items()]


# --- the appendix


def record_groups(records: Sequence[Record], numbers: Study, links: Links) -> dict[str, list[Group]]:
    """Task -> groups of its records, in the order of their anchors."""
    found: dict[str, list[Group]] = {}
    for key, runs in grouped(records).items():
        first = runs[0]
        task = numbers.tasks.get(first.task)
        spec = SPECS[first.task]
        metrics = [task.metric, task.tuning_metric] if task is not None else list(spec.curves)
        if task is not None and first.variant and first.variant != task.protocol["variant"]:
            metrics = [m for m in spec.metrics if m.keys[0] in HEADLINES[first.task]]
        kind = {"main": "evaluation", "tune": "tuning"}.get(run_kind(first), f"{run_kind(first)} varied")
        variant = f", {first.variant.replace('_', ' ')}" if first.variant else ""
        title = f"{arm_label(first.arm)}, scale {first.scale}{variant}: {kind}"
        found.setdefault(first.task, []).append(
            Group(key, title, group_table(runs, list(dict.fromkeys(metrics)), links), len(runs))
        )
    return found


# --- the page


def context(
    records: Sequence[Record],
    paper: Paper,
    claims: Sequence[Claim],
    theory: Mapping[str, Any] | None,
    out: Path,
    root: Path,
    folder: Path = FOLDER,
    tuned: Path = TUNED,
) -> dict[str, Any]:
    """Everything the template shows.

    Args:
        records: of all scales; those of scale "smoke" are not looked at.
        out: folder of the page, from which its links go.
        root: folder of the records.

    Raises:
        AnalysisError: records that must not stand beside each other.
    """
    records = [r for r in records if r.scale != "smoke" and r.task in SPECS]
    numbers = study(records, tuple(SPECS), folder, tuned)
    found = verdicts(claims, records, theory, folder, tuned)
    links = Links(out)
    measures = root.parent / "theory" / "fisher.json"
    views = claim_views(found, records, links, links.file(measures) if measures.is_file() else "")
    pictures, failures = picture_views(records, links)
    transcripts, language = transcript_views(records, links), language_views(records, links)
    content: dict[str, Any] = {
        "paper": paper,
        "answer": answer(found, numbers, records, links),
        "sizes": sorted({r.parameters for r in records if r.parameters}),
        "verdict_table": verdict_table(views) if records else None,
        "claims": views,
        "papers": paper_views(paper, numbers, records, links),
        "marks": paper.marks,
        "tasks": [task_view(t, links, root, records, tuned) for t in numbers.tasks.values()],
        "profile": profile_view(numbers, links),
        "whys": [why_view(t, links, root, records, tuned) for t in numbers.tasks.values()],
        "likelihood": likelihood_view(numbers, links),
        "fars": [
            v for v in (far_view(t, links, root, records, tuned) for t in numbers.tasks.values()) if v is not None
        ],
        "afters": [
            v for v in (after_view(t, links, root, records, tuned) for t in numbers.tasks.values()) if v is not None
        ],
        "pictures": pictures,
        "picture_failures": failures,
        "transcripts": transcripts,
        "language": language,
        "attribution": links.file(root.parent / "ATTRIBUTION.md") if (root.parent / "ATTRIBUTION.md").is_file() else "",
        "protocol": protocol_table(numbers, folder, links),
        "afterwards": [f"{t.spec.title}: {note}" for t in numbers.tasks.values() for note in afterwards(t.protocol)],
        "family": numbers.family,
        "machines": machine_table(records, links),
        "versions": version_lines(records),
        "data": data_lines(records),
        "missing_all": [w for t in numbers.tasks for w in missing_words(t, root, records, TIERS, tuned)],
        "records": record_groups(records, numbers, links),
        "count": len(records),
        "specs": SPECS,
        "arm_label": arm_label,
        "count_text": count_text,
        "swatch": draw.swatch,
        "palette": draw.palette(),
        "dark": draw.palette(dark=True),
        "css": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
    }
    # Last, for every part of the page may have asked for a pair.
    content["pairs"] = [(name, pair_table(c, links)) for name, c in sorted(links.pairs.items())]
    return content


def page(content: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["raw"] = Markup
    return environment.get_template("report.html.j2").render(content)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--paper", default=str(PAPER), help=f"the paper's numbers (default: {PAPER})")
    parser.add_argument("--claims", default=str(CLAIMS), help=f"the paper's claims (default: {CLAIMS})")
    parser.add_argument("--theory", default=str(THEORY), help=f"measures of the theory (default: {THEORY})")
    parser.add_argument("--out", default="results/report.html", help="the page (default: results/report.html)")
    options = parser.parse_args(argv)
    one_line_warnings()
    out, root = Path(options.out), Path(options.runs)
    try:
        paper = load_paper(options.paper)
        claims = load_claims(options.claims, paper.marks)
        text = page(context(load_records(root), paper, claims, load_theory(options.theory), out.parent, root))
    except (AnalysisError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(out, text)
    print(f"wrote {out} ({len(text.encode()) / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
