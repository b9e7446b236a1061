"""One run from config to record."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import re
import resource
import shlex
import signal
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from hydra.errors import InstantiationException
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from experiments.core import loggers as log
from experiments.core import record as rec
from experiments.core import resolvers as resolvers
from experiments.core.callbacks import History, everyones, has_nan, is_evaluation
from experiments.core.choices import CONFIGS
from experiments.core.data import ResumableDataModule
from experiments.core.errors import ConfigError, UserError
from experiments.core.folder import CarryIdentity, Identity, RunFolder
from experiments.core.module import TaskModule

RESUME_CHOICES = ("auto", "never")


@rank_zero_only
def rank_zero_print(text: str) -> None:
    print(text, flush=True)


def check_choices(cfg: DictConfig) -> None:
    """Refuse values that the parts would misread or not notice.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    if cfg.resume not in RESUME_CHOICES:
        raise ConfigError(f"resume must be one of {', '.join(RESUME_CHOICES)}, got {cfg.resume!r}")
    if not isinstance(cfg.overwrite, bool):
        raise ConfigError(f"overwrite must be true or false, got {cfg.overwrite!r}")
    if cfg.purpose not in ("eval", "tune", "pilot"):
        raise ConfigError(f"purpose must be eval, tune or pilot, got {cfg.purpose!r}")
    for name in ("threads", "eval_every"):
        if not isinstance(cfg[name], int) or cfg[name] < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {cfg[name]!r}")
    steps = cfg.trainer.max_steps
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"trainer.max_steps must be a whole number of at least 1, got {steps!r}")
    if steps % cfg.eval_every:
        raise ConfigError(
            f"eval_every must divide trainer.max_steps={steps}, so that the end is evaluated, got {cfg.eval_every}"
        )
    for name in ("objective", "target"):
        if cfg[name].mode not in ("min", "max"):
            raise ConfigError(f"{name}.mode must be min or max, got {cfg[name].mode!r}")


def instantiate(config: Any, **options: Any) -> Any:
    """`hydra.utils.instantiate`, where what our own parts refuse comes out as the sentence that they raised."""
    try:
        return hydra.utils.instantiate(config, **options)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise cause or error from None


def build_data(cfg: DictConfig) -> ResumableDataModule:
    data: ResumableDataModule = instantiate(cfg.data)
    batches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    data.configure(train_batches=batches, data_seed=int(cfg.data_seed))
    return data


def build_module(cfg: DictConfig) -> TaskModule:
    """The task's module. Initial weights depend on `seed` alone: no optimizer has a part in them."""
    lightning.seed_everything(int(cfg.seed), workers=True, verbose=False)
    module: TaskModule = instantiate(
        cfg.module,
        model=instantiate(cfg.model),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
    )
    return module


def build_trainer(cfg: DictConfig, stem: Path) -> Trainer:
    loggers: list[Logger] = [instantiate(entry) for entry in (cfg.logger or {}).values()]
    callbacks: list[Callback] = [instantiate(entry) for entry in cfg.callbacks.values() if entry]
    if loggers:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    # Lightning counts batches here, we count optimizer steps.
    interval = cfg.eval_every * cfg.trainer.accumulate_grad_batches
    trainer: Trainer = instantiate(
        cfg.trainer,
        logger=loggers or False,
        callbacks=callbacks,
        default_root_dir=str(stem),
        val_check_interval=interval,
        _convert_="object",
    )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if cfg.multirun and trainer.world_size > 1 and not environment.creates_processes_externally:
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
        words = ["python", "-m", "experiments.train", *HydraConfig.get().overrides.task]
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
    name = f"{cfg.experiment_name}-{cfg.arm}.yaml"
    if cfg.purpose != "eval" or (CONFIGS / "tuned" / name).exists() or any("optimizer.lr=" in word for word in given):
        return ""
    return f"no learning rate was tuned for it (configs/tuned/{name} is missing), so {cfg.optimizer.lr} is a guess"


def execute(cfg: DictConfig) -> dict[str, Any]:
    """Train, test, write the record. A run whose record exists, for this config and these data, is not repeated."""
    check_choices(cfg)
    torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high")
    quiet_lightning()
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
    started = datetime.datetime.now(datetime.timezone.utc)
    checkpoint = folder.claim(cfg.resume, cfg.overwrite)
    if guess := untuned(cfg):
        rank_zero_print(f"{cfg.label}: {guess}")
    code, dirty = rec.commit()
    module = build_module(cfg)
    trainer = build_trainer(cfg, folder.stem)
    trainer.callbacks.append(CarryIdentity(folder.identity))  # type: ignore[attr-defined]
    history = next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]
    config = dict(folder.identity.config)
    if checkpoint is None and trainer.is_global_zero:
        folder.clear()
        OmegaConf.save(cfg, folder.stem / "config.yaml", resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams({"config": config, "data_fingerprint": data.fingerprint})
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except SIGTERMException:
        # Lightning ends a terminated process with status 0, as if the run were done.
        log.close(trainer.loggers)
        raise SystemExit(128 + signal.SIGTERM) from None
    if trainer.interrupted:
        log.close(trainer.loggers)
        # Lightning has swallowed Ctrl-C; a sweep must end too.
        raise KeyboardInterrupt

    final = history.evaluations[-1] if history.evaluations else {}
    metrics = {name: value for name, value in final.items() if is_evaluation(name)}
    if not history.diverged:
        metrics |= {name: float(v) for name, v in trainer.test(module, datamodule=data, verbose=False)[0].items()}
        history.diverged = has_nan(metrics) or not math.isfinite(metrics.get(cfg.objective.metric, 0.0))
    samples = [] if history.diverged else module.samples()
    log.log_samples(trainer.loggers, samples)
    artifacts = [] if history.diverged else module.save_artifacts(str(folder.stem))

    objective = OmegaConf.to_container(cfg.objective, resolve=True)
    assert isinstance(objective, dict)
    objective["value"] = None if history.diverged else metrics.get(cfg.objective.metric)
    record = {
        "schema": rec.SCHEMA,
        **{name: cfg[name] for name in ("task", "scale", "arm", "variant", "trial", "purpose", "experiment_name")},
        "seed": int(cfg.seed),
        "data_seed": int(cfg.data_seed),
        "optimizer": {k: v for k, v in config["optimizer"].items() if k != "_partial_"}
        | {"gradient_clip_val": cfg.trainer.gradient_clip_val},
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
        **module.flags(),
        "problems": data.problems,
        "samples": samples,
        "artifacts": [Path(p).name for p in artifacts],
        "versions": rec.versions(),
        "commit": code,
        "dirty": dirty,
        "device": rec.device_name(trainer.strategy.root_device.type),
        "threads": cfg.threads,
        "command": command(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if trainer.is_global_zero:
        rec.write_record(folder.record, record)
    log.close(trainer.loggers)
    shown = "diverged" if history.diverged else f"{cfg.objective.metric} {objective['value']:.4g}"
    rank_zero_print(f"{cfg.label}: {shown} in {record['wall_time_s']:.0f} s, record {folder.record}")
    return rec.jsonable(record)  # type: ignore[no-any-return]
