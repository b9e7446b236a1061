"""Run the four examples and keep what they gave, one small record a use.

    python -m examples.fisher [USE ...] [--seeds 1,2,3,4,5] [--out runs/fisher]

What a record has already, from the same settings, is not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.fisher import common, consolidation, laplace, merging, pruning
from experiments.core.files import write_whole

USES = {"merging": merging, "consolidation": consolidation, "pruning": pruning, "laplace": laplace}
SEEDS = (1, 2, 3, 4, 5)


def settings(use: str) -> dict[str, Any]:
    """The numbers that a result depends on: all constants of the example and of what it shares."""
    found: dict[str, Any] = {}
    for module in (common, consolidation, USES[use]):
        found |= {name.lower(): value for name, value in vars(module).items() if name.isupper()}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def record(path: Path, use: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Add to the record what it lacks, writing it after each run."""
    # Python's own modules are one of the domains.
    versions = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    kept: dict[str, Any] = {
        "schema": 1, "use": use, "command": f"python -m examples.fisher {use}", "settings": settings(use),
        "versions": versions, "rows": [],
    }  # fmt: skip
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["settings"] == kept["settings"]:
            kept["rows"] = old["rows"]
    done = {(row["seed"], row["optimizer"]) for row in kept["rows"]}
    every = list(itertools.product(seeds, common.RATES))
    for number, (seed, optimizer) in enumerate(every, 1):
        if (seed, optimizer) in done:
            continue
        start = time.process_time()
        rows = USES[use].run(seed, optimizer)
        kept["rows"] += [{"seed": seed, "optimizer": optimizer, **rounded(row)} for row in rows]
        write_whole(path, json.dumps(kept, indent=1) + "\n")
        shown = ", ".join(f"{row['method']} {row['value']:.4f}" for row in rows)
        took = f"{time.process_time() - start:.0f} s"
        print(f"{use} {number} of {len(every)}: seed {seed}, {optimizer}: {shown} ({took})", flush=True)
    return kept


def rounded(value: Any) -> Any:
    """Floats with six digits, so that a record stays small."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.fisher", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("uses", nargs="*", metavar="USE", help=f"of {', '.join(USES)} (default: all)")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="default: 1,2,3,4,5; 0 tunes")
    parser.add_argument("--out", default="runs/fisher", help="folder of the records (default: runs/fisher)")
    options = parser.parse_args(argv)
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in options.seeds.split(",")))
    except ValueError:
        seeds = []
    unknown = [use for use in options.uses if use not in USES]
    if unknown:
        print(f"error: USE={unknown[0]} is not allowed; USE must be one of {', '.join(USES)}", file=sys.stderr)
        return 2
    if not seeds or consolidation.TUNING_SEED in seeds:
        said = "whole numbers other than 0, which tunes, separated by commas"
        print(f"error: --seeds={options.seeds} is not allowed; --seeds must be {said}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap takes attention sample by sample
    for use in options.uses or USES:
        record(Path(options.out) / f"{use}.json", use, seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
