"""Train one model with one optimizer and write the run record.

python -m experiments.train experiment=asr_cpu optimizer=fadam seed=3
python -m experiments.train -m experiment=asr_cpu optimizer=adamw_clip,fadam seed=1,2,3
python -m experiments.train experiment=llm_cpu debug=fast

Leaves with status 0 when every record is there, 2 for a person's mistake, told in a sentence, 130 after Ctrl-C, 143
after SIGTERM.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.core import menu, stopping
from experiments.core import resolvers as resolvers
from experiments.core.command import MISTAKE, in_a_sentence, leave
from experiments.core.errors import UserError
from experiments.core.sweep import Watch


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Returns the run's objective, for sweepers that look for one."""
    stopping.watch()
    watch = Watch(cfg.label, HydraConfig.get().job.num + 1 if cfg.multirun else 1)
    from experiments.core.run import execute

    try:
        record = execute(cfg)
    except SystemExit as end:
        if stopping.in_worker() and end.code == stopping.TERMINATED:
            # Told of it, the sweep would hand this process its next run before it ends.
            sys.stdout.flush()
            os._exit(stopping.TERMINATED)
        raise
    except Exception as error:
        sentence = in_a_sentence(error)
        if sentence is None:
            raise
        if not cfg.multirun:
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(MISTAKE)
        watch.end(None)
        # A sweep goes on with its other runs, and counts this one; see hydra_plugins/fadam_sweeper.py.
        print(f"error: {' '.join(HydraConfig.get().overrides.task)}: {sentence}", file=sys.stderr, flush=True)
        raise UserError(sentence) from None
    watch.end(record)
    value: Any = record["objective"]["value"]
    return float("inf") if value is None else float(value)


if __name__ == "__main__":
    menu.show_if_asked(__doc__, sys.argv[1:])
    leave(main)
