"""The data module, one step of every config, what a run leaves behind, and resuming."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torchmetrics import MeanMetric
from torchmetrics.image import StructuralSimilarityIndexMeasure

from experiments.core import run
from experiments.core.errors import ConfigError, DataError
from experiments.vqvae import metrics
from experiments.vqvae.data import ImageData
from experiments.vqvae.metrics import SplitScores
from experiments.vqvae.module import ImageModule
from experiments.vqvae.pictures import GAP, ROWS
from experiments.vqvae.quantiser import VectorQuantiser
from tests.core.test_run import break_off_at

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("vqvae_*.yaml"))
# Every config at a size that takes a moment.
TINY = (
    "scale=smoke", "logger=none", "progress=line", "trainer.max_steps=2", "eval_every=2", "scheduler.warmup_steps=1",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true",
    "data.batch_size=4", "data.num_workers=0", "model.quantiser.codes=8", "model.quantiser.dim=4",
    "model.quantiser.restart_after=1", "model.quantiser.start_after=0", "model.likelihood.features=4",
)  # fmt: skip
TINY_MODEL = {
    "ConvVQVAE": ("model.width=8", "model.blocks=1"),
    "ViTVQVAE": (
        "model.image_size=16",
        "model.patch=8",
        "model.dim=8",
        "model.heads=2",
        "model.layers=1",
        "model.hidden=16",
    ),
}


@pytest.fixture
def tiny(compose_config, make_store):
    """`tiny("experiment=vqvae_cpu", ...)`: that config, shrunken, on made-up images."""

    def build(experiment: str, *overrides: str) -> DictConfig:
        target = compose_config(experiment).model._target_.rsplit(".", 1)[-1]
        trainer = () if "strategy" not in compose_config(experiment).trainer else ("trainer.strategy=auto",)
        folder = make_store(size=16)
        return compose_config(experiment, *TINY, *TINY_MODEL[target], *trainer, f"data.root={folder}", *overrides)

    return build


def batches(data: ImageData) -> list[torch.Tensor]:
    return list(data.train_dataloader())


def data_at(folder: Path, **options: Any) -> ImageData:
    data = ImageData(str(folder), **({"batch_size": 7} | options))
    data.configure(train_batches=20, data_seed=5)
    data.setup("fit")
    return data


def test_batches_are_a_function_of_the_step(make_store) -> None:
    folder = make_store()
    whole = batches(data_at(folder))
    assert len(whole) == 20
    assert {tuple(b.shape) for b in whole} == {(7, 3, 8, 8)}
    assert whole[0].dtype == torch.uint8
    resumed = data_at(folder)
    resumed.load_state_dict({"batches": 9})
    assert all(torch.equal(a, b) for a, b in zip(batches(resumed), whole[9:], strict=True))
    with_workers = data_at(folder, num_workers=2)
    assert all(torch.equal(a, b) for a, b in zip(batches(with_workers), whole, strict=True))


def test_an_epoch_holds_every_tile_once_and_mirrors_half(make_store) -> None:
    data = data_at(make_store(count=40), batch_size=8)
    n = len(data.split("train"))
    for epoch in (0, 1):
        order = [i for batch in data.epoch_batches(epoch) for i in batch]
        assert len(order) == n // 8 * 8
        assert len({i % n for i in order}) == len(order)
        assert 0.4 < sum(i >= n for i in order) / len(order) < 0.6
    assert data.epoch_batches(0) == data.epoch_batches(0)
    assert data.epoch_batches(0) != data.epoch_batches(1)
    plain = data_at(make_store(count=40), batch_size=8, mirror=False)
    assert max(i for batch in plain.epoch_batches(0) for i in batch) < n


def test_mirrored_tiles_are_mirrored(make_store) -> None:
    tiles = data_at(make_store()).split("train")
    n = len(tiles)
    plain, mirrored = tiles.__getitems__([3]), tiles.__getitems__([n + 3])
    assert torch.equal(mirrored, plain.flip(-1))
    assert np.array_equal(plain[0].permute(1, 2, 0), tiles.store.tiles[tiles.rows[3]])


def test_evaluation_takes_every_tile_once(make_store) -> None:
    data = data_at(make_store(), eval_batch_size=4)
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        batches = list(loader)
        rows = data.split(split).rows
        assert torch.equal(torch.cat([b.tiles for b in batches]), data.split(split).__getitems__(range(len(rows))))
        numbers = torch.cat([b.photographs for b in batches]).numpy()
        images = np.unique(data.store.images[rows])
        assert np.array_equal(images[numbers], data.store.images[rows])
        assert len(data.labelled(split).names()) == len(images) == data.store.manifest["sources"][split] == 2


@pytest.mark.parametrize(("processes", "size"), [(2, 4), (3, 2), (4, 1), (5, 64)])
def test_processes_share_the_evaluation_in_as_many_batches_each(make_store, processes: int, size: int) -> None:
    data = data_at(make_store(count=33), eval_batch_size=size)
    shares = []
    for rank in range(processes):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=processes)  # type: ignore[assignment]
        shares.append([batch.tiles for batch in data.val_dataloader()])
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(batch) <= size + 1 for share in shares for batch in share)
    every = torch.cat([batch for share in shares for batch in share]).flatten(1)
    expected = data.split("val").__getitems__(range(len(data.split("val")))).flatten(1)
    assert len(every) == len(expected) > processes
    assert torch.equal(torch.unique(every, dim=0), torch.unique(expected, dim=0))


def test_data_module_says_what_it_holds(make_store, tmp_path: Path) -> None:
    data = data_at(make_store())
    assert data.fingerprint == data.store.manifest["fingerprint"]
    assert data.description["name"] == "made-up"
    assert data.description["tiles"]["train"] == len(data.split("train"))
    assert data.problems == {}
    with pytest.raises(DataError, match="no images at"):
        ImageData(str(tmp_path / "nowhere"), 4).prepare_data()
    with pytest.raises(ConfigError, match=r"data.batch_size must be at most \d+, the tiles of .*, got 99999"):
        data_at(make_store(), batch_size=99999)
    for option in ("batch_size", "eval_batch_size", "num_workers"):
        with pytest.raises(ConfigError, match=f"data.{option} must be at least"):
            data_at(make_store(), **{option: -1})
    with pytest.raises(ConfigError, match="the split must be one of train, val, test, got 'dev'"):
        data.split("dev")


@pytest.mark.parametrize(
    ("likelihood", "objective"),
    [("gaussian", "val/psnr"), ("categorical", "val/bits_per_dim"), ("discretized_logistic", "val/bits_per_dim")],
)
def test_likelihood_names_the_variant_and_what_tuning_looks_at(compose_config, likelihood: str, objective: str) -> None:
    for experiment in EXPERIMENTS:
        if not experiment.endswith("vit"):
            cfg = compose_config(f"experiment={experiment}", f"likelihood={likelihood}")
            assert (cfg.variant, cfg.objective.metric) == (likelihood, objective)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_step_of_every_config(tiny, tmp_path: Path, experiment: str) -> None:
    cfg = tiny(f"experiment={experiment}", "optimizer=fadam")
    record = run.execute(cfg)
    assert record["steps"] == 2
    assert record["variant"] == cfg.variant != ""
    assert not record["diverged"]
    assert record["seen"] == {"images": 8.0}
    discrete = cfg.variant != "gaussian"
    for split in ("val", "test"):
        names = {n.removeprefix(f"{split}/") for n in record["metrics"] if n.startswith(f"{split}/")}
        expected = {"mse", "psnr", "ssim", "codebook_perplexity", "codebook_usage"}
        assert names - {"lpips", "rfid"} == expected | ({"bits_per_dim"} if discrete else set())
        # The mean over photographs of their PSNRs: at least the PSNR of the mean.
        assert record["metrics"][f"{split}/psnr"] > -10 * math.log10(record["metrics"][f"{split}/mse"]) - 1e-4
    assert record["objective"]["value"] == record["metrics"][cfg.objective.metric]
    folder = tmp_path / "runs/vqvae/smoke/fadam"
    assert record["artifacts"] == [f"{cfg.variant}-main-s1{end}" for end in (".png", "-codes.png", "-photographs.csv")]
    with (folder / record["artifacts"][2]).open(newline="") as file:
        photographs = list(csv.DictReader(file))
    assert len(photographs) == record["data"]["images"]["test"] == 2
    assert sum(int(row["tiles"]) for row in photographs) == record["data"]["tiles"]["test"]
    for name in {"mse", "psnr", "ssim"} | ({"bits_per_dim"} if discrete else set()):
        mean = sum(float(row[name]) for row in photographs) / len(photographs)
        assert mean == pytest.approx(record["metrics"][f"test/{name}"], rel=1e-5)
    assert all((folder / name).stat().st_size < 150_000 for name in record["artifacts"])


def test_picture_has_the_layout_that_it_declares(tiny, tmp_path: Path) -> None:
    record = run.execute(tiny("experiment=vqvae_cpu_gaussian", "optimizer=adamw_clip"))
    image = Image.open(tmp_path / "runs/vqvae/smoke/adamw_clip" / record["artifacts"][0])
    columns, tile, gap = (int(image.text[k]) for k in ("columns", "tile", "gap"))  # type: ignore[attr-defined]
    assert (tile, gap) == (16, GAP)
    assert image.text["rows"] == ",".join(ROWS)  # type: ignore[attr-defined]
    assert image.size == (columns * (tile + gap) - gap, 2 * (tile + gap) - gap)
    data = ImageData(tiny("experiment=vqvae_cpu").data.root, 4)
    first = data.split("test").__getitems__([len(data.split("test")) // (2 * columns)])[0]
    assert np.array_equal(np.asarray(image)[:tile, :tile], first.permute(1, 2, 0))


def test_collapse_is_flagged(tiny) -> None:
    cfg = tiny("experiment=vqvae_cpu", "optimizer=fadam")
    module = run.build_module(cfg)
    assert isinstance(module, ImageModule)
    for perplexity, collapsed in ((1.0, True), (1.99, True), (2.0, False), (200.0, False)):
        module.perplexity = perplexity
        assert module.flags() == {"collapsed": collapsed}


def test_a_collapsed_run_says_so(tiny) -> None:
    cfg = tiny("experiment=vqvae_cpu", "optimizer=adamw_clip", "model.quantiser.codes=2", "model.quantiser.dim=1")
    # With one dimension on the sphere there are two codes, and a learning rate of 0 keeps both; so force one of them.
    cfg.model.quantiser.update(kmeans_iterations=0, restart_after=0, normalise=False)
    cfg.module.update(codebook_weight=0.0)
    module_of = run.build_module

    def one_code(config: DictConfig) -> Any:
        module = module_of(config)
        module.model.quantiser.embedding.weight.data = torch.tensor([[0.0], [1e6]])
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_module", one_code)
        record = run.execute(cfg)
    assert record["collapsed"] is True
    assert record["metrics"]["val/codebook_perplexity"] == pytest.approx(1.0)
    assert record["metrics"]["val/codebook_usage"] == 0.5


# Codes are restarted all the time, on both sides of the break, and start before it or after it.
BEFORE, AFTER = "model.quantiser.start_after=2", "model.quantiser.start_after=4"
MANY = ("+module.start_images=30", "model.quantiser.kmeans_seeding=spread", "model.quantiser.restart_below=0.5")


@pytest.mark.parametrize(
    ("optimizer", "learning", "options"),
    [
        ("adamw_clip", "gradient", (AFTER,)),
        ("adamw_clip", "ema", (AFTER,)),
        ("fadam", "gradient", (AFTER,)),
        ("fadam", "gradient", (BEFORE, *MANY, "model.quantiser.restart_until=7")),
        ("fadam", "gradient", (AFTER, *MANY)),
        ("adamw_clip", "ema", (AFTER, *MANY)),
    ],
)
def test_resumed_run_is_the_uninterrupted_one(
    tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, optimizer: str, learning: str, options: tuple[str, ...]
) -> None:
    common = ("experiment=vqvae_cpu", f"optimizer={optimizer}", "trainer.max_steps=9", "eval_every=3")
    common += (f"model.quantiser.learning={learning}", "model.quantiser.codes=40", *options)
    cfg = tiny(*common)
    whole = run.execute(cfg)
    last = Path(cfg.paths.run_dir) / "last.ckpt"
    expected = torch.load(last, weights_only=True)["state_dict"]

    cfg = tiny(*common, f"paths.runs_dir={tmp_path / 'again'}")
    last = Path(cfg.paths.run_dir) / "last.ckpt"

    with monkeypatch.context() as patch:
        break_off_at(patch, 5)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)
    assert torch.load(last, weights_only=True)["global_step"] == 3
    resumed = run.execute(cfg)
    found = torch.load(last, weights_only=True)["state_dict"]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["seen"] == whole["seen"]


def test_codebooks_start_from_the_same_images_for_every_optimizer(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    original = VectorQuantiser.start

    def spy(quantiser: VectorQuantiser, vectors: torch.Tensor) -> None:
        assert int(quantiser.batches) == 0
        given.append(vectors)
        original(quantiser, vectors)

    monkeypatch.setattr(VectorQuantiser, "start", spy)
    for optimizer, seed, data_seed in (("fadam", 1, 1), ("adamw_clip", 1, 1), ("fadam", 1, 2)):
        seeds = (f"seed={seed}", f"data_seed={data_seed}", f"trial=t{data_seed}")
        run.execute(tiny("experiment=vqvae_cpu", f"optimizer={optimizer}", "+module.start_images=10", *seeds))
    assert [tuple(v.shape) for v in given] == [(10, 4, 4, 4)] * 3
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])


def test_restarts_reach_the_optimizer(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.vqvae import module as under_test

    moved = []
    original = under_test.move_state

    def spy(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, restart: Any) -> None:
        original(optimizer, parameter, restart)
        rows = [v for v in optimizer.state[parameter].values() if v.shape == parameter.shape]
        assert len(rows) == 2
        assert all(torch.equal(v[restart.codes], v[restart.donors]) for v in rows)
        moved.append(len(restart.codes))

    monkeypatch.setattr(under_test, "move_state", spy)
    run.execute(tiny("experiment=vqvae_cpu", "optimizer=fadam", "model.quantiser.codes=60"))
    assert sum(moved) > 0


def test_codes_restart_after_a_step_of_the_optimizer(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not between the batches that it accumulates, whose gradients are of the codes as they were."""
    steps = []
    original = VectorQuantiser.restart_idle

    def spy(self: VectorQuantiser) -> Any:
        steps.append(None)
        return original(self)

    monkeypatch.setattr(VectorQuantiser, "restart_idle", spy)
    record = run.execute(tiny("experiment=vqvae_cpu", "optimizer=fadam", "trainer.accumulate_grad_batches=2"))
    assert len(steps) == record["steps"] > 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("experiment=vqvae_cpu", "module.beta=-1"), "module.beta must be at least 0, got -1"),
        (("experiment=vqvae_cpu", "+module.start_images=-1"), "module.start_images must be at least 0, got -1"),
        (
            ("experiment=vqvae_cpu_vit", "model.image_size=32"),
            "model.image_size must be 16, the size of the images, got 32",
        ),
        (
            ("experiment=vqvae_cpu", "+model.likelihood.levels=16"),
            "likelihood.levels must be 256, the values of a channel of the images, got 16",
        ),
        (
            ("experiment=vqvae_cpu", "model.downsampling=32"),
            "model.downsampling must divide 16, the size of the images, got 32",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(tiny, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run.execute(tiny(*overrides, "optimizer=fadam"))


def test_scores_over_a_split_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8)
    found, indices, bits = torch.rand(12, 3, 16, 16), torch.randint(8, (12, 2, 2)), torch.rand(12)
    photographs = torch.tensor([0] * 6 + [2] * 5 + [1])
    results = []
    for sizes in ([12], [5, 5, 2]):
        scores = SplitScores(8, discrete=True, photographs=3)
        parts = (t.split(sizes) for t in (bits, found, images, indices, photographs))
        for part in zip(*parts, strict=True):
            scores.update(*part)
        result = scores.compute_and_reset()
        assert torch.equal(result.counts, torch.bincount(indices.flatten(), minlength=8))
        assert result.tiles.tolist() == [6, 1, 5]
        results.append(result.metrics)
        assert scores.codebook.counts.sum() == 0
    assert all(results[0][k].item() == pytest.approx(results[1][k].item(), rel=1e-5) for k in results[0])
    # Means over photographs of the means over their tiles, one by one.
    squared = (found - images / 255).square().flatten(1).mean(1)
    similar = StructuralSimilarityIndexMeasure(data_range=1.0)
    for name, value in {
        "mse": [squared[photographs == p].mean().item() for p in range(3)],
        "psnr": [-10 * math.log10(squared[photographs == p].mean().item()) for p in range(3)],
        "ssim": [similar(found[photographs == p], images[photographs == p] / 255).item() for p in range(3)],
        "bits_per_dim": [bits[photographs == p].mean().item() for p in range(3)],
    }.items():
        assert results[0][name].item() == pytest.approx(sum(value) / 3, rel=1e-5), name
        assert result.photographs[name].tolist() == pytest.approx(value, rel=1e-5), name


def test_a_perfect_photograph_has_a_finite_psnr() -> None:
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    scores = SplitScores(8, discrete=False, photographs=2)
    scores.update(None, images / 255.0, images, torch.zeros(2, 2, 2, dtype=torch.int64), torch.tensor([0, 1]))
    assert scores.compute_and_reset().metrics["psnr"].item() == pytest.approx(100.0)


def test_a_photograph_without_a_tile_is_left_out_and_one_that_is_not_finite_counts() -> None:
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    indices, numbers = torch.zeros(2, 2, 2, dtype=torch.int64), torch.tensor([0, 2])
    scores = SplitScores(8, discrete=False, photographs=3)
    scores.update(None, images / 255.0, images, indices, numbers)
    result = scores.compute_and_reset()
    assert result.metrics["mse"].item() == 0
    assert result.metrics["psnr"].item() == pytest.approx(100.0)
    scores.update(None, torch.stack([images[0] / 255.0, torch.full((3, 16, 16), math.nan)]), images, indices, numbers)
    assert math.isnan(scores.compute_and_reset().metrics["mse"].item())


def test_ssim_sees_the_tile_mirrored_at_its_border() -> None:
    """torchmetrics' border rule, which our docstring names: computed here with a window for each pixel."""
    torch.manual_seed(0)
    images = torch.randint(256, (1, 3, 12, 12), dtype=torch.uint8)
    found = (images / 255.0 + 0.1 * torch.randn(1, 3, 12, 12)).clamp(0, 1)
    scores = SplitScores(8, discrete=False, photographs=1)
    scores.update(None, found, images, torch.zeros(1, 2, 2, dtype=torch.int64), torch.tensor([0]))
    x, y = (np.pad(t[0].double().numpy(), ((0, 0), (5, 5), (5, 5)), "reflect") for t in (found, images / 255.0))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    total = 0.0
    for c in range(3):
        for i in range(12):
            for j in range(12):
                a, b = x[c, i : i + 11, j : j + 11], y[c, i : i + 11, j : j + 11]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb, cov = (
                    (window * a * a).sum() - ma**2,
                    (window * b * b).sum() - mb**2,
                    (window * a * b).sum() - ma * mb,
                )
                total += (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert scores.compute_and_reset().metrics["ssim"].item() == pytest.approx(total / (3 * 144), abs=1e-5)


def test_networks_without_weights_are_said_to_be_missing(
    tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    record = run.execute(tiny("experiment=vqvae_cpu", "optimizer=fadam", "module.perceptual=true"))
    said = capsys.readouterr().out
    assert "lpips is not measured: " in said
    assert "rfid is not measured: " in said
    assert "test/lpips" not in record["metrics"]


def test_networks_with_weights_are_asked(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Distance(MeanMetric):
        def update(self, reconstructions: torch.Tensor, originals: torch.Tensor) -> None:
            super().update((reconstructions - originals).abs().mean())

    monkeypatch.setitem(metrics.PERCEPTUAL, "lpips", (lambda: "", Distance))
    record = run.execute(tiny("experiment=vqvae_cpu", "optimizer=fadam", "module.perceptual=true"))
    assert 0.0 < record["metrics"]["test/lpips"] < 1.0
    assert "val/lpips" not in record["metrics"]


def test_record_of_a_run_is_json(tiny, tmp_path: Path) -> None:
    run.execute(tiny("experiment=vqvae_cpu", "optimizer=adamw_clip"))
    path = tmp_path / "runs/vqvae/smoke/adamw_clip/discretized_logistic-main-s1.json"
    record = json.loads(path.read_text())
    assert record["data"]["name"] == "made-up"
    assert record["collapsed"] in (True, False)
    assert record["config"]["data"]["root"].endswith("store-16")
