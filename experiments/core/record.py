"""The run record: one JSON file a finished run, from which alone the tables, figures and verdicts are made."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.core.errors import StorageError
from experiments.core.files import write_whole

SCHEMA = 1
PACKAGES = (
    "fadam", "torch", "torchaudio", "lightning", "hydra-core", "transformers", "datasets", "tokenizers",
    "torchmetrics", "numpy", "wandb",
)  # fmt: skip
# Says where and how a run is watched, not what is computed.
NOT_HASHED = ("paths", "logger", "callbacks", "progress", "resume", "overwrite", "label", "multirun")


# Options younger than published records, which are hashed only where they are not at their default.
DEFAULTS = {"nonfinite_gradients": "keep"}


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what does not change the result, and without this machine's folders."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    folders = {str(path): f"<{name}>" for name, path in container.get("paths", {}).items()}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        if isinstance(value, str):
            for folder, name in sorted(folders.items(), key=lambda item: -len(item[0])):
                if value == folder or value.startswith(folder + os.sep):
                    return name + value[len(folder) :]
        return value

    kept = {str(k): v for k, v in container.items() if k not in NOT_HASHED and (k, v) not in DEFAULTS.items()}
    cleaned: dict[str, Any] = clean(kept)
    return cleaned


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a plain config, equal for equal configs on any machine."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def record_path(cfg: DictConfig) -> Path:
    """`<runs>/<task>/<scale>/<arm>/[<variant>-]<trial>-s<seed>.json`, beside the run's folder of the same name."""
    return Path(f"{cfg.paths.run_dir}.json")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file of ours; None where there is none, or half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def jsonable(value: Any) -> Any:
    """`value` for JSON; a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the whole record or nothing.

    Raises:
        StorageError: naming the file, and why it cannot be written.
    """
    text = json.dumps(jsonable(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_whole(path, text)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {os.strerror(error.errno or 0).lower()}") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run stands on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> tuple[str, bool]:
    """Git commit of the code and whether the tree differs from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        # Records and tables may come and go without changing what a run computes.
        changed = git("status", "--porcelain", "--", ".", ":!results", ":!README.md", ":!configs/tuned")
        return git("rev-parse", "--short=12", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "unknown", True


def device_name(accelerator: str) -> str:
    """The device's name in words, such as "NVIDIA H200" or "AMD EPYC (x86_64)"."""
    import torch

    if accelerator == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({platform.machine()})"
    except OSError:
        pass
    return platform.processor() or platform.machine()
