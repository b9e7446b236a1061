"""Modules that other people wrote: trained as they are, with another optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.core import run
from experiments.core.errors import ConfigError, DataError
from experiments.core.wrapped import Steps, WrappedData
from tests.core.test_run import break_off_at, weights

DEMOS = "lightning.pytorch.demos"
SPEECHES = {"_target_": "examples.lightning_module.speeches.Speeches", "length": 8, "batch_size": 4, "windows": 64}
TRANSFORMER = {"_target_": f"{DEMOS}.transformer.LightningTransformer", "vocab_size": 256}


class Numbers(LightningDataModule):
    """Shuffled by torch's global generator, as loaders are; made up when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.randn(24, 3)

    def loader(self, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.x, self.x.sum(1)), batch_size=4, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(shuffle=False)


class Regression(LightningModule):
    """Logs in the ways that people do, with hooks, and a dropout that draws from the generator which shuffles."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.2), nn.Linear(width, 1))
        self.calls: list[str] = []
        self.sum = 0.0

    def _loss(self, batch: list[Tensor]) -> Tensor:
        return (self.net(batch[0])[:, 0] - batch[1]).square().mean()

    def training_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_dict({"val_loss": self._loss(batch), "valid/twice": 2 * self._loss(batch)})
        self.sum += 1.0

    def on_validation_epoch_end(self) -> None:
        self.log("batches", self.sum)
        self.sum = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"trained {self.trainer.global_step}")

    def configure_optimizers(self) -> Any:
        raise AssertionError("nobody asks for it")


class StepsItself(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class NoScalar(Regression):
    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.net(batch[0])


@pytest.fixture
def wrapped(compose_config, tmp_path: Path):
    """`wrapped(module, data, *words)`: the config of a run of 12 steps."""

    def build(module: dict[str, Any], data: dict[str, Any] | None, *words: str) -> Any:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        lightning = {"module": module} | ({"data": data} if data else {})
        content = {
            "lightning": lightning, "task": "somebodys", "scale": "smoke", "trainer": {"max_steps": 12},
            "scheduler": {"warmup_steps": 2}, "objective": {"metric": "val/loss", "mode": "min"}, "eval_every": 4,
            "study": {"matters": 0.1},
        }  # fmt: skip
        OmegaConf.save(OmegaConf.create(content), folder / "somebodys.yaml")
        search = f"hydra.searchpath=['own://{folder}']"
        return compose_config(search, "experiment=somebodys", "logger=none", "progress=line", *words)

    return build


def target(cls: type, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{cls.__name__}", **options}


@pytest.mark.parametrize("optimizer", ["adamw_clip", "fadam"])
def test_a_demonstration_of_lightning_is_trained_as_it_is(wrapped, optimizer: str) -> None:
    cfg = wrapped(TRANSFORMER, SPEECHES, f"optimizer={optimizer}", "optimizer.lr=0.01")
    record = run.execute(cfg)
    assert record["optimizer_path"] in ("fused", "foreach", "single")
    assert record["steps"] == 12
    losses = [entry["val/loss"] for entry in record["history"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0] < 7
    assert record["metrics"]["test/loss"] > 0
    assert record["seen"] == {"items": 48.0}
    assert record["data"]["name"] == "examples.lightning_module.speeches.Speeches"
    assert record["data"]["train batches"] == 16
    module = run.build_module(cfg)
    names = {name for name, _ in module.model.named_parameters()}
    assert names == {name for name, _ in module.named_parameters() if name.startswith("model.")} or all(
        name.removeprefix("model.") in names for name, _ in module.named_parameters()
    )
    assert type(module.build_optimizer()).__name__ == ("FAdam" if optimizer == "fadam" else "AdamW")


def test_hooks_and_logs_are_the_modules_own(wrapped, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = run.build_module
    monkeypatch.setattr(run, "build_module", lambda cfg: built.append(build(cfg)) or built[-1])
    record = run.execute(wrapped(target(Regression, width=5), target(Numbers)))
    assert built[0].model.calls == [f"trained {step}" for step in range(1, 13)]
    assert built[0].model.hparams.width == 5
    metrics = record["metrics"]
    assert metrics["val/twice"] == pytest.approx(2 * metrics["val/loss"])
    assert metrics["val/batches"] == 6
    # Without a test of its own it is tested as it is validated, here on the same data.
    for name in ("loss", "twice", "batches"):
        assert metrics[f"test/{name}"] == pytest.approx(metrics[f"val/{name}"])


def test_an_interrupted_run_goes_on_exactly(wrapped, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (target(Regression), target(Numbers), "optimizer=fadam")
    whole = wrapped(*words, "trial=whole")
    expected = run.execute(whole)
    cfg = wrapped(*words)
    with monkeypatch.context() as patch:
        break_off_at(patch, 9)  # in the second epoch
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)
    assert run.execute(cfg)["metrics"] == expected["metrics"]
    ours, theirs = (weights(Path(c.paths.run_dir)) for c in (cfg, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pairs_see_the_same_batches_and_seeds_others(wrapped) -> None:
    def batches(*words: str) -> list[Tensor]:
        data = run.build_data(wrapped(target(Regression), target(Numbers), *words))
        data.setup("fit")
        return [batch[0] for batch in data.train_dataloader()]

    first = batches("seed=1", "optimizer=fadam")
    torch.rand(7)  # whatever else is drawn
    again, other = batches("seed=1", "optimizer=adamw_clip"), batches("seed=2")
    assert len(first) == 12
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(torch.cat(first[:6]), torch.cat(first[6:]))  # epochs differ in their order
    assert torch.equal(torch.cat(first[:6]).sort(0)[0], torch.cat(first[6:]).sort(0)[0])


def test_an_empty_loader_is_told() -> None:
    with pytest.raises(DataError, match="the training loader gives no batch"):
        list(Steps([], steps=2, start=0, seed=0))


@pytest.mark.parametrize(
    ("module", "data", "said"),
    [
        (target(StepsItself), target(Numbers), "StepsItself steps its optimizers itself"),
        ({"_target_": f"{DEMOS}.boring_classes.ManualOptimBoringModel"}, None, "ManualOptimBoringModel steps"),
        ({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}, target(Numbers), "a LightningModule of"),
        (target(Regression), {"_target_": "torch.nn.Identity"}, "lightning.data must be a LightningDataModule of the"),
        (target(Regression), None, "Regression has no train_dataloader; name data that has one as lightning.data"),
        (target(NoScalar), target(Numbers), r"NoScalar.training_step must give the loss as a scalar tensor, got shape"),
        # Its validation gives a number to nobody.
        ({"_target_": f"{DEMOS}.boring_classes.BoringModel"}, None, "objective.metric must be reported by evaluations"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told_in_a_sentence(wrapped, module, data, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run.execute(wrapped(module, data))


def test_a_modules_own_loaders_stand_for_a_data_module() -> None:
    data = WrappedData(BoringModel())
    data.train_batches = 3
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3
    assert data.fingerprint.startswith("sha256:")
