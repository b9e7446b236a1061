"""Hydra's basic sweeper, which looks at all runs of a sweep before it starts the first.

Hydra takes sweepers from this namespace alone, and imports the module at every start: torch is not imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig


class FadamSweeper(BasicSweeper):
    """Refuses a sweep of which two runs would share a record."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.records: dict[str, Sequence[str]] = {}

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes the config of each run.

        Raises:
            ConfigError: two runs would share a record. Names both.
        """
        from experiments.core.errors import ConfigError

        assert self.hydra_context is not None
        assert self.config is not None
        hydra = HydraConfig.instance()
        before = hydra.cfg
        try:
            for overrides in batch:
                cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                hydra.set_config(cfg)
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
        from experiments.core.errors import UserError

        try:
            return super().sweep(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
