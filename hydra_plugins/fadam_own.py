"""Lets Hydra find somebody's own task: with `hydra.searchpath=[own://<folder>]`, `<folder>/<name>.yaml` is
`experiment=<name>`.

Hydra takes such sources from this namespace alone, and imports the module at every start: torch is not imported here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf


class OwnTaskSource(ConfigSource):
    """The configs of a folder, completed by those of configs/own. What they name is imported from there too."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.folder = Path(self.path).resolve()
        if str(self.folder) not in sys.path:
            sys.path.append(str(self.folder))

    @staticmethod
    def scheme() -> str:
        return "own"

    def _file(self, config_path: str) -> Path | None:
        group, _, name = config_path.rpartition("/")
        path = self.folder / f"{name.removesuffix('.yaml')}.yaml"
        return path if group == "experiment" and path.is_file() else None

    def load_config(self, config_path: str) -> ConfigResult:
        from experiments.core.declared import read

        path = self._file(config_path)
        assert path is not None
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(dict(read(path).experiment)),
            header={"package": "_global_"},
        )

    def available(self) -> bool:
        return self.folder.is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "experiment")

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path != "experiment" or results_filter == ObjectType.GROUP:
            return []
        return sorted(path.stem for path in self.folder.glob("*.yaml"))
