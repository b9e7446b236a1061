"""One run from config to record."""

from __future__ import annotations

import contextlib
import datetime
import gc
import logging
import math
import re
import resource
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from hydra.errors import InstantiationException
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from experiments.core import loggers as log
from experiments.core import provenance, stopping
from experiments.core import records as rec
from experiments.core import resolvers as resolvers
from experiments.core.callbacks import ClippedTwice, History, NonFiniteGradients, everyones, has_nan, is_evaluation
from experiments.core.checkpoint import WholeFiles
from experiments.core.checks import check_choices
from experiments.core.choices import CONFIGS
from experiments.core.data import ResumableDataModule
from experiments.core.errors import ConfigError, UserError
from experiments.core.folder import CarryIdentity, Identity, RunFolder, rank_zero_print
from experiments.core.length import fit_length
from experiments.core.module import TaskModule
from experiments.core.optim import path_taken
from experiments.core.precision import precision_of, set_float32_products
from fadam.lightning import FAdamMonitor


def instantiate(config: Any, **options: Any) -> Any:
    """`hydra.utils.instantiate`, where what a part refuses comes out as a sentence.

    Parts get plain lists: an optimizer keeps its `betas` in its state, and a safe load refuses OmegaConf's.

    Raises:
        ConfigError: the part refused an option.
    """
    try:
        return hydra.utils.instantiate(config, **{"_convert_": "all", **options})
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        first = error.__cause__
        if isinstance(first, (TypeError, ValueError, ImportError, MisconfigurationException)):
            raise ConfigError(f"{config.get('_target_')}: {first}") from error
        raise


def build_data(cfg: DictConfig) -> ResumableDataModule:
    data: ResumableDataModule = instantiate(cfg.data)
    batches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    data.configure(train_batches=batches, data_seed=int(cfg.data_seed))
    return data


def build_module(cfg: DictConfig) -> TaskModule:
    """The task's module. Initial weights depend on `seed` and on no optimizer."""
    lightning.seed_everything(int(cfg.seed), workers=True, verbose=False)
    module: TaskModule = instantiate(
        cfg.module,
        model=instantiate(cfg.model),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
    )
    return module


def build_trainer(cfg: DictConfig, stem: Path) -> Trainer:
    loggers: list[Logger] = [instantiate(entry) for entry in (cfg.logger or {}).values() if entry]
    callbacks: list[Callback] = [instantiate(entry) for entry in cfg.callbacks.values() if entry]
    if loggers:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    callbacks.sort(key=lambda each: isinstance(each, FAdamMonitor))  # it sees what the others left of the gradients
    # Lightning counts batches here, we count optimizer steps.
    interval = cfg.eval_every * cfg.trainer.accumulate_grad_batches
    precision = precision_of(cfg.trainer)
    trainer: Trainer = instantiate(
        cfg.trainer,
        logger=loggers or False,
        callbacks=callbacks,
        default_root_dir=str(stem),
        val_check_interval=interval,
        precision=precision["precision"],
        plugins=[WholeFiles(), *precision["plugins"]],
        _convert_="object",
    )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if cfg.multirun and trainer.world_size > 1 and not getattr(environment, "creates_processes_externally", False):
        # Lightning starts the others with this process's command line, which is the sweep's.
        raise ConfigError(
            f"a sweep on one machine cannot start runs of {trainer.world_size} processes: send it to SLURM with "
            "hydra/launcher=slurm, or start its runs one by one"
        )
    return trainer


def steps_to_target(history: list[dict[str, Any]], target: DictConfig) -> dict[str, Any]:
    """The first evaluation that reached the target, if any did."""
    found = {**OmegaConf.to_container(target, resolve=True), "steps": None, "seconds": None}  # type: ignore[dict-item]
    for entry in history:
        value = entry.get(target.metric)
        if value is None or not math.isfinite(value) or target.value is None:
            continue
        if value <= target.value if target.mode == "min" else value >= target.value:
            return found | {"steps": entry["step"], "seconds": entry["seconds"]}
    return found


