"""Composing the configs, and what might have been meant where the command line names a key that they do not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from experiments.core import resolvers as resolvers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def composed(*words: str, hydra: bool = False) -> DictConfig:
    """The config of a run, from the words of its command line; `hydra`: with Hydra's own part."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(words), return_hydra_config=hydra)


def _first_choice(value: str) -> str:
    return value.split(",")[0]


def unknown_keys(words: Sequence[str]) -> Iterator[str]:
    """A sentence for each override `a.b=value` whose key does not exist, naming the keys that do.

    Args:
        words: command-line arguments of `experiments.train`.
    """
    pairs = [word.partition("=")[::2] for word in words if "=" in word and word[0].isalpha()]
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    chosen = [f"{key}={_first_choice(value)}" for key, value in pairs if key in groups or key == "hydra.searchpath"]
    try:
        cfg = composed(*chosen)
    except Exception:
        return  # a choice itself is wrong, and Hydra has listed the choices
    for key, _ in pairs:
        if key in groups or key.startswith("hydra"):
            continue
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        # `name in node` would not see an option that is still to be given, such as `value` of vary=gradient_scale.
        if isinstance(node, DictConfig) and name not in list(node):
            options = ", ".join(str(k) for k in node if not str(k).startswith("_"))
            yield f"error: {parent or 'the config'} has no option {name!r}; its options are {options}"
