"""What a run says of its place in a sweep."""

from __future__ import annotations

import datetime
from pathlib import Path

from experiments.core import sweep


def test_the_time_left_is_that_of_the_runs_that_were_made(tmp_path: Path) -> None:
    made = sweep.Sweep(runs=6, jobs=2, folder=str(tmp_path / "sweep"))
    assert made.end(None) == "1 of 6 runs are done"
    assert made.end(100.0) == "2 of 6 runs are done; about 3 min left"
    assert made.end(200.0) == "3 of 6 runs are done; about 4 min left"
    assert made.end(None) == "4 of 6 runs are done; about 2 min left"
    assert made.end(150.0) == "5 of 6 runs are done; about 1 min left"
    assert made.end(150.0) == "6 of 6 runs are done"


def test_a_run_alone_says_nothing(capsys, monkeypatch) -> None:
    monkeypatch.delenv(sweep.VARIABLE, raising=False)
    watch = sweep.Watch("asr/cpu fadam main-s1", 1)
    watch.end(None)
    assert capsys.readouterr().out == ""


def test_a_run_of_a_sweep_says_its_number(capsys, tmp_path: Path, monkeypatch) -> None:
    label, now = "asr/cpu fadam main-s1", datetime.datetime.now(datetime.timezone.utc)
    with sweep.Sweep(3, 1, str(tmp_path)).announced():
        for number, started in ((1, now), (2, now - datetime.timedelta(days=1))):
            sweep.Watch(label, number).end({"started": started.isoformat(timespec="seconds")})
        with monkeypatch.context() as patch:
            patch.setenv("LOCAL_RANK", "1")
            sweep.Watch(label, 3).end(None)
    assert sweep.current() is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("; about")[0].removeprefix(f"{label}: ") for line in lines] == [
        "run 1 of 3", "1 of 3 runs are done", "run 2 of 3", "2 of 3 runs are done",
    ]  # fmt: skip
    assert (tmp_path / sweep.ENDED).read_text().splitlines()[1] == "-"