def reset_peak_memory() -> None:
    """Forget the peaks of runs that this process did before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Peak since `reset_peak_memory`: device memory on a GPU, resident memory of this process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def command() -> str:
    """The command that repeats this run."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        given = HydraConfig.get().overrides
        # Where somebody's own task lies is no part of the task's words.
        words = ["python", "-m", "experiments.train", *(w for w in given.hydra if "own://" in w), *given.task]
        # Where and how it was watched is no part of repeating it.
        kept = [w for w in words if not w.startswith(("paths.", "logger=", "progress=", "resume="))]
        return shlex.join(kept)
    return ""


def quiet_lightning() -> None:
    """Silence what Lightning says of devices it did not find and of choices made here on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*your dataloader is not resumable.*",  # it is: see experiments.core.data
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*LeafSpec.*is deprecated.*",
        ".*recommended to use `self.log.*sync_dist=True.*",  # what is logged is of all processes already
    ):
        warnings.filterwarnings("ignore", message=message)


def untuned(cfg: DictConfig) -> str:
    """A sentence if nobody chose this run's learning rate for this experiment and optimizer; else ""."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    if cfg.purpose != "eval" or cfg.arm in cfg.tuned or any("optimizer.lr=" in word for word in given):
        return ""
    where = f"configs/tuned/{cfg.experiment_name}.yaml"
    return f"no learning rate was tuned for it ({where} has no {cfg.arm}), so {cfg.optimizer.lr} is a guess"


def check_gpu(cfg: DictConfig) -> None:
    """Refuse a run on a GPU where there is none, before any data are fetched.

    Raises:
        ConfigError: naming what does without.
    """
    if cfg.trainer.accelerator == "cuda" and not torch.cuda.is_available():
        name = str(cfg.experiment_name)
        alike = re.sub("_(gpu|paper)(?=_|$)", "_cpu", name)
        small = alike if (CONFIGS / "experiment" / f"{alike}.yaml").is_file() else f"{cfg.task}_cpu"
        raise ConfigError(f"{name} wants a CUDA GPU, and this machine has none: take experiment={small}")


@contextlib.contextmanager
def ended_by_signals(trainer: Trainer) -> Iterator[None]:
    """Lightning ends a terminated process with status 0, as if the run were done, and one that Ctrl-C ended with 1."""
    try:
        with stopping.left_to_trainer():
            yield
    except SIGTERMException:
        raise SystemExit(stopping.TERMINATED) from None
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def execute(cfg: DictConfig) -> dict[str, Any]:
    """Train, test, write the record. A run whose record exists, for this config and these data, is not repeated."""
    if changed := fit_length(cfg):
        rank_zero_print(f"{cfg.label}: {changed}")
    check_choices(cfg)
    check_gpu(cfg)
    torch.set_num_threads(cfg.threads)
    set_float32_products(cfg.trainer)
    quiet_lightning()
    gc.collect()  # trainers and modules of earlier runs are circles of references
    reset_peak_memory()

    data = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    config = rec.plain_config(cfg)
    folder = RunFolder(Path(cfg.paths.run_dir), Identity(rec.config_hash(config), data.fingerprint, config))
    done = folder.finished()
    if done is not None:
        rank_zero_print(f"{cfg.label}: already done, see {folder.record}")
        return done
    with folder.held():
        return train(cfg, folder, data)


def train(cfg: DictConfig, folder: RunFolder, data: ResumableDataModule) -> dict[str, Any]:
    """The run itself, in a folder that is held for it."""
    checkpoint = folder.claim(cfg.resume, cfg.overwrite)
    if guess := untuned(cfg):
        rank_zero_print(f"{cfg.label}: {guess}")
    module = build_module(cfg)
    trainer = build_trainer(cfg, folder.stem)
    trainer.callbacks += [CarryIdentity(folder.identity), ClippedTwice(cfg.label)]  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        folder.tidy()
        if checkpoint is None:
            folder.clear()
            OmegaConf.save(cfg, folder.stem / "config.yaml", resolve=True)
    task, scale, variant, arm, trial = (str(cfg[name]) for name in ("task", "scale", "variant", "arm", "trial"))
    run_id = log.run_id(task, scale, variant, arm, trial, cfg.seed, folder.identity.digest)
    for logger in trainer.loggers:
        if isinstance(logger, log.OptionalWandbLogger):
            logger.identify(run_id)
    status = "failed"
    try:
        record = fit_and_test(cfg, folder, data, module, trainer, checkpoint)
        status = "success"
    finally:
        log.close(trainer.loggers, status)
    value, seconds = record["objective"]["value"], record["wall_time_s"]
    shown = "diverged" if record["diverged"] else f"{cfg.objective.metric} {value:.4g}"
    rank_zero_print(f"{cfg.label}: {shown} in {seconds:.0f} s, record {folder.record}")
    return record


