"""Made-up records of what the optimizer knows."""

from __future__ import annotations

from typing import Any

# By method: value at seed 1, and what each further seed adds.
VALUES = {"identity": (2.0, 0.1), "free": (1.8, 0.11), "empirical": (2.0, 0.1), "true": (1.7, 0.1), "none": (3.0, 0.0)}


def use(name: str) -> dict[str, Any]:
    rows = [
        {
            "seed": seed, "optimizer": optimizer, "method": method, "value": first + more * seed,
            "curve": [2.0, 2.5 + seed], "forgotten": first, "deviation": 0.1 * seed, "calibration": 0.01,
        }
        for seed in (1, 2, 3)
        for optimizer in ("FAdam", "AdamW")
        for method, (first, more) in VALUES.items()
    ]  # fmt: skip
    return {
        "schema": 1,
        "command": f"python -m examples.fisher {name}",
        "settings": {"sparsities": [0.2, 0.8]},
        "rows": rows,
    }


def tasks(rank: float = 0.95, ratio: float = 1.0) -> dict[str, Any]:
    """f_t is `ratio` + beta2 times the empirical Fisher information, 10 % more with seed 2."""

    def pair(value: float) -> dict[str, float]:
        return {"rank": rank, "ratio": value}

    rows = [
        {
            "task": task, "seed": seed, "batch": batch, "step": step, "lr": 0.1, "layer": layer,
            "entries": 5, "ceiling": 0.95, "excess": 0.25 * batch, "empirical_true": pair(1.1),
            "free": [
                {"beta2": b, "empirical": pair((ratio + b) * (1.1 if seed == 2 else 1)), "true": pair(2.0)}
                for b in (0.9, 0.999)
            ],
        }
        for task in ("asr", "llm", "vqvae")
        for seed in (1, 2)
        for batch in (2, 16)
        for step in (10, 100)
        for layer in (("head", "all") if batch == 16 else ("all",))
    ]  # fmt: skip
    settings = {"seeds": [1, 2], "batches": [2, 16], "betas2": [0.9, 0.999], "stages": [10, 100], "samples": 8}
    command = "python -m experiments.theory.tasks"
    return {"schema": 2, "command": command, "settings": settings, "versions": {"torch": "2.11.0"}, "rows": rows}
