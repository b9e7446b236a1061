"""What is published, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.study.plan import Planner, plan_all
from experiments.study.publish import publish
from experiments.study.results import Results
from tests.study.test_plan import main_part, write


def test_planned_records_are_copied_once_and_others_named(tmp_path: Path) -> None:
    p, runs, to = main_part("asr"), tmp_path / "runs", tmp_path / "published"
    stages = plan_all([Planner(p, Results([runs]), lambda *_: False)])
    first, second, third, fourth = stages[0].runs[:4]
    for run in (first, second, third, fourth):
        write(runs, run, 0.5)
    for run, changes in (
        (first, {"commit": "abc"}),
        (second, {"commit": "abc", "dirty": True}),
        (fourth, {"commit": "abc"}),
    ):
        content = json.loads((runs / run.record).read_text()) | changes
        if run is fourth:
            content["config"]["optimizer"]["lr"] = 123.0
        (runs / run.record).write_text(json.dumps(content))
    (runs / "asr" / "stray.json").write_text("{}")

    done = publish(stages, runs, to)
    assert (done.copied, done.kept) == (1, 0)
    assert sorted(to.rglob("*.json")) == [to / first.record]
    reasons = {line.split(": ")[0]: line for line in done.refused}
    assert "no commit" in reasons[str(runs / second.record)]
    assert "no commit" in reasons[str(runs / third.record)]
    assert "other settings" in reasons[str(runs / fourth.record)]

    assert publish(stages, runs, to).kept == 1
    changed = (runs / first.record).read_text().replace("0.5", "0.4")
    (runs / first.record).write_text(changed)
    assert "published already" in " ".join(publish(stages, runs, to).refused)
    assert (to / first.record).read_text() != changed
