"""How `experiments.train` ends: the status, and a sentence or a traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import OmegaConf

from experiments.core import run, stopping
from experiments.core.checks import check_choices
from experiments.core.command import in_a_sentence
from experiments.core.errors import ConfigError
from tests.conftest import ROOT, TEST_CONFIGS

TOY = ("experiment=toy", "logger=none", "progress=line", f"hydra.searchpath=[file://{TEST_CONFIGS}]")


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-u", "-m", "experiments.train", *words, *TOY, f"paths.runs_dir={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("seed=1.5", "seed must be a whole number from 0 to 4294967295, got 1.5"),
        ("seed=abc", "seed must be a whole number from 0 to 4294967295, got 'abc'"),
        ("seed=-1", "seed must be a whole number from 0 to 4294967295, got -1"),
        ("seed=true", "seed must be a whole number from 0 to 4294967295, got True"),
        ("data_seed=0.5", "data_seed must be a whole number from 0 to 4294967295, got 0.5"),
        ("trial=a/b", "trial must be a name of letters, digits and . _ [+] = - that .*, got 'a/b'"),
        ("trial=../../x", r"trial must be a name .*, got '\.\./\.\./x'"),
        ("trial=.hidden", r"trial must be a name .*, got '\.hidden'"),
        ("trial=''", "trial must be a name .*, got ''"),
        ("trial=null", "trial must be a name .*, got None"),
        ("arm=a/b", "arm must be a name .*, got 'a/b'"),
        ("variant=a/b", "variant must be a name .*, got 'a/b'"),
        ("task='a b'", "task must be a name .*, got 'a b'"),
        ("scale=huge", "scale must be smoke, cpu, gpu or paper, got 'huge'"),
        ("overwrite=maybe", "overwrite must be true or false, got 'maybe'"),
        ("threads=true", "threads must be a whole number of at least 1, got True"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be a whole number of at least 1"),
        ("target.value=much", "target.value must be a number or null, got 'much'"),
        ("objective.metric=3", "objective.metric must be the name of a metric, got 3"),
    ],
)
def test_what_no_table_would_read_is_refused(compose_config, word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_choices(compose_config("experiment=toy", word))


@pytest.mark.parametrize("trial", ["main", "tune-lr0.0005", "eps1e-08", "'lr=1e-3'", "7", "0.5"])
def test_names_that_tables_read(compose_config, trial: str) -> None:
    check_choices(compose_config("experiment=toy", f"trial={trial}"))


def test_a_trial_that_is_a_number_is_recorded_as_a_name(compose_config, tmp_path: Path) -> None:
    assert run.execute(compose_config("experiment=toy", "trial=7", "logger=none"))["trial"] == "7"
    assert (tmp_path / "runs/toy/smoke/adamw_clip/7-s1.json").exists()


@pytest.mark.parametrize("option", ["objective", "target"])
def test_a_metric_that_no_evaluation_reports_is_named(compose_config, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}.metric must be one of val/loss, which .*, got 'val/wer'"):
        run.execute(compose_config("experiment=toy", "logger=none", f"{option}.metric=val/wer"))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trainer.precision=half", "lightning.Trainer: Precision 'half' is invalid"),
        ("+trainer.prezision=32", "lightning.Trainer: .*unexpected keyword argument 'prezision'"),
        ("model._target_=tests.core.toy.NoModel", "tests.core.toy.NoModel: .*NoModel"),
    ],
)
def test_what_a_part_refuses_is_a_sentence(compose_config, word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run.execute(compose_config("experiment=toy", "logger=none", word))


def test_sentences() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a.json")
    assert in_a_sentence(full) == "runs/a.json: no space left on device"
    wrapped = RuntimeError("no")
    wrapped.__cause__ = full
    assert in_a_sentence(wrapped) == "runs/a.json: no space left on device"
    assert in_a_sentence(OSError(errno.EBADF, "ours")) is None
    assert in_a_sentence(ValueError("ours")) is None
    with pytest.raises(Exception, match="Missing") as missing:
        OmegaConf.create({"a": {"b": "???"}}).a.b  # noqa: B018
    assert in_a_sentence(missing.value) == "a.b must be given: a.b=..."
    with pytest.raises(Exception, match="Missing") as missing:
        OmegaConf.create({"value": "???", "label": "${value}"}).label  # noqa: B018
    assert in_a_sentence(missing.value) == "value must be given: value=..."
    refused = InstantiationException("a\nb")
    refused.__cause__ = ConfigError("c must be d")
    assert in_a_sentence(refused) == "c must be d"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "optimizer=fadamm",
            r"optimizer=fadamm is not allowed; optimizer must be one of adam, .*; did you mean fadam\?",
        ),
        (
            "experiment=nothing",
            r"experiment=nothing is not allowed; experiment must be one of asr_cpu, .*, vqvae_paper",
        ),
        ("otimizer=fadam", r"Could not override 'otimizer'\."),
    ],
)
def test_a_choice_that_is_not_there_is_a_sentence(compose_config, word: str, sentence: str) -> None:
    with pytest.raises(CompactHydraException) as refused:
        compose_config("experiment=asr_cpu", word)
    assert re.fullmatch(sentence, in_a_sentence(refused.value) or "")


def test_a_folder_that_may_not_be_written_is_a_sentence(compose_config, tmp_path: Path) -> None:
    """A file stands where the folder would; permissions do not bind root."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="runs") as refused:
        run.execute(compose_config("experiment=toy", "logger=none"))
    assert in_a_sentence(refused.value) == f"{refused.value.filename}: not a directory"


