"""Is a change of the optimizer neutral? Hashes of parameters and states after some steps, on every path of the CPU.

python -m tests.fadam.trajectories before.json              # before the change
python -m tests.fadam.trajectories --compare before.json    # after it, on the same machine

Hashes of two machines differ: their kernels add up in other orders.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fadam import FAdam
from tests.fadam.cases import PATHS, leaves, tensors

OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "defaults": dict,
    "decay": lambda: {"lr": 0.03, "weight_decay": 0.5, "clip": 0.3},
    "no clip, no decay": lambda: {"clip": None, "weight_decay": 0.0, "maximize": True},
    "rho 0.7, scaled": lambda: {"fim_rho": 0.7, "eps_mode": "scaled", "eps": 0.5},
    "fixed": lambda: {"eps_mode": "fixed", "eps": 1e-3, "betas": (0.5, 0.9)},
    "gradient": lambda: {"momentum_mode": "gradient", "correct_momentum": True},
    "decoupled": lambda: {"decay_mode": "decoupled", "correct_momentum": True},
    "narrow": lambda: {"momentum_dtype": "bfloat16", "fim_dtype": "float16"},
    "rounding": lambda: {"stochastic_rounding": True, "lr": 0.05, "fim_dtype": "float32"},
    "rate": lambda: {"lr": torch.tensor([0.02])},
}
DTYPES = (torch.float32, torch.bfloat16, torch.complex64)
LARGE = 140_000  # elements of a float32 tensor: two blocks of the loops, and several chunks of the fused step


def values(dtype: torch.dtype, seed: int, scale: float) -> list[Tensor]:
    if dtype != torch.float32:
        return list(tensors(dtype, seed, scale))
    return [*tensors(dtype, seed, scale), scale * torch.randn(LARGE, generator=torch.Generator().manual_seed(seed))]


def trajectory(dtype: torch.dtype, options: dict[str, Any], steps: int = 3) -> str:
    """A hash of all parameters and states after steps with gradients from tiny to large, with zeros among them."""
    params = leaves(values(dtype, 1000, 1.0))
    opt = FAdam([{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.1}], **options)
    for t in range(1, steps + 1):
        for p, g in zip(params, values(dtype, t, 10.0 ** (3 * t - 8)), strict=True):
            p.grad = g.clone()
            if p.dim() > 0:
                p.grad[::3] = 0
        opt.step()
    digest = hashlib.sha256()
    for p in params:
        for x in (p.detach(), *opt.state[p].values()):
            digest.update(x.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trajectories() -> dict[str, str]:
    """One hash a path, set of options and dtype."""
    found = {}
    for path, case, dtype in itertools.product(PATHS, OPTIONS, DTYPES):
        found[f"{path}, {case}, {dtype}"] = trajectory(dtype, {**OPTIONS[case](), **PATHS[path]})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--compare", action="store_true", help="with what the file holds, instead of writing it")
    args = parser.parse_args()
    found = trajectories()
    if not args.compare:
        args.file.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} trajectories")
        return 0
    before = json.loads(args.file.read_text())
    different = [name for name, value in before.items() if found.get(name) != value]
    print("\n".join([*different, f"{len(before)} trajectories compared, {len(different)} differ"]))
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
