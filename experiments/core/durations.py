"""Durations in words."""

from __future__ import annotations


def duration(minutes: float) -> str:
    """Such as "45 min" or "3 h 20 min"."""
    whole = round(minutes)
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60:02d} min"
