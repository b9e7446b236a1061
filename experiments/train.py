"""Train one model with one optimizer and write the run record.

python -m experiments.train experiment=asr_cpu optimizer=fadam seed=3
python -m experiments.train -m experiment=asr_cpu optimizer=adamw_clip,fadam seed=1,2,3
"""

from __future__ import annotations

import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from experiments.core import resolvers as resolvers
from experiments.core.choices import unknown_keys
from experiments.core.errors import UserError


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Returns the run's objective, for sweepers that look for one."""
    from experiments.core.run import execute

    try:
        record = execute(cfg)
    except UserError as error:
        # A sweep goes on with its other runs and reports this one; a single run shows the sentence alone.
        if cfg.multirun:
            raise
        sys.exit(f"error: {error}")
    value: Any = record["objective"]["value"]
    return float("inf") if value is None else float(value)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is missing", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == 1:  # Hydra has refused the command line and named the key, but not what it might be
            print("\n".join(unknown_keys(sys.argv[1:])), file=sys.stderr)
        raise
