"""The step benchmark on a set of three small tensors: every optimizer has a row, every goal a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.bench_step import Clock, left_out, line_up, main, summarise, timed_rounds
from scripts.bench_step_parts import CONTESTANTS, SETS, filled, reason_of, spread
from scripts.bench_step_table import BASE, COPY, GOALS, OURS, PORT, Goal, judge, report, section_table, verdict

pytestmark = pytest.mark.timeout(900)  # a dozen fresh processes: seconds, or minutes on a busy machine

CPU = torch.device("cpu")
SHAPES = [(64, 32), (32,), (1, 2)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "step"
    before = torch.get_num_threads()
    try:
        main(["--sets", "tiny", "--threads", "1", "--device", "cpu", "--quick", "--out", str(out)])
    finally:
        torch.set_num_threads(before)
    return out


@pytest.fixture
def document(written: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(written.with_suffix(".json").read_text())
    return loaded


def test_every_optimizer_has_a_row_with_its_figures(document: dict[str, Any]) -> None:
    (section,) = document["sections"]
    assert section["parameters"] == 2082
    assert section["tensors"] == 3
    assert list(section["rows"]) == list(CONTESTANTS)
    for name, row in section["rows"].items():
        if name == PORT and "reason" in row:
            assert "pytorch_optimizer" in row["reason"]  # the extra is not installed
        elif name.startswith(OURS) and "reason" in row:
            assert "fused" in row["reason"]  # no compiler here
        else:
            assert row["seconds"] > 0
            assert row["operators"] > 0 or name.startswith(OURS)
            assert row["memory"] is None or row["memory"] >= 0
    assert section["rows"][BASE]["ratio"] == 1.0
    assert len(section["rounds"]) == 2
    assert all(COPY in seconds and BASE in seconds for seconds in section["rounds"])


def test_import_and_collectives_are_measured(document: dict[str, Any]) -> None:
    assert document["import"]["added_ms"] > 0
    rows = document["sharded"]["rows"]
    assert rows["AdamW foreach"] == {"collectives": 0}
    assert rows["FAdam foreach"] == {"collectives": 2}


def test_every_goal_has_a_verdict(document: dict[str, Any]) -> None:
    goals = document["goals"]
    assert {g["goal"] for g in goals} == {goal.text for goal in GOALS}
    by_text = {g["goal"]: g for g in goals}
    assert by_text["CPU: step over fused AdamW's"]["verdict"] == "not measured: left out of this run"
    assert by_text["collectives a step, sharded over two processes"]["verdict"] == "met"


def test_the_table_is_made_from_the_numbers_alone(written: Path, document: dict[str, Any]) -> None:
    markdown = written.with_suffix(".md")
    text = markdown.read_text()
    assert text == report(document)
    lines = text.splitlines()
    for name in CONTESTANTS:
        assert any(line.startswith(f"| {name} |") for line in lines)
    for goal in GOALS:
        assert any(line.startswith(f"| {goal.text} |") for line in lines)
    markdown.unlink()
    command = [sys.executable, "-m", "scripts.bench_step_table", str(written.with_suffix(".json"))]
    subprocess.run(command, cwd=Path(__file__).resolve().parents[2], check=True)
    assert markdown.read_text() == text


def test_a_goal_says_by_how_much_it_is_missed() -> None:
    most, least = Goal("", "ratio", 1.6, True), Goal("", "port", 8.0, False)
    assert verdict(most, 1.6) == "met"
    assert verdict(most, 2.0) == "missed by 0.40 (25%)"
    assert verdict(least, 8.0) == "met"
    assert verdict(least, 6.0) == "missed by 2.00 (25%)"
    assert verdict(least, None, "no GPU here") == "not measured: no GPU here"


def test_goals_are_judged_on_every_thread_count_and_device(document: dict[str, Any]) -> None:
    row = {"ratio": 1.8, "port": 9.0, "share": 0.9, "memory_ratio": 1.0}
    places = [("cpu", 1), ("cpu", 2), ("cuda", 1)]
    rows = {OURS: row, "FAdam for": row, "FAdam foreach": {"port": 0.8, "memory_ratio": 1.2}}
    document["sections"] = [
        {"set": "gpt2", "title": "GPT-2", "device": device, "threads": threads, "rows": rows}
        for device, threads in places
    ]
    found = [(g["goal"], g["where"], g["verdict"]) for g in judge(document) if g["where"].startswith("GPT-2,")]
    assert found == [
        ("GPU: step over fused AdamW's", "GPT-2, GPU", "missed by 0.30 (20%)"),
        ("GPU: share of copy bandwidth at 44 bytes a parameter", "GPT-2, GPU", "met"),
        ("CPU: step over fused AdamW's", "GPT-2, 1 thread", "missed by 0.10 (6%)"),
        ("CPU: step over fused AdamW's", "GPT-2, 2 threads", "missed by 0.10 (6%)"),
        ("CPU: the public port's step over ours", "GPT-2, 1 thread", "met"),
        ("CPU: the public port's step over ours", "GPT-2, 2 threads", "met"),
        ("CPU: the public port's step over FAdam for", "GPT-2, 1 thread", "met"),
        ("CPU: the public port's step over FAdam for", "GPT-2, 2 threads", "met"),
        ("CPU: the public port's step over FAdam foreach", "GPT-2, 1 thread", "missed by 0.20 (20%)"),
        ("CPU: the public port's step over FAdam foreach", "GPT-2, 2 threads", "missed by 0.20 (20%)"),
        ("CPU: memory of FAdam for over fused AdamW's", "GPT-2, 1 thread", "met"),
        ("CPU: memory of FAdam foreach over fused AdamW's", "GPT-2, 1 thread", "missed by 0.15 (14%)"),
        ("CPU: memory over fused AdamW's", "GPT-2, 1 thread", "met"),
        ("GPU: memory over fused AdamW's", "GPT-2, GPU", "met"),
    ]


def test_an_optimizer_that_cannot_step_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(params: object) -> None:
        raise RuntimeError("fused=True is not available: no compiler. More about it\nand more")

    broken = CONTESTANTS[OURS].__class__(refuse, 44, 2.0)
    monkeypatch.setitem(CONTESTANTS, OURS, broken)
    ready = line_up(SETS["tiny"], SHAPES, CPU, lambda _: None)
    clock = Clock(CPU)
    rounds = timed_rounds(ready, 1, clock, lambda _: None)
    rows = summarise(rounds, ready, 2082, 8, {}, clock)
    assert rows[OURS] == {"reason": "fused=True is not available: no compiler."}
    section = {
        "title": "tiny", "device": "cpu", "threads": 1, "parameters": 2082, "tensors": 3, "rounds": rounds,
        "copy_bytes_per_second": 1.0, "rows": rows,
    }  # fmt: skip
    assert any("not available: fused=True is not available" in line for line in section_table(section))


def test_large_sets_share_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.bench_step.SHARED_ABOVE", 0)
    ready = line_up(SETS["tiny"], SHAPES, CPU, lambda _: None)
    assert not ready.reasons.keys() - {OURS, f"{OURS}, eps_t < eps", PORT}
    adamw, fadam = (ready.steps[name].__self__ for name in (BASE, "FAdam foreach"))
    for a, f in zip(adamw.param_groups[0]["params"], fadam.param_groups[0]["params"], strict=True):
        assert a is not f
        assert a.data_ptr() == f.data_ptr()
        assert adamw.state[a]["exp_avg"].data_ptr() == fadam.state[f]["momentum"].data_ptr()
        assert adamw.state[a]["exp_avg_sq"].data_ptr() == fadam.state[f]["fim"].data_ptr()
    for name, step in ready.steps.items():
        step()
        if name != COPY:
            assert all(p.isfinite().all() for p in adamw.param_groups[0]["params"])


def test_what_does_not_fit_is_left_out() -> None:
    foreach, fused = CONTESTANTS["FAdam foreach"], CONTESTANTS[OURS]
    assert left_out(foreach, SETS["gpt2"], 10**9, CPU, free=25e9) == "needs about 29 GB, 25 GB are free"
    assert left_out(fused, SETS["gpt2"], 10**9, CPU, free=25e9) == ""
    assert "left out on the CPU" in left_out(foreach, SETS["llama"], 10**9, CPU, free=99e9)
    assert left_out(foreach, SETS["llama"], 10**9, torch.device("cuda"), free=99e9) == ""


@pytest.mark.parametrize(
    ("name", "tensors", "count"),
    [("gpt2", 148, 124_439_808), ("conformer_cpu", 128, 931_229)],
)
def test_the_sets_are_those_of_the_models(name: str, tensors: int, count: int) -> None:
    shapes = SETS[name].shapes()
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes) == count


def test_numbers_repeat_from_run_to_run() -> None:
    first, second = (filled([(3, 4), (5,)], CPU, 1e-3, seed=1) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.5, 2.5)
    assert reason_of(ValueError("fadam.step is off. Why")) == "fadam.step is off."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sets", "gpt3"], "'gpt3' is none of gpt2"),
        (["--threads", "0"], "'0' is no number from 1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
