"""Every optimizer's run goes on exactly, and evaluates to its record; a foreign folder is no code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from experiments import evaluate as ev
from experiments.core import run
from experiments.core.errors import ConfigError, DataError
from tests.conftest import CONFIGS
from tests.core.test_checkpoint import interrupt, without_times
from tests.core.test_run import weights

OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly_and_evaluates_to_its_record(
    compose_config, monkeypatch, optimizer: str
) -> None:
    words = ("experiment=toy", f"optimizer={optimizer}", "logger=none")
    whole = compose_config(*words, "trial=whole")
    expected = run.execute(whole)
    assert not expected["diverged"]
    cfg = compose_config(*words)
    interrupt(monkeypatch, cfg, 6)
    record = run.execute(cfg)
    assert without_times(record) == without_times(expected)
    folders = [Path(one.paths.run_dir) for one in (cfg, whole)]
    states = [torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"] for folder in folders]
    assert same(*states)
    assert same(*map(weights, folders))
    for checkpoint in ("last", "best"):  # the loss falls to the end, so they are the same
        assert ev.evaluate(folders[0], checkpoint, allow=["tests"])["test/loss"] == record["metrics"]["test/loss"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model._target_", "os.system", "os.system"),
        ("data._target_", "subprocess.run", "subprocess.run"),
        ("optimizer._target_", "torchevil.Adam", "torchevil.Adam"),
        ("model", {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "builtins.eval"}]}, "builtins.eval"),
        ("module.more", {"a": [{"b": {"_target_": "shutil.rmtree"}}]}, "shutil.rmtree"),
        ("scheduler._target_", "${data.root}", "code.of.mine"),
        (
            "data",
            {"_target_": "torch.utils.collect_env.run", "command": "touch ${paths.runs_dir}/../proof"},
            "torch.utils.collect_env.run",
        ),
        ("model", {"_target_": "torch.hub.load", "repo_or_dir": "/there", "source": "local"}, "torch.hub.load"),
        ("module._target_", "experiments.core.provenance.subprocess.run", "experiments.core.provenance.subprocess.run"),
        ("optimizer._target_", "fadam.FAdam.load_state_dict", "fadam.FAdam.load_state_dict"),
    ],
)
def test_a_foreign_folder_runs_no_code(tmp_path: Path, compose_config, key: str, value: Any, named: str) -> None:
    cfg = compose_config("experiment=toy")
    OmegaConf.set_struct(cfg, False)
    cfg.data.root = "code.of.mine"
    OmegaConf.update(cfg, key, value, merge=False)
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    (tmp_path / "last.ckpt").touch()
    no_part = r"part of experiments, fadam, .*tests; "
    why = "module, optimizer, schedule or data module; " if named.partition(".")[0] in ev.TRUSTED else no_part
    with pytest.raises(ConfigError, match=rf"would call '{re.escape(named)}', which is no {why}"):
        ev.evaluate(tmp_path, allow=["tests"])
    assert not (tmp_path / "proof").exists()


def test_what_is_no_run_is_a_sentence(tmp_path: Path, compose_config, monkeypatch, capsys) -> None:
    with pytest.raises(DataError, match=r"config.yaml is missing; name the folder of a run"):
        ev.evaluate(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(DataError, match=r"config.yaml is no config of a run"):
        ev.evaluate(tmp_path)
    OmegaConf.save(compose_config("experiment=toy"), tmp_path / "config.yaml", resolve=True)
    with pytest.raises(DataError, match=r"last.ckpt cannot be read: "):
        ev.evaluate(tmp_path, allow=["tests"])
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path)])
    assert ev.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: config.yaml would call 'tests.core.toy.ToyData'")
    assert said.count("\n") == 1
