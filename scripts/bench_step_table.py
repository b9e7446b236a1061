"""The table of scripts.bench_step, made from its numbers alone.

python -m scripts.bench_step_table results/bench/step.json    writes results/bench/step.md again
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.core.files import write_whole

Row = dict[str, Any]
BASE, OURS, PORT, COPY = "AdamW fused", "FAdam fused", "pytorch_optimizer FAdam", "copy"


# ---- the goals ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Goal:
    text: str
    figure: str
    limit: float
    at_most: bool
    device: str = ""  # "" for what has neither device nor set
    sets: tuple[str, ...] = ()
    row: str = OURS


CONFORMERS = ("conformer_s", "conformer_cpu")
ALL = ("gpt2", *CONFORMERS, "gpt2_bf16", "conformer_s_bf16")
GOALS = (
    Goal("GPU: step over fused AdamW's", "ratio", 1.5, True, "cuda", ("gpt2", "llama")),
    Goal("GPU: share of copy bandwidth at 44 bytes a parameter", "share", 0.8, False, "cuda", ("gpt2", "llama")),
    Goal("CPU: step over fused AdamW's", "ratio", 1.7, True, "cpu", ("gpt2",)),
    Goal("CPU, small tensors: step over fused AdamW's", "ratio", 2.5, True, "cpu", CONFORMERS),
    Goal("CPU: the public port's step over ours", "port", 8.0, False, "cpu", ("gpt2", *CONFORMERS)),
    *(
        Goal(f"CPU: the public port's step over {row}", "port", 1.0, False, "cpu", ALL, row)
        for row in ("FAdam for", "FAdam foreach")
    ),
    *(
        Goal(f"CPU: memory of {row} over fused AdamW's", "memory_ratio", 1.05, True, "cpu", ("gpt2",), row)
        for row in ("FAdam for", "FAdam foreach")
    ),
    # The resident set is counted in pages by several threads: no finer than about a percent.
    Goal("CPU: memory over fused AdamW's", "memory_ratio", 1.01, True, "cpu", ("gpt2",)),
    Goal("GPU: memory over fused AdamW's", "memory_ratio", 1.01, True, "cuda", ("gpt2", "llama")),
    Goal("`import fadam` after `import torch`, ms", "import_ms", 50.0, True),
    Goal("collectives a step, sharded over two processes", "collectives", 2.0, True),
)


def verdict(goal: Goal, value: float | None, reason: str = "") -> str:
    if value is None:
        return f"not measured: {reason}"
    if value <= goal.limit if goal.at_most else value >= goal.limit:
        return "met"
    return f"missed by {abs(value - goal.limit):.2f} ({abs(value / goal.limit - 1):.0%})"


def judge(document: Row) -> list[Row]:
    """A verdict for every goal in every place where it holds."""
    verdicts: list[Row] = []

    def add(goal: Goal, place: str, value: float | None, reason: str = "") -> None:
        word = verdict(goal, value, reason)
        bound = f"at {'most' if goal.at_most else 'least'} {goal.limit:g}"
        verdicts.append({"goal": goal.text, "limit": bound, "where": place, "value": value, "verdict": word})

    for goal in GOALS:
        if goal.figure == "import_ms":
            add(goal, "", document["import"]["added_ms"])
        elif goal.figure == "collectives":
            row = document["sharded"]["rows"][OURS]
            add(goal, "", row.get("collectives"), row.get("reason", ""))
        for name in goal.sets:
            places = [s for s in document["sections"] if s["set"] == name and s["device"] == goal.device]
            # Memory is the same with any number of threads.
            for section in places[:1] if goal.figure == "memory_ratio" else places:
                row = section["rows"][goal.row]
                add(goal, where(section), row.get(goal.figure), row.get("reason", "nothing to compare with"))
            if not places:
                no_gpu = goal.device == "cuda" and not document["gpu"]
                add(goal, document["titles"][name], None, "no GPU here" if no_gpu else "left out of this run")
    return verdicts


def where(section: Row) -> str:
    threads = f"{section['threads']} thread" + ("s" if section["threads"] != 1 else "")
    return f"{section['title']}, {'GPU' if section['device'] == 'cuda' else threads}"


# ---- the table ------------------------------------------------------------------------------------------------------
def grouped(row: Row, key: str, digits: int = 2) -> str:
    if row.get(key) is None:
        return "–"
    return f"{row[key]:.{digits}f} ({row[f'{key}_q1']:.{digits}f}–{row[f'{key}_q3']:.{digits}f})"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (headings, rule, *lines)]


def section_table(section: Row) -> list[str]:
    gpu = section["device"] == "cuda"
    headings = ["optimizer", "ms a step", "over AdamW fused", "port over it", "GB/s", "of copy", "memory", "operators"]
    if gpu:
        headings += ["launches", "host ms"]
    lines = []
    for name, row in section["rows"].items():
        if "reason" in row:
            lines.append([name, f"not available: {row['reason']}", *[""] * (len(headings) - 2)])
            continue
        memory = row.get("memory")
        cells = [
            name,
            f"{1000 * row['seconds']:.{3 if row['seconds'] < 0.01 else 1}f}",
            grouped(row, "ratio"),
            grouped(row, "port", 1),
            f"{row['bytes_per_second'] / 1e9:.1f}",
            f"{row['share']:.0%}",
            "–" if memory is None else f"{memory / 4 / section['parameters']:.2f}",
            str(row.get("operators", "–")),
        ]
        if gpu:
            cells += [str(row.get("launches", "–")), f"{1000 * row.get('host_seconds', math.nan):.3f}"]
        lines.append(cells)
    return [
        f"## {where(section)}",
        "",
        f"{section['parameters']:,} parameters in {section['tensors']} tensors, {len(section['rounds'])} rounds, copy "
        f"{section['copy_bytes_per_second'] / 1e9:.1f} GB/s (reading and writing).",
        "",
        *table(headings, lines),
        "",
    ]


def goal_table(verdicts: Sequence[Row]) -> list[str]:
    lines = [
        [v["goal"], v["where"], v["limit"], "–" if v["value"] is None else f"{v['value']:.2f}", v["verdict"]]
        for v in verdicts
    ]
    return table(["goal, for FAdam fused where it names no other", "where", "limit", "measured", "verdict"], lines)


def report(document: Row) -> str:
    added, sharded = document["import"], document["sharded"]
    changed = " with changes" if document["dirty"] else ""
    shard_lines = [
        [name, str(row["collectives"]) if "collectives" in row else f"not available: {row['reason']}"]
        for name, row in sharded["rows"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        "# What one optimizer step costs",
        "",
        f"`{document['command']}`, {document['date'][:10]}, commit {document['commit']}{changed}, "
        f"{document['device']}, {document['cores']} cores, load {document['load']:.1f} at the start and "
        f"{document['load_end']:.1f} at the end, {document['minutes']:.1f} minutes; {versions}. All times stand in the "
        ".json beside this file; what was tried, and why what is missed is missed, in [log.md](log.md).",
        "",
        "Float32, or bfloat16 weights and gradients where a title says so, with FAdam's states in float32 and "
        "AdamW's in bfloat16; GB/s and memory are counted as for float32. One process steps all optimizers in turn, "
        "round after round, in an order drawn anew; on a CPU the "
        f"slow ones ({', '.join(document['slow'])}) join one round in {document['slow_every']}.",
        "",
        "- Times are medians; ratios are medians (and quartiles) of ratios within rounds; *port over it* is the public "
        "port's time over the row's.",
        "- *GB/s* counts 28 bytes a parameter for AdamW and 44 for FAdam, whatever was really moved, so that a step "
        "which saves a pass can exceed 100% *of copy*: a copy of as much memory, measured in the same rounds.",
        "- *Memory* is the peak beside weights and gradients, in parameters (two states are 2): on a CPU the resident "
        "peak of a process of its own, within 0.3 MB, on a GPU the allocator's.",
        "- *Operators* are those that Python hands to torch in a step. A foreach operator is one, though on a CPU it "
        "is a loop over tensors; a call of an extension may be none.",
        "- Gradients are normal numbers of standard deviation 1e-3, so that eps_t = eps; the row *eps_t < eps* has "
        "1e-8, the rare case in which more has to be computed.",
        "- The optimizers of a set above 1 GB share weights, gradients and states, which no cache holds; in the others "
        "each has its own, cold when its turn comes.",
        "",
        "## Goals",
        "",
        *goal_table(document["goals"]),
        "",
    ]
    for section in document["sections"]:
        lines += section_table(section)
    lines += [
        "## Import",
        "",
        f"`import torch` takes {added['torch_ms']:.0f} ms, `import fadam` after it {grouped(added, 'added_ms', 1)} ms "
        f"({len(added['pairs_ms'])} fresh processes).",
        "",
        "## Sharded over two processes",
        "",
        f"Collectives of one step, {sharded['tensors']} tensors ({sharded['title']}) as DTensors on two gloo "
        "processes; on one process no optimizer needs any.",
        "",
        *table(["optimizer", "collectives"], shard_lines),
        "",
    ]
    return "\n".join(lines)


def headline(section: Row) -> str:
    def figure(name: str) -> str:
        row = section["rows"][name]
        return f"{name} not available" if "reason" in row else f"{name} {1000 * row['seconds']:.2f} ms"

    return f"{where(section)}: {', '.join(map(figure, (BASE, OURS, PORT)))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", help="the .json that scripts.bench_step wrote")
    path = Path(parser.parse_args().numbers)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["goals"] = judge(document)
        text = report(document)
    except OSError as error:
        sys.exit(f"error: {path}: {error.strerror}")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"error: {path} holds no numbers of scripts.bench_step")
    write_whole(path.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
