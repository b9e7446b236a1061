"""From config to record: finished, repeated, interrupted and diverged runs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from experiments.core import records as rec
from experiments.core import run
from experiments.core.callbacks import ProgressBarWithMetric
from experiments.core.choices import unknown_keys
from experiments.core.errors import ConfigError
from experiments.evaluate import evaluate
from tests.conftest import record_path

OPTIMIZERS = ("adam", "adamw", "adamw_clip", "fadam")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


class Stop(Callback):
    """Breaks a run off in the middle of an evaluation interval, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("broken off")


def with_callback(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    """Let `callback` watch the runs, before all others."""
    build = run.build_trainer

    def built(*args: Any) -> Trainer:
        trainer = build(*args)
        trainer.callbacks.insert(0, callback)
        return trainer

    monkeypatch.setattr(run, "build_trainer", built)


def break_off_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with_callback(monkeypatch, Stop(step))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_record_holds_what_the_tables_need(compose_config, tmp_path: Path, optimizer: str) -> None:
    cfg = compose_config("experiment=toy", f"optimizer={optimizer}", "seed=3")
    run.execute(cfg)
    record = json.loads((tmp_path / "runs/toy/smoke" / optimizer / "main-s3.json").read_text())
    assert record["steps"] == 12
    assert [entry["step"] for entry in record["history"]] == [4, 8, 12]
    assert record["metrics"]["val/loss"] == record["history"][-1]["val/loss"] == record["objective"]["value"]
    assert math.isclose(record["metrics"]["test/loss"], record["metrics"]["val/loss"], rel_tol=1e-6)
    assert record["seen"] == {"items": 48.0}
    assert record["target"] | {"seconds": 0} == {
        "metric": "val/loss", "mode": "min", "value": 1e9, "steps": 4, "seconds": 0
    }  # fmt: skip
    assert record["diverged"] is False
    assert record["optimizer"]["gradient_clip_val"] == (1.0 if optimizer == "adamw_clip" else None)
    assert record["artifacts"] == ["main-s3.txt"]
    assert record["parameters"] == 3 * 8 + 8 + 16 + 8 + 1
    assert record["step_time_s"] > 0
    assert record["peak_memory_bytes"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert str(tmp_path) not in json.dumps(record)


def test_last_checkpoint_is_the_last_and_best_the_best(compose_config) -> None:
    # A falling loss that is to be large is at its best when first evaluated.
    cfg = compose_config("experiment=toy", "optimizer=adamw", "optimizer.lr=0.05", "objective.mode=max")
    record = run.execute(cfg)
    folder = Path(cfg.paths.run_dir)
    losses = [entry["val/loss"] for entry in record["history"]]
    assert losses[0] == max(losses)
    saved = {name: torch.load(folder / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("last", "best")}
    assert saved == {"last": 12, "best": 4}


def test_an_untuned_learning_rate_is_said_to_be_a_guess(compose_config) -> None:
    assert run.untuned(compose_config("experiment=asr_cpu", "optimizer=fadam")) == ""
    assert "configs/tuned/asr_cpu.yaml has no adam" in run.untuned(
        compose_config("experiment=asr_cpu", "optimizer=adam")
    )
    assert run.untuned(compose_config("experiment=asr_cpu", "optimizer=adam", "optimizer.lr=0.1")) == ""


def test_same_seed_means_same_start_and_same_data_for_every_optimizer(compose_config, tmp_path: Path) -> None:
    first = [
        run.build_module(compose_config("experiment=toy", f"optimizer={name}", "seed=5")).model.state_dict()
        for name in OPTIMIZERS
    ]
    for other in first[1:]:
        assert all(torch.equal(first[0][name], other[name]) for name in other)
    other_seed = run.build_module(compose_config("experiment=toy", "seed=6")).model.state_dict()
    assert not torch.equal(first[0]["net.0.weight"], other_seed["net.0.weight"])


def test_a_finished_run_is_not_repeated(compose_config) -> None:
    cfg = compose_config("experiment=toy", "optimizer=fadam")
    path = record_path(cfg)
    run.execute(cfg)
    before = path.stat().st_mtime_ns
    run.execute(cfg)
    assert path.stat().st_mtime_ns == before


def test_a_broken_record_is_made_again(compose_config) -> None:
    cfg = compose_config("experiment=toy")
    path = record_path(cfg)
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "task"')
    run.execute(cfg)
    assert json.loads(path.read_text())["steps"] == 12


@pytest.mark.parametrize("optimizer", ["adamw_clip", "fadam"])
@pytest.mark.parametrize(("accumulate", "step"), [(1, 5), (1, 8), (1, 11), (2, 6)])
def test_an_interrupted_run_goes_on_exactly(
    compose_config, monkeypatch: pytest.MonkeyPatch, optimizer: str, accumulate: int, step: int
) -> None:
    options = ("experiment=toy", f"optimizer={optimizer}", f"trainer.accumulate_grad_batches={accumulate}")
    whole = compose_config(*options, "trial=whole")
    expected = run.execute(whole)

    cfg = compose_config(*options)
    with monkeypatch.context() as patch:
        break_off_at(patch, step)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)
    folder = Path(cfg.paths.run_dir)
    assert not record_path(cfg).exists()
    assert (folder / "last.ckpt").exists()
    assert not list(folder.parent.glob("*.tmp"))

    starts = []
    monkeypatch.setattr(Stop, "on_train_batch_end", lambda *_: None)
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda *a, **k: (starts.append(k["ckpt_path"]), fit(*a, **k))[1])
    record = run.execute(cfg)
    assert starts == [str(folder / "last.ckpt")]
    for name, value in weights(Path(whole.paths.run_dir)).items():
        assert torch.equal(value, weights(folder)[name]), name
    strip = [{k: v for k, v in entry.items() if k != "seconds"} for entry in record["history"]]
    assert strip == [{k: v for k, v in entry.items() if k != "seconds"} for entry in expected["history"]]
    assert record["seen"] == expected["seen"]
    assert record["metrics"] == expected["metrics"]


def test_a_terminated_run_leaves_no_record_and_says_so_by_its_status(compose_config, monkeypatch) -> None:
    cfg = compose_config("experiment=toy")
    monkeypatch.setattr(
        Stop, "on_train_batch_end", lambda self, trainer, *_: trainer.global_step == 6 and os.kill(os.getpid(), 15)
    )
    with monkeypatch.context() as patch:
        break_off_at(patch, 6)
        with pytest.raises(SystemExit) as end:
            run.execute(cfg)
    assert end.value.code == 143
    assert not record_path(cfg).exists()
    assert (Path(cfg.paths.run_dir) / "last.ckpt").exists()


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(compose_config) -> None:
    cfg = compose_config("experiment=toy", "optimizer=adamw", "optimizer.lr=1e30", "callbacks.history.check_every=1")
    run.execute(cfg)
    record = json.loads(record_path(cfg).read_text())
    assert record["diverged"] is True
    assert record["steps"] < 12
    assert record["objective"]["value"] is None
    assert record["samples"] == []


class Spoil(Callback):
    """Makes the gradients of one step not finite, or the weights after it."""

    def __init__(self, what: str, step: int, value: float) -> None:
        self.what, self.step, self.value = what, step, value

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.what == "gradients" and trainer.global_step == self.step:
            for parameter in pl_module.parameters():
                parameter.grad.fill_(self.value)  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.what == "one weight" and trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).view(-1)[-1] = self.value


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_clip", "fadam", "schedule_free"])
@pytest.mark.parametrize(
    "spoil", [Spoil("gradients", 11, math.nan), Spoil("one weight", 12, math.nan), Spoil("one weight", 12, math.inf)]
)
def test_what_the_last_step_spoils_is_a_divergence(compose_config, monkeypatch, optimizer: str, spoil: Spoil) -> None:
    with_callback(monkeypatch, spoil)
    record = run.execute(compose_config("experiment=toy", f"optimizer={optimizer}", "logger=none"))
    assert (record["steps"], record["diverged"]) == (12, True)
    assert record["objective"]["value"] is None
    assert not any(name.startswith("test/") for name in record["metrics"])