def fit_and_test(
    cfg: DictConfig,
    folder: RunFolder,
    data: ResumableDataModule,
    module: TaskModule,
    trainer: Trainer,
    checkpoint: str | None,
) -> dict[str, Any]:
    """Trains on from `checkpoint`, tests, and writes the record."""
    started = datetime.datetime.now(datetime.timezone.utc)
    code, dirty = provenance.commit()
    config = dict(folder.identity.config)
    history = next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]
    gradients = [c for c in trainer.callbacks if isinstance(c, NonFiniteGradients)]  # type: ignore[attr-defined]
    clipping = [c for c in trainer.callbacks if isinstance(c, ClippedTwice)]  # type: ignore[attr-defined]
    history.watched = {f"{name}.metric": cfg[name].metric for name in ("objective", "target")}
    for logger in trainer.loggers:
        logger.log_hyperparams({"config": config, "data_fingerprint": data.fingerprint})
    with ended_by_signals(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)

    final = history.evaluations[-1] if history.evaluations else {}
    metrics = {name: value for name, value in final.items() if is_evaluation(name)}
    if not history.diverged:
        with ended_by_signals(trainer):
            tested = trainer.test(module, datamodule=data, verbose=False)[0]
        metrics |= {name: float(value) for name, value in tested.items()}
        history.diverged = has_nan(metrics) or not math.isfinite(metrics[cfg.objective.metric])
    samples = [] if history.diverged else module.samples()
    log.log_samples(trainer.loggers, samples)
    artifacts = [] if history.diverged else module.save_artifacts(str(folder.stem))

    objective = OmegaConf.to_container(cfg.objective, resolve=True)
    assert isinstance(objective, dict)
    objective["value"] = None if history.diverged else metrics.get(cfg.objective.metric)
    record = {
        "schema": rec.SCHEMA,
        **{name: cfg[name] for name in ("task", "scale", "arm", "variant", "purpose", "experiment_name")},
        "trial": str(cfg.trial),
        "seed": int(cfg.seed),
        "data_seed": int(cfg.data_seed),
        "optimizer": {k: v for k, v in config["optimizer"].items() if k != "_partial_"}
        | {"gradient_clip_val": cfg.trainer.gradient_clip_val},
        "optimizer_path": path_taken(trainer.optimizers[0]),
        "searched": config["searched"],
        "data": {**data.description, "fingerprint": data.fingerprint},
        "config_hash": folder.identity.digest,
        "config": config,
        "steps": trainer.global_step,
        "seen": history.all_seen(),
        "metrics": metrics,
        "objective": objective,
        "history": history.evaluations,
        "target": steps_to_target(history.evaluations, cfg.target),
        "wall_time_s": history.elapsed(),
        "step_time_s": history.step_time,
        "peak_memory_bytes": max(everyones(peak_memory_bytes())),
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "diverged": history.diverged,
        "skipped_steps": sum(c.skipped for c in gradients),
        **module.flags(),
        **({"notes": notes} if (notes := [c.said for c in clipping if c.said]) else {}),
        "problems": data.problems,
        "samples": samples,
        "artifacts": [Path(p).name for p in artifacts],
        "versions": provenance.versions(),
        "commit": code,
        "dirty": dirty,
        "device": provenance.device_name(trainer.strategy.root_device.type),
        "threads": cfg.threads,
        "command": command(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if trainer.is_global_zero:
        rec.write_record(folder.record, record)
        folder.done()
    return rec.jsonable(record)  # type: ignore[no-any-return]