def test_a_persons_mistake_ends_with_status_2_before_anything_runs(tmp_path: Path) -> None:
    """Both ways are slow to start, so they are looked at side by side."""
    single = start(tmp_path, "optimizer.lr=-1")
    unknown = start(tmp_path, "optimizer.bata=3")
    sweep = start(tmp_path, "seed=1,abc", "-m")
    code, out, err = ended(single)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: optimizer: Invalid learning rate: -1; its options are ")
    code, out, err = ended(unknown)
    assert code == 2, err
    assert err.startswith("error: Could not override 'optimizer.bata'.")
    assert "error: optimizer has no option 'bata'; its options are lr, betas" in err
    assert "Traceback" not in err
    code, out, err = ended(sweep)
    assert (code, out) == (2, "")
    assert err == "error: seed must be a whole number from 0 to 4294967295, got 'abc'\n"


def test_a_sweep_goes_on_without_the_run_that_is_refused(tmp_path: Path) -> None:
    code, out, err = ended(start(tmp_path, "-m", "seed=1,2", "optimizer.lr=-0.1,0.1", "trial=lr${optimizer.lr}"))
    assert code == 2
    assert [out.count(f": run {number} of 4\n") for number in range(1, 5)] == [1, 1, 1, 1]
    assert ": 4 of 4 runs are done\n" in out
    refused = [line for line in err.splitlines() if "Invalid learning rate: -0.1" in line]
    assert len(refused) == 2
    assert all(line.startswith("error: ") and "optimizer.lr=-0.1" in line for line in refused)
    assert err.splitlines()[-1] == "error: 2 of 4 runs have no record"
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.rglob("*-s?.json")) == ["lr0.1-s1.json", "lr0.1-s2.json"]


# So long that a signal finds it at work.
LONG = ("trainer.max_steps=100000", "eval_every=50000")


def wait_for(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_single_run_says_that_it_was_interrupted(tmp_path: Path, number: int, status: int) -> None:
    process = start(tmp_path, *LONG)
    wait_for("starts at step 0", process)
    time.sleep(0.5)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == status, err
    assert err.splitlines()[-1] == stopping.INTERRUPTED
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*-s?.json"))
    assert bool(list(tmp_path.rglob("last.ckpt"))) is (number == signal.SIGTERM)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if fields[1] == str(pid) and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_workers_of_a_sweep_end_with_it(tmp_path: Path, number: int) -> None:
    process = start(tmp_path, "-m", "seed=1,2,3,4", *LONG)
    wait_for("starts at step 0", process)
    wait_for("starts at step 0", process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == (143 if number == signal.SIGTERM else -9)
    deadline = time.monotonic() + 2 * stopping.GRACE_S  # a worker is given that long, and is noticed a little later
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(tmp_path.rglob("*-s?.json"))
    # Both that were at work have saved their state, and no other was begun.
    assert sorted(p.parent.name for p in tmp_path.rglob("last.ckpt")) == ["main-s1", "main-s2"]
    if number == signal.SIGTERM:
        assert err.splitlines()[-1] == stopping.INTERRUPTED
        assert "Traceback" not in err
