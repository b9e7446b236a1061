"""A fixture of the tests of fadam."""

from __future__ import annotations

import pytest


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops that other devices than the CPU have, on the CPU."""
    monkeypatch.setattr("fadam.backend.fits", lambda *_: False)
