"""The declared protocols: their points, and that every planned run is a config that makes the record it says."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.analysis.plan import TIERS, Planned, multiruns, planned, widened_path
from experiments.core import record as rec
from experiments.core import resolvers, run, study
from experiments.core.errors import ConfigError

TASKS = sorted(path.stem for path in study.FOLDER.glob("*.yaml"))


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tuned hyperparameters for every arm of every experiment."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    for task in TASKS:
        for one in planned(task):
            text = "optimizer: {lr: 0.004, weight_decay: 0.02}\n"
            (folder / f"{one.experiment}-{one.arm}.yaml").write_text(text)
    tuned = study.tuned
    monkeypatch.setattr(resolvers.study, "tuned", lambda *words: tuned(*words, folder=folder))
    return folder


def test_points_fill_the_strata_of_both_dimensions() -> None:
    points = [study.unit_point(i, 8) for i in range(8)]
    for axis in (0, 1):
        assert sorted(math.floor(8 * p[axis]) for p in points) == list(range(8))
    assert all((8 * x) % 1 == 0.5 for p in points for x in p)
    assert [p[1] for p in points[:4]] == [1 / 16, 9 / 16, 5 / 16, 13 / 16]
    # The highest decay belongs to the highest learning rate, so that widening the one is enough.
    assert max(points, key=lambda p: p[1]) == points[-1]


def test_widening_goes_on_at_the_same_distance() -> None:
    space = {"lr": {"low": 1e-4, "high": 1e-2}}
    values = [study.point_value(space, "lr", i, 8) for i in range(-2, 10)]
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert all(math.isclose(r, 100 ** (1 / 8), rel_tol=1e-3) for r in ratios)
    assert math.isclose(values[2], 1e-4 * 100 ** (1 / 16), rel_tol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_protocol_is_fair(task: str) -> None:
    plan = study.protocol(task)
    assert len(set(plan["seeds"])) >= 5
    assert plan["tuning"]["seed"] not in plan["seeds"]
    assert plan["points"] & (plan["points"] - 1) == 0
    assert {"fadam", "adamw", plan["target"]["arm"]} <= set(plan["tiers"]["who"]["arms"])
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for one in planned(task):
        arms = counts.setdefault((one.tier, one.part, one.purpose), {})
        arms[one.arm] = arms.get(one.arm, 0) + 1
    for (_, part, _), arms in counts.items():
        assert part == "rho" or len(set(arms.values())) == 1, arms
    who = [one for one in planned(task, ["who"])]
    assert len(who) == 52
    seen = [one.record for one in planned(task)]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("task", TASKS)
def test_planned_runs_are_configs_that_leave_the_planned_records(
    compose_config, settled: Path, task: str, tmp_path: Path
) -> None:
    made: dict[str, Planned] = {}
    for one in planned(task):
        # One run of each kind: composing them all takes minutes.
        made.setdefault(f"{one.tier} {one.part} {one.purpose}", one)
    for one in made.values():
        cfg = compose_config(f"experiment={one.experiment}", *one.overrides)
        run.check_choices(cfg)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert rec.record_path(cfg) == tmp_path / "runs" / one.record
        assert (cfg.arm, cfg.purpose, cfg.seed, cfg.scale) == (one.arm, one.purpose, one.seed, "study")
        if one.purpose == "tune":
            assert cfg.seed == study.protocol(task)["tuning"]["seed"]
            assert cfg.searched["optimizer.lr"] == cfg.optimizer.lr


def test_every_arm_gets_the_same_learning_rates_and_decays_of_its_kind(compose_config) -> None:
    rates: dict[int, set[float]] = {}
    decays: dict[tuple[int, str], set[float]] = {}
    for arm in study.protocol("llm")["tiers"]["who"]["arms"]:
        for index in (0, 7):
            cfg = compose_config("experiment=llm_study", "tune=study", f"optimizer={arm}", f"point={index}")
            kind = cfg.optimizer.get("decay_mode", "decoupled")
            rates.setdefault(index, set()).add(cfg.optimizer.lr)
            decays.setdefault((index, kind), set()).add(cfg.optimizer.weight_decay)
    assert {index: len(values) for index, values in rates.items()} == {0: 1, 7: 1}
    assert len(decays) == 4
    assert all(len(values) == 1 for values in decays.values())


def test_switches_turn_back_one_option_each(compose_config) -> None:
    base = OmegaConf.to_container(compose_config("experiment=llm_study", "optimizer=fadam").optimizer)
    for arm in study.protocol("llm")["tiers"]["why"]["arms"]:
        other = OmegaConf.to_container(compose_config("experiment=llm_study", f"optimizer={arm}").optimizer)
        assert base.keys() == other.keys()
        tuned = {"lr", "weight_decay"}  # each arm's own
        assert len([key for key in base.keys() - tuned if base[key] != other[key]]) == 1, arm


@pytest.mark.parametrize("task", TASKS)
def test_multiruns_are_the_planned_runs(task: str) -> None:
    groups = multiruns(planned(task))
    assert {g.tier for g in groups} <= set(TIERS)
    covered = [one for group in groups for one in group.runs]
    assert sorted(map(str, covered)) == sorted(map(str, planned(task)))
    for group in groups:
        sizes = [len(word.partition("=")[2].split(",")) for word in group.words]
        assert math.prod(sizes) == len(group.runs)


@pytest.mark.parametrize("task", TASKS)
def test_every_varied_value_can_be_run(task: str, compose_config) -> None:
    words: dict[tuple[str, ...], Planned] = {}
    for one in planned(task):
        if any(word.startswith("vary=") for word in one.overrides):
            # Of each point one seed of one arm: what varies does not look at the others.
            point = tuple(word for word in one.overrides if word.split("=")[0] in ("vary", "value", "factor"))
            words.setdefault(point, one)
    assert len(words) >= 7
    for one in words.values():
        cfg = compose_config(f"experiment={one.experiment}", *one.overrides)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        if "vary=batch" in one.overrides:
            assert cfg.trainer.max_steps * cfg.data.batch_size == 4000
            assert cfg.scheduler.warmup_steps == pytest.approx(cfg.trainer.max_steps / 10, abs=0.5)


def test_a_widened_space_has_more_points_for_every_arm(tmp_path: Path) -> None:
    path = widened_path("llm_study", "main", tmp_path)
    path.parent.mkdir()
    path.write_text("low: 0\nhigh: 2\n")
    tuning = [one for one in planned("llm", ["who"], tuned=tmp_path) if one.purpose == "tune"]
    assert len(tuning) == 4 * 10
    assert {"tune-p8", "tune-p9"} <= {one.trial for one in tuning}


def test_refusals_name_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no study is declared for 'pictures'.*asr, llm, vqvae"):
        study.protocol("pictures")
    with pytest.raises(ConfigError, match=r"tiers\.whom"):
        study.look_up(study.protocol("llm"), "tiers.whom")
    with pytest.raises(ConfigError, match=r"llm_study-fadam\.yaml is missing: tune"):
        study.tuned("llm_study", "fadam", "optimizer.lr", folder=tmp_path)
    with pytest.raises(ConfigError, match="value=3 must divide 4000"):
        resolvers.whole(4000, 3)
