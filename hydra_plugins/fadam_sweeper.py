"""Hydra's basic sweeper, which looks at all runs of a sweep before it starts the first.

Hydra takes sweepers from this namespace alone, and imports the module at every start: torch is not imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig


class FadamSweeper(BasicSweeper):
    """Refuses a sweep of which two runs would share a record or one has an option that is not allowed. Goes on where a
    run is refused, and then leaves with status 2.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.records: dict[str, Sequence[str]] = {}

    def setup(self, **words: Any) -> None:
        """Makes the launcher.

        Raises:
            UserError: it would send jobs to SLURM, and this machine has none.
        """
        from experiments.core.checks import check_launcher

        check_launcher(words["config"].hydra.launcher._target_)
        super().setup(**words)
        assert self.launcher is not None
        self.launcher = self.tally = _Tally(self.launcher, words["config"])

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes the config of each run.

        Raises:
            UserError: two runs would share a record, or an option is not allowed. Names the runs.
        """
        from experiments.core.checks import check_choices
        from experiments.core.errors import ConfigError
        from experiments.core.length import fit_length

        assert self.hydra_context is not None
        assert self.config is not None
        hydra = HydraConfig.instance()
        before = hydra.cfg
        try:
            for overrides in batch:
                cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                hydra.set_config(cfg)
                fit_length(cfg)
                check_choices(cfg)
                record = f"{cfg.paths.run_dir}.json"
                other = self.records.setdefault(record, overrides)
                if other is not overrides:
                    mine, theirs = (
                        " ".join(sorted(set(words) - set(others))) or "the same words twice"
                        for words, others in ((overrides, other), (other, overrides))
                    )
                    raise ConfigError(
                        f"two runs of this sweep would share the record {record}: {theirs}, and {mine}; put what "
                        "differs into its name, such as 'trial=lr${optimizer.lr}'"
                    )
        finally:
            hydra.cfg = before

    def sweep(self, arguments: list[str]) -> Any:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            done = super().sweep(arguments)
        except TerminatedWorkerError:
            print(
                "error: a run's process was killed, which is what the system does where memory ends; "
                "the same command goes on with what is missing",
                file=sys.stderr,
            )
            sys.exit(1)
        if self.tally.refused:
            print(f"error: {self.tally.refused} of {self.tally.runs} runs have no record", file=sys.stderr)
            sys.exit(2)
        return done


class _Tally(Launcher):
    """A launcher that counts the runs that were refused, each of which has said so, and hands on the others."""

    def __init__(self, launcher: Launcher, config: DictConfig) -> None:
        self.launcher, self.config, self.runs, self.refused = launcher, config, 0, 0

    def setup(self, **words: Any) -> None:
        self.launcher.setup(**words)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from experiments.core.errors import UserError
        from experiments.core.sweep import Sweep

        options, runs = self.config.hydra.launcher, len(job_overrides)
        jobs = options.get("n_jobs", options.get("array_parallelism", 1))
        sweep = Sweep(runs, min(jobs if jobs > 0 else os.cpu_count() or 1, runs), str(self.config.hydra.sweep.dir))
        with sweep.announced():
            done = self.launcher.launch(job_overrides, initial_job_idx)
        kept = [job for job in done if job.status != JobStatus.FAILED or not isinstance(job._return_value, UserError)]
        self.runs += len(done)
        self.refused += len(done) - len(kept)
        return kept
