"""Write the numbers of docs/use.md from the published records, between its marks. `make tables` calls it.

python -m scripts.use_page
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.analysis import bowls, verdicts
from experiments.analysis.comparisons import Study
from experiments.analysis.tables import gain_text
from experiments.core.catalogue import arm, task, where
from experiments.core.errors import UserError
from experiments.core.files import END, between, write_whole
from experiments.core.plan import CONFIGS
from experiments.core.protocol import rate
from experiments.core.table import Cell, Table, word

PAGE, BASE = Path("docs/use.md"), "../results/"
PAIR = ("adamw_clip", "fadam")
UNDECIDED = "The second study has not come to this yet; `make tables` puts it here when its runs are published."


def table(header: Sequence[str], rows: Sequence[Sequence[Cell | str]], *notes: str) -> str:
    """A Markdown table, or that there is nothing yet."""
    if not rows:
        return UNDECIDED
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Table("", tuple(header), cells, notes).markdown(BASE)


def answer(study: Study) -> str:
    """FAdam against AdamW with clipping on each task."""
    lines = []
    for c in verdicts.main_comparisons(study):
        p = c.protocol
        lines.append(f"- [{where(p.task, p.variant)}]({BASE}tables/{p.task}.md): {verdicts.sentence(c)}")
    return "\n".join(lines)


def learning_rates(study: Study) -> str:
    """The tuned rates of both, by study; before the second study, those of configs/tuned."""
    rows: list[list[Cell | str]] = []
    factors = []
    for p in study.protocols:
        found = bowls.bowls(study.table, p)
        chosen = study.tuned[p.name]
        if set(PAIR) <= set(chosen):
            rates = {name: rate(chosen[name].step) for name in PAIR}
            factors.append(rates["fadam"] / rates["adamw_clip"])
            widths = [
                f"{'≥ ' if found[name].open else ''}{found[name].width:.1f}" if name in found else "–" for name in PAIR
            ]
            size = f", {p.size:g} M parameters" if p.size else ""
            place = Cell(where(p.task, p.variant) + size, href=f"tables/{p.task}.md")
            rows.append([place, *(f"{rates[name]:g}" for name in PAIR), f"{factors[-1]:.2g}", " and ".join(widths)])
    header = ("study", f"{arm(PAIR[0]).label}, tuned", f"{arm(PAIR[1]).label}, tuned", "factor", "widths of the bowls")
    if rows:
        ends = dict.fromkeys(f"{factor:.2g}" for factor in (min(factors), max(factors)))
        between = f"FAdam's tuned rate was {' to '.join(ends)} times AdamW's."
        return (
            f"{between}\n\n{table(header, rows, 'A width is the factor between rates within `matters` of the best.')}"
        )
    before: list[list[Cell | str]] = []
    for path in sorted((CONFIGS / "tuned").glob("*.yaml")):
        rates = {name: found["lr"] for name, found in yaml.safe_load(path.read_text(encoding="utf-8"))["tuned"].items()}
        if set(PAIR) <= set(rates):
            factor = rates["fadam"] / rates["adamw_clip"]
            named = f"[`configs/tuned/{path.name}`](../configs/tuned/{path.name})"
            before.append([named, *(f"{rates[name]:g}" for name in PAIR), f"{factor:.2g}"])
    return (
        "The second study has not tuned both yet. Chosen before it, on one seed and a factor of 2 between rates:\n\n"
        + table(header[:4], before)
    )


def of_claims(study: Study, *claims: str) -> str:
    """The comparisons that some claims rest on."""
    found = [c for c in study.comparisons if c.comparison.claim in claims and c.verdict.pairs]
    rows: list[list[Cell | str]] = []
    for c in found:
        p = c.protocol
        arms = f"{arm(c.comparison.challenger).label} against {arm(c.comparison.baseline).label}"
        place = Cell(where(p.task, p.variant), href=f"tables/{p.task}.md")
        rows.append([place, arms, c.metric.title, gain_text(c), word(verdicts.word(c))])
    return table(("task", "comparison", "measure", "gain [interval]", "word"), rows)


def epsilon(study: Study) -> str:
    """The grid of epsilon and gradient scale: its picture, and how far each optimizer strays."""
    parts = []
    for name, (points, verdict) in study.grids.items():
        p = study.planners[name].protocol
        if points:
            says = "gain at each epsilon and scale of the gradients, against the optimizer's own result at 1e-8 and 1"
            parts.append(f"![{where(p.task, p.variant)}: {says}]({BASE}figures/{name}-epsilon.png)")
            words = verdicts.grid_words(verdict, task(p.task).metric(p.metric.name), p.matters)
            count = f"{verdict.done} of {verdict.planned} runs"
            parts.append(f"[{where(p.task, p.variant)}]({BASE}tables/{p.task}.md), {count}: {words}")
    return "\n\n".join(parts) or UNDECIDED


def cost(results: Path) -> str:
    """Time and memory of a fused step over fused AdamW's."""
    content: dict[str, Any] = json.loads((results / "bench" / "step.json").read_text(encoding="utf-8"))
    rows: list[list[Cell | str]] = []
    for s in content["sections"]:
        ours, theirs = s["rows"].get("FAdam fused"), s["rows"].get("AdamW fused")
        if not ours or not theirs:
            continue
        place = Cell(f"{s['title']}, {s['threads']} thread{'s' * (s['threads'] > 1)}", href="bench/step.md")
        around = f"{ours['ratio']:.2f} ({ours['ratio_q1']:.2f}–{ours['ratio_q3']:.2f})"
        memory = ours.get("memory_ratio")
        rows.append(
            [place, f"{s['parameters'] / 1e6:,.1f} M", around, "–" if memory is None else f"{memory:.2f}",
             s["device"].upper()]
        )  # fmt: skip
    note = f"Medians and quartiles, {content['device']}, {content['date'][:10]}: `{content['command']}`."
    return table(("model", "parameters", "time over AdamW's", "memory over AdamW's", "device"), rows, note)


def blocks(study: Study, results: Path) -> dict[str, Callable[[], str]]:
    """What stands between which marks."""
    return {
        "answer": lambda: answer(study),
        "learning rates": lambda: learning_rates(study),
        "clipping": lambda: of_claims(study, "C7"),
        "weight decay": lambda: of_claims(study, "C8"),
        "epsilon": lambda: epsilon(study),
        "cost": lambda: cost(results),
    }


def filled(text: str, made: dict[str, Callable[[], str]]) -> str:
    """`text` with each block between its marks.

    Raises:
        AnalysisError: the marks of one are missing.
    """
    for name, block in made.items():
        begin = f"<!-- begin: {name}, made by `make tables` -->"
        text = between(text, begin, block, f"{PAGE} lacks the lines {begin!r} and {END!r}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.use_page", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--published", type=Path, default=Path("results/runs"), help="default: results/runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where bench is (default: results)")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"default: {PAGE}")
    options = parser.parse_args(argv)
    try:
        text = options.page.read_text(encoding="utf-8")
        write_whole(options.page, filled(text, blocks(Study([options.published]), options.results)))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote the numbers of {options.page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