def test_a_test_metric_that_is_not_a_number_is_a_divergence(compose_config, monkeypatch) -> None:
    from tests.core.toy import ToyModule

    evaluate = ToyModule.test_step
    monkeypatch.setattr(
        ToyModule, "test_step", lambda self, *words: (evaluate(self, *words), self.log("test/more", math.nan))[0]
    )
    record = run.execute(compose_config("experiment=toy", "logger=none"))
    assert record["diverged"] is True
    assert record["metrics"]["test/more"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval_every=5", "eval_every must divide trainer.max_steps=12"),
        ("eval_every=0", "eval_every must be a whole number of at least 1, got 0"),
        ("trainer.max_steps=-1", "trainer.max_steps must be"),
        ("resume=maybe", "resume must be auto or never, got 'maybe'"),
        ("purpose=fun", "purpose must be eval, tune or pilot, got 'fun'"),
        ("objective.mode=up", "objective.mode must be min or max"),
        ("scheduler.warmup_steps=12", "scheduler.warmup_steps must be"),
        ("scheduler.shape=stairs", "scheduler.shape must be cosine, linear or constant, got 'stairs'"),
        ("module.decay=some", "module.decay must be one of all, no_norms, no_embeddings, got 'some'"),
    ],
)
def test_wrong_options_are_named(compose_config, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.execute(compose_config("experiment=toy", override))


@pytest.mark.parametrize(
    ("optimizer", "override", "message"),
    [
        ("fadam", "optimizer.fim_rho=3", "fim_rho=3 is not allowed; fim_rho must be a number in"),
        ("fadam", "+optimizer.bata=3", "optimizer: FAdam has no option bata; there are lr, betas, eps, eps2, clip"),
        (
            "adamw",
            "+optimizer.clip=3",
            "unexpected keyword argument 'clip'; its options are .*betas, eps",
        ),
        ("adamw", "optimizer.lr=-1", "Invalid learning rate: -1"),
    ],
)
def test_wrong_optimizer_options_are_named(compose_config, optimizer: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.execute(compose_config("experiment=toy", f"optimizer={optimizer}", override))


def test_misspelled_keys_are_answered_with_the_choices() -> None:
    words = ["-m", "experiment=asr_cpu", "optimizer=fadam,adamw", "optimizer.bata=3", "eval_evry=1", "+new=1", "seed=1"]
    found = list(unknown_keys(words))
    assert len(found) == 2
    assert found[0].startswith("error: optimizer has no option 'bata'; its options are lr, betas, eps, eps2")
    assert found[1].startswith("error: the config has no option 'eval_evry'; its options are ")
    assert list(unknown_keys(["experiment=asr_cpu", "optimizer=fadamm", "optimizer.bata=3"])) == []
    # `value` has none until it is given; it is an option all the same.
    words = ["experiment=llm_cpu", "vary=gradient_scale", "value=2", "paths.run=a"]
    assert [hint.partition(";")[0] for hint in unknown_keys(words)] == ["error: paths has no option 'run'"]


def test_progress_choices(compose_config) -> None:
    with pytest.raises(ConfigError, match="progress must be auto, rich or line, got 'loud'"):
        run.execute(compose_config("experiment=toy", "progress=loud"))


def test_rich_bar_shows_the_metric_that_matters(compose_config, monkeypatch) -> None:
    shown = []
    get_metrics = ProgressBarWithMetric.get_metrics
    monkeypatch.setattr(
        ProgressBarWithMetric, "get_metrics", lambda *args: shown.append(get_metrics(*args)) or shown[-1]
    )
    record = run.execute(compose_config("experiment=toy", "progress=rich"))
    assert shown[-1]["val/loss"] == f"{record['metrics']['val/loss']:.4g}"
    assert float(shown[-1]["loss"]) > 0


def test_evaluation_of_the_checkpoint_gives_the_record_again(compose_config) -> None:
    cfg = compose_config("experiment=toy", "optimizer=fadam", "logger=none")
    record = run.execute(cfg)
    assert evaluate(Path(cfg.paths.run_dir), allow=["tests"])["test/loss"] == pytest.approx(
        record["metrics"]["test/loss"]
    )


def test_wandb_without_key_or_network_stays_offline(compose_config, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = compose_config("experiment=toy", "optimizer=fadam", "logger=wandb")
    record = run.execute(cfg)
    assert record["steps"] == 12
    said = "W&B: no API key (WANDB_API_KEY, or `wandb login`), so this run is logged offline"
    assert capsys.readouterr().out.count(said) == 1
    assert list(Path(cfg.paths.run_dir).glob("wandb/offline-run-*/*.wandb"))


def test_config_hash_ignores_where_and_how_a_run_is_watched(compose_config) -> None:
    def digest(*overrides: str) -> str:
        return rec.config_hash(rec.plain_config(compose_config("experiment=toy", *overrides)))

    same = digest()
    assert digest("paths.data_dir=/elsewhere", "logger=none", "progress=line", "resume=never", "overwrite=true") == same
    assert digest("callbacks.fisher.every_n_steps=7", "~callbacks.progress") == same
    assert digest("seed=2") != same
    # A callback that is no watcher may change the result.
    scale = "+callbacks.scale={_target_: experiments.core.callbacks.GradientScale, factor: 2.0}"
    assert len({same, digest(scale), digest(scale.replace("2.0", "3.0"))}) == 3
    averaged = digest("optimizer=schedule_free")
    assert digest("optimizer=schedule_free", "~callbacks.evaluation_weights") != averaged
    assert digest("optimizer.lr=0.1") != same


def test_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "record.json"
    with pytest.raises(TypeError):
        rec.write_record(path, {"fine": 1, "not": object()})
    assert not path.exists()
    rec.write_record(path, {"inf": math.inf, "nested": [math.nan, 1.0]})
    assert json.loads(path.read_text()) == {"inf": None, "nested": [None, 1.0]}
