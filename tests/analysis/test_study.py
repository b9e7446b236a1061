"""The numbers of a study, on made-up records with known answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.analysis import figures, study_tables, summary, tables
from experiments.analysis.paper import load_paper
from experiments.analysis.plan import TIERS, planned
from experiments.analysis.records import MixedRecordsError, load_records
from experiments.analysis.stats import detectable_difference, paired_gain
from experiments.analysis.study import (
    Comparison,
    again,
    interaction,
    profile,
    study,
    study_task,
    value_at,
)
from experiments.analysis.tasks import SPECS, Metric
from experiments.core.study import FOLDER
from tests.analysis.made_up import TUNED, made_up, seed_part

INF = math.inf
# Bits per byte of each arm; 0.01 would matter.
LEVEL = {
    "adamw": 1.80,
    "adamw_clip": 1.78,
    "adamw_update_clip": 1.70,
    "fadam": 1.75,
    "fadam_no_clip": 1.79,
    "fadam_corrected_momentum": 1.752,
    "fadam_gradient_momentum": 1.70,
    "fadam_global_clip": 1.77,
}
JITTER = {11: 0.001, 12: -0.001, 13: 0.002, 14: -0.002, 15: 0.0}


def level(run) -> float | None:
    """The level of the arm, something of the seed for all arms, and something for FAdam alone."""
    own = JITTER[run.seed] if run.arm == "fadam" else 0.0
    if run.part == "again":
        return LEVEL[run.arm]
    if run.part == "eps":
        return LEVEL[run.arm] + (0.3 if run.arm == "adamw" and run.trial == "eps0.0001" else 0.0)
    if run.part == "continuous":
        return 25.0 + 100 * own
    return LEVEL.get(run.arm, 1.75) + seed_part(run) + own


@pytest.fixture(scope="module")
def records():
    return made_up("llm", level)


@pytest.fixture(scope="module")
def llm(records):
    return study_task("llm", records, tuned=TUNED)


def test_every_planned_record_is_counted(llm, records):
    assert [(p.tier, p.done, p.planned) for p in llm.progress] == [
        (tier, n, n) for tier in TIERS for n in [len(planned("llm", [tier], tuned=TUNED))]
    ]
    assert all(arm.complete for arm in llm.arms.values())
    assert len(records) == sum(p.planned for p in llm.progress)


def test_records_that_nobody_planned_are_not_looked_at(llm, records):
    extra = replace(records[0], relative=Path("llm/study/adamw/other-s1.json"), trial="other")
    assert study_task("llm", [*records, extra], tuned=TUNED) == llm


def test_an_arm_has_its_runs_and_its_choice(llm):
    arm = llm.arms["adamw"]
    assert arm.summary.mean == pytest.approx(1.80 + 0.003)
    assert arm.summary.sd == pytest.approx(0.001 * math.sqrt(2.5))
    assert arm.tuning.choice.best.records[0].trial == "tune-p3"
    assert (arm.tuning.edge, arm.tuning.widened, arm.notes) == ("", (0, 0), ())
    assert len(arm.tuning.trials) == 8


def test_how_lucky_the_choice_was(llm):
    metric, chosen, seeds = llm.arms["adamw"].luck
    assert metric.keys[0] == "val/bits_per_byte"
    assert (chosen, seeds.mean) == (1.0, pytest.approx(1.803))
    assert study_task("llm", (), tuned=TUNED).arms["adamw"].luck is None


def test_gains_of_fadam(llm):
    better = llm.comparison("fadam", "adamw_clip")
    assert better.gain.mean == pytest.approx(0.03)
    assert better.gain.sd == pytest.approx(math.sqrt(2.5e-6))
    assert (better.outcome, better.primary, better.part) == ("better", True, "main")
    worse = llm.comparison("fadam", "adamw_update_clip")
    assert (worse.outcome, worse.primary) == ("worse", False)
    same = llm.comparison("fadam", "fadam_corrected_momentum")
    assert (same.outcome, same.primary, same.part) == ("no detectable difference", True, "switches")
    assert better.number(0.03) == "+0.0300"


def test_target_and_ratios(llm):
    # AdamW's curves run from 3 to its value; after 80% of the steps the mean of them is
    target = 3 + (1.803 - 3) * 0.8
    assert llm.target.value == pytest.approx(target)
    speed = next(s for s in llm.speeds if s.opponent == "adamw_clip")
    ratios = [
        (3 - (1.78 + 0.001 * s)) / (3 - (1.75 + 0.001 * s + j))
        for s, j in zip(range(1, 6), JITTER.values(), strict=True)
    ]
    assert list(speed.steps.ratios.values()) == pytest.approx(ratios)
    assert list(speed.seconds.ratios.values()) == pytest.approx(ratios)
    assert speed.steps.kind == "geometric mean"


def test_epsilon(llm):
    adamw, fadam = llm.eps
    assert (adamw.arm, fadam.arm) == ("adamw", "fadam")
    assert adamw.range == pytest.approx(0.3)
    assert (adamw.sensitive, fadam.sensitive) == (True, False)
    assert fadam.range == 0
    assert fadam.noise > 0


def test_variations(llm):
    by_name = {v.name: v for v in llm.variations}
    far = {"lr", "beta2", "batch", "gradient_scale", "rho"}
    assert {v.name for v in llm.variations if v.tier == "far"} == {v.setting for v in llm.variations[:5]} == far
    assert [(v.name, v.setting) for v in llm.variations if v.tier == "after"] == [("again", "eps"), ("neighbour", "lr")]
    assert all(v.progress.complete for v in llm.variations)
    points = [p for p in by_name["beta2"].points if p.arm == "fadam"]
    assert [p.value for p in points] == [0.9, 0.98, 0.99, 0.995, 0.999, 0.9995]
    assert set(points[0].values) == {11, 12}
    assert {p.factor for p in by_name["rho"].points if p.value == 0.25} == {4, 16, 64}


def test_the_clip_is_compared_with_global_norm_clipping_on_the_same_decay(llm):
    (clip,) = [c for c in llm.comparisons if c.part == "clipping"]
    assert (clip.arm, clip.opponent, clip.primary) == ("fadam_decoupled_decay", "fadam_global_clip", True)
    assert clip.gain.mean == pytest.approx(LEVEL["fadam_global_clip"] - 1.75)
    assert llm.comparison("fadam", "fadam_global_clip") is None


def test_fadam_run_again_meets_the_switches(llm, records):
    again_runs = {c.opponent: c for c in again(llm)}
    assert set(again_runs) == {arm.name for arm in llm.arms.values() if arm.part == "switches"}
    comparison = again_runs["fadam_no_clip"]
    assert comparison.gain.n == 5
    # Its runs at the default epsilon have neither the seed's part nor one of their own, see `level`.
    assert comparison.gain.gains == pytest.approx({s: 1.79 + 0.001 * (s % 10) - 1.75 for s in JITTER})
    assert (comparison.said, comparison.p_holm) == ("better, taken alone", None)
    short = [r for r in records if not (r.trial == "eps1e-08" and r.seed == 14)]
    assert again(study_task("llm", short, tuned=TUNED)) == ()


def test_records_of_what_was_chosen_before_are_as_good_as_missing(records, tmp_path):
    (tmp_path / "llm_study-fadam.yaml").write_text(yaml.safe_dump({"optimizer": {"lr": 0.5, "weight_decay": 0.01}}))
    found = study_task("llm", records, tuned=tmp_path)
    assert (found.eps[0].progress.done, found.eps[1].progress.done) == (14, 0)
    assert found.arms["fadam"].progress.complete
    assert all(arm.tuning.trials == () for arm in found.arms.values() if arm.part in ("switches", "clipping"))


def test_what_could_have_been_detected_is_corrected_like_the_rest(records):
    found = study(records, tuned=TUNED).tasks["llm"]
    primary, other = found.comparison("fadam", "adamw_clip"), found.comparison("fadam", "adamw")
    assert primary.family == 25
    assert primary.detectable == pytest.approx(detectable_difference(primary.gain.sd, 5, level=0.05 / 25))
    assert primary.detectable > 2 * primary.gain.detectable
    assert other.detectable == other.gain.detectable


def test_diverged_runs_stay(records):
    lost = [("fadam", seed, "main") for seed in (12, 13, 14)]
    once = [replace(r, diverged=True) if (r.arm, r.seed, r.trial) == lost[0] else r for r in records]
    comparison = study_task("llm", once, tuned=TUNED).comparison("fadam", "adamw_clip")
    assert (comparison.outcome, comparison.gain.mean) == ("no detectable difference", -INF)
    changed = [replace(r, diverged=True) if (r.arm, r.seed, r.trial) in lost else r for r in records]
    found = study_task("llm", changed, tuned=TUNED)
    arm = found.arms["fadam"]
    assert (arm.summary.diverged, arm.summary.mean) == (3, INF)
    assert arm.notes == ("diverged: seed 12, 13, 14",)
    comparison = found.comparison("fadam", "adamw_clip")
    assert (comparison.outcome, comparison.gain.mean) == ("no detectable difference", -INF)
    # Where the other two pairs do not speak for it either, that decides.
    assert found.comparison("fadam", "adamw_update_clip").said == "worse, taken alone"
    speed = next(s for s in found.speeds if s.opponent == "adamw_clip")
    assert speed.steps.censored == (12, 13, 14)
    # Its last evaluations were as good as any; the spread, and with it the noise over epsilon, is unknown.
    assert next(s for s in found.eps if s.arm == "fadam").sensitive is None


def test_a_best_trial_at_an_end_is_said(records):
    def shifted(record):
        if record.arm != "fadam" or not record.trial.startswith("tune-p"):
            return record
        value = 0.5 if record.trial == "tune-p7" else 2.0
        return replace(record, objective={**record.objective, "value": value})

    arm = study_task("llm", map(shifted, records), tuned=TUNED).arms["fadam"]
    assert arm.tuning.edge == "high"
    assert any("the evaluation runs use optimizer.lr" in note for note in arm.notes)


def test_two_data_sets_are_refused(records):
    other = replace(records[-1], data={"fingerprint": "sha256:bbb"})
    with pytest.raises(MixedRecordsError, match="the study of llm would mix two data sets"):
        study_task("llm", [*records[:-1], other], tuned=TUNED)


def test_without_records_nothing_is_known(tmp_path):
    found = study((), tuned=TUNED)
    assert found.family == 3 * 8 + 1
    assert found.profile.problems == ()
    assert found.interaction.gain.n == 0
    text = study_tables.page(found.tasks["llm"], tmp_path)
    assert "**not run yet: 0 of 52 records.**" in text
    assert study_tables.overview(found).count("not run yet: 0 of") == 10


def test_what_was_not_declared_is_said(tmp_path):
    for path in FOLDER.glob("*.yaml"):
        plan = {**yaml.safe_load(path.read_text()), "afterwards": [f"{path.stem}: the lights went out."]}
        (tmp_path / path.name).write_text(yaml.safe_dump(plan))
    found = study((), folder=tmp_path, tuned=TUNED)
    text = study_tables.page(found.tasks["llm"], tmp_path)
    assert text.endswith("## What the protocol did not declare\n\n- llm: the lights went out.\n")


def comparison(gains: dict[int, float], matters: float, name: str, part: str) -> Comparison:
    metric = Metric((name,), name, "max")
    gain = paired_gain(gains, dict.fromkeys(gains, 0.0), "max")
    return Comparison("vqvae", "study", part, part, metric, matters, "fadam", "adamw_clip", True, gain, "", ())


def test_interaction_is_in_units_of_what_matters():
    bits = comparison({1: 0.1, 2: 0.2, 3: 0.3}, 0.1, "bits", "main")
    decibels = comparison({1: -1.0, 2: 0.0, 3: 1.0, 4: 5.0}, 0.5, "psnr", "continuous")
    crossed = interaction(bits, decibels)
    assert crossed.gain.gains == pytest.approx({1: 1 + 2, 2: 2 - 0, 3: 3 - 2})
    assert (crossed.matters, crossed.metric, crossed.gain.left_out) == (1.0, None, (4,))
    assert crossed.number(crossed.gain.mean) == "+2.00"
    same = interaction(comparison({1: 0.5, 2: 0.5}, 0.5, "psnr", "main"), decibels)
    assert same.gain.gains == pytest.approx({1: 1.5, 2: 0.5})
    assert (same.matters, same.primary) == (0.5, False)
    both = interaction(comparison({1: INF}, 0.1, "bits", "main"), comparison({1: INF}, 0.5, "psnr", "continuous"))
    assert both.gain.gains == {1: 0.0}


def test_value_at_is_linear_between_evaluations():
    curve = [(100.0, 2.0), (200.0, 1.0)]
    assert value_at(curve, 150.0) == 1.5
    assert value_at(curve, 200.0) == 1.0
    assert value_at(curve, 201.0) is None


def test_performance_profile(llm):
    found = profile([llm])
    assert found.problems == tuple(("llm", seed) for seed in (11, 12, 13, 14, 15))
    # The update-clipped arm is best everywhere, AdamW 0.1 behind, which is ten times what matters.
    assert found.gaps["adamw_update_clip"] == (0.0,) * 5
    assert found.gaps["adamw"] == pytest.approx((10.0,) * 5)
    assert found.share("adamw", 9.9) == 0
    assert found.share("adamw", 10.1) == 1
    assert found.share("fadam", 5.05) == pytest.approx(3 / 5)


def test_holm_runs_over_all_tasks(records):
    # Five identical gains on one task: p = 1/16 each; the family has 25 members.
    found = study(records, tuned=TUNED)
    p = found.tasks["llm"].comparison("fadam", "adamw_clip").p_holm
    assert p == 1.0
    p_t = found.tasks["llm"].comparison("fadam", "adamw_clip")
    assert p_t.gain.p_t < p_t.p_t_holm <= 25 * p_t.gain.p_t
    assert found.tasks["llm"].comparison("fadam", "adamw").p_holm is None


# --- tables


def test_tables_link_every_number(llm, records, tmp_path):
    runs = tmp_path / "runs"
    here = [replace(r, root=runs) for r in records]
    text = study_tables.page(study(here, tuned=TUNED).tasks["llm"], tmp_path / "tables")
    links = {part.split(")")[0] for part in text.split("](../runs/")[1:]}
    assert {Path(link) for link in links} == {r.relative for r in records}
    row = next(line for line in text.splitlines() if line.startswith("| AdamW + clip |") and "lr=" in line)
    assert "1.7830 ± 0.0016 (n=5) | 0 of 5 | [11](../runs/llm/study/adamw_clip/main-s11.json)" in row
    assert "| 1.0000 → 1.7830 |" in row
    gain = next(line for line in text.splitlines() if line.startswith("| AdamW + clip | +0.03"))
    assert gain.endswith("| **better** |")
    assert "| 0.062 (1.000) | < 0.001 (< 0.001) |" in gain
    assert "not run yet" not in text
    assert "AdamW: the means lie 0.3000 apart" in text
    assert study_tables.page(study(here, tuned=TUNED).tasks["llm"], tmp_path / "tables") == text


def test_a_part_of_a_tier_says_how_much_there_is(records, tmp_path):
    some = [r for r in records if r.arm in ("adamw", "fadam")]
    text = study_tables.page(study_task("llm", some, tuned=TUNED), tmp_path)
    assert "**not complete: 26 of 52 records.**" in text
    assert "AdamW: **not run yet" not in text


def test_the_tables_of_plain_comparisons_are_those_without_the_study(tmp_path, write, six, trials, runs):
    def made(name):
        out = tmp_path / name
        assert tables.main(["asr", "--runs", str(runs), "--out", str(out)]) == 0
        records = load_records(runs)
        mine = [r for r in records if r.task == "asr"]
        drawn = [figures.curves_figure(mine, SPECS["asr"]), figures.tuning_figure(mine, SPECS["asr"])]
        axes = [len(figure.axes) for figure in drawn]
        return (out / "asr.md").read_text(), summary.block(records, load_paper()), axes

    write(*six, *trials)
    before = made("before")
    content = {**six[0], "scale": "study", "seed": 11}
    write(content, {**trials[0], "scale": "study", "trial": "tune-p0"}, {**content, "arm": "adamw_update_clip"})
    assert len(load_records(runs)) == len(six) + len(trials) + 3
    assert made("after") == before


def test_the_command_writes_a_page_a_task(tmp_path, capsys):
    out = tmp_path / "tables"
    assert study_tables.main(["--runs", str(tmp_path / "none"), "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"study.md", "study-asr.md", "study-llm.md", "study-vqvae.md"}
    assert study_tables.main(["nothing", "--out", str(out)]) == 2
    assert "unknown task 'nothing'" in capsys.readouterr().err
