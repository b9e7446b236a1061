"""Where a run comes from: versions of packages, the commit of the code, the device."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "fadam", "torch", "torchaudio", "lightning", "hydra-core", "transformers", "datasets", "tokenizers",
    "torchmetrics", "numpy", "wandb",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run stands on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# Records and tables may come and go without changing what a run computes.
CODE = (".", ":!results", ":!README.md", ":!docs/use.md", ":!configs/tuned")


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _uncommitted() -> bool:
    return bool(_git("status", "--porcelain", "--", *CODE))


@functools.cache
def _first() -> tuple[str, bool]:
    return _git("rev-parse", "--short=12", "HEAD"), _uncommitted()


def commit() -> tuple[str, bool]:
    """Git commit of the code as this process began with it, and whether the tree differs from it or did then.

    Modules stay as they were read, whatever is pulled later. Outside a checkout it is "unknown".
    """
    try:
        head, dirty = _first()
        return head, dirty or _uncommitted() or bool(_git("diff", "--name-only", head, "--", *CODE))
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
