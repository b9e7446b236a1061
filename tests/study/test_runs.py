"""How the runner ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.core.records import Records
from experiments.core.stopping import INTERRUPTED
from experiments.study import runs


class Ended:
    """A pool whose process is told to end while it is at work."""

    going: frozenset[Path] = frozenset()
    closed = False

    def __init__(self, *_: object) -> None:
        pass

    def work(self, _: object) -> Iterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    def close(self) -> None:
        Ended.closed = True


def test_sigterm_ends_it_after_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "Pool", Ended)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            runs.run_all([], Records([tmp_path]), tmp_path, [], 1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"
    assert Ended.closed
