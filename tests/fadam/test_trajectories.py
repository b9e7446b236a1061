"""The check that a change is neutral."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.fadam import trajectories


def test_it_tells_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trajectories, "PATHS", {"single": {"foreach": False}, "fused": {"fused": True}})
    monkeypatch.setattr(trajectories, "DTYPES", (torch.float32,))
    monkeypatch.setattr(trajectories, "LARGE", 10)
    command, file = "trajectories", str(tmp_path / "before.json")
    monkeypatch.setattr(sys, "argv", [command, file])
    assert trajectories.main() == 0
    monkeypatch.setattr(sys, "argv", [command, "--compare", file])
    assert trajectories.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "20 trajectories compared, 0 differ"
    monkeypatch.setitem(trajectories.OPTIONS, "fixed", lambda: {"eps_mode": "fixed", "eps": 1.01e-3})
    assert trajectories.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "single, fixed, torch.float32",
        "fused, fixed, torch.float32",
        "20 trajectories compared, 2 differ",
    ]
