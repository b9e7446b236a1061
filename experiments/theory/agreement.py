"""How near a machine's own records come to the published ones. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Record = Mapping[str, Any]
# What a row is of; all its other numbers are what was found.
KEYS = (
    "task", "seed", "batch", "step", "layer", "optimizer", "method", "model", "situation", "likelihood", "stage",
)  # fmt: skip


def _numbers(value: Any, place: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], float]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(inner, (*place, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(inner, (*place, i))
    elif isinstance(value, int | float):
        yield place, float(value)


def numbers(record: Record) -> dict[tuple[object, ...], float]:
    """Every number that was found, by the row that it is of and its name there."""
    found: dict[tuple[object, ...], float] = {}
    for row in record.get("rows", record.get("cases", ())):
        of = tuple(row[key] for key in KEYS if key in row)
        found |= _numbers({name: value for name, value in row.items() if name not in KEYS}, of)
    return found


def compared(name: str, published: Record, own: Record) -> str:
    """A sentence."""
    if published["settings"] != own["settings"]:
        return f"{name}: made with other settings than the published record, so not compared."
    theirs, ours = numbers(published), numbers(own)
    common = theirs.keys() & ours.keys()
    part = "" if len(common) == len(theirs) == len(ours) else f" of {len(theirs)} published and {len(ours)} own ones"
    pairs = [(theirs[k], ours[k]) for k in common if not (theirs[k] == ours[k] or math.isnan(theirs[k] + ours[k]))]
    away = sorted(abs(a - b) / max(abs(a), abs(b)) for a, b in pairs)
    versions = [
        f"{library} {version} there and {own['versions'].get(library)} here"
        for library, version in published.get("versions", {}).items()
        if own.get("versions", {}).get(library) != version
    ]
    with_others = f" ({', '.join(versions)})" if versions else ""
    if not away:
        return f"{name}: {len(common)} numbers{part}, all the same to the last digit{with_others}."
    middle = away[len(away) // 2]
    return (
        f"{name}: {len(common)} numbers{part}, {len(common) - len(away)} the same to the last digit, the others apart "
        f"by {middle:.1g} in the middle and {away[-1]:.1g} at most, relative{with_others}."
    )
