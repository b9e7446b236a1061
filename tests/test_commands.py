"""Every command that README, documents, help, the heads of configs and messages name can be given as it stands.

`make` targets are looked at with `make -n`, and what that prints again; words of `experiments.train` and
`experiments.size` are composed, and all other modules parse theirs.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What stands for something, and one of the things it may stand for.
STANDS_FOR = {
    "<task>": ("asr", "llm", "vqvae"), "<scale>": ("cpu",), "<name>": ("fadam",), "<n>": ("1",),
    "<folder>": ("folder",), "<config>": ("examples/own_task/textures.yaml",), "<url>": ("file:///index",),
    "<images>": ("images",), "DIR": ("folder",), "{asr,llm,vqvae}": ("asr", "llm", "vqvae"),
    "-...": ("-asr", "-llm", "-vqvae"),
}  # fmt: skip
# A value in an f-string that nobody knows here.
UNKNOWN = "asr"
HYDRAS = ("experiments.train", "experiments.size")
MODULES = r"python -m (?:experiments|scripts)[\w.]*"
PARSERS = ("parse_args", "parse_intermixed_args", "parse_known_args")


@functools.cache
def targets() -> frozenset[str]:
    text = (ROOT / "Makefile").read_text()
    tasks = re.search(r"^TASKS := (.*)", text, re.MULTILINE)
    assert tasks is not None
    phony = " ".join(re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE))
    for stem in re.findall(r"\$\(TASKS:%=([a-z-]+)%\)", phony):
        phony += "".join(f" {stem}{task}" for task in tasks[1].split())
    return frozenset(re.findall(r"(?<=\s)[a-z][a-z-]*(?=\s|$)", f" {phony} "))


def expanded(command: str) -> Iterator[str]:
    """The commands that one with alternatives and placeholders stands for."""
    command = re.sub(r"\[[^\]]*\|[^\]]*\]", "", command)  # [this | that]
    if not any(f"{module} " in command for module in HYDRAS):
        command = re.sub(r"(?<=\s)\[([^\]]*)\]", r"\1", command)
    alternatives = re.search(r"\S+(?: \| \S+)+", command)
    if alternatives:
        for word in alternatives[0].split(" | "):
            yield from expanded(command.replace(alternatives[0], word))
        return
    for mark, values in STANDS_FOR.items():
        if mark in command:
            for value in values:
                yield from expanded(command.replace(mark, value))
            return
    yield command.removesuffix("...").strip()


def in_text(text: str) -> Iterator[str]:
    """Commands in backticks, at the ends of lines, and `make` targets anywhere."""
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if re.match(rf"(make [a-z]|{MODULES})", quoted):
            yield quoted
    rest = re.sub(r"`[^`\n]+`", "", text)
    for found in re.findall(rf"{MODULES}[^\n]*", rest):
        yield re.split(r"\s{2,}|[,;:] |\\n|\)$|\.$", found)[0]
    for target, words in re.findall(r"\bmake ([a-z][a-z-]*(?:<task>)?)((?: [A-Z]+=(?:\"[^\"]*\"|[^\s.;,)]+))*)", rest):
        if target in targets() or target.endswith("<task>"):
            yield f"make {target}{words}"


def in_code(path: Path) -> Iterator[str]:
    """The strings of a module: docstrings, messages, help; not the bare names of parsers."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else UNKNOWN for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            if re.fullmatch(rf"{MODULES}(?: own)?", node.value):
                continue
            yield node.value


def sources() -> Iterator[tuple[str, str]]:
    """Where commands stand, and the text there."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "scripts" / "make_env.sh"):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    yield "Makefile", "\n".join(re.findall(r"^#.*|## .*", makefile, re.MULTILINE))
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        comments = re.findall(r"(?:^|\s)#(.*)", path.read_text(encoding="utf-8"))
        yield str(path.relative_to(ROOT)), "\n".join(comments)
    for folder in ("experiments", "fadam", "scripts", "hydra_plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), "\n\n".join(in_code(path))


@functools.cache
def collected() -> dict[str, str]:
    """Every command, and where it stands first."""
    found: dict[str, str] = {}
    for where, text in sources():
        for command in in_text(text):
            for one in expanded(command):
                found.setdefault(one, where)
    return found


def make(command: str) -> list[str]:
    """The Python commands that a `make` command would give.

    Raises:
        AssertionError: it has no such target.
    """
    line = [*shlex.split(command), "-n", "--no-print-directory"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    text = done.stdout.replace("\\\n", " ")
    found = re.findall(r"-m ((?:experiments|scripts)[\w.]*[^\n;]*)", text)
    return [f"python -m {words.strip()}" for words in found if "$" not in words]


class Parsed(Exception):
    """The words were understood."""


def parse(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module's own parser read the words, and no more."""
    name = f"{module}.__main__" if hasattr(importlib.import_module(module), "__path__") else module
    loaded = importlib.import_module(name)
    source = inspect.getsource(loaded)
    if not any(parser in source for parser in PARSERS):
        assert not words or "sys.argv" in source, f"{name} reads no words"
        return

    def understood(read: object) -> object:
        def stop(self: object, *args: object, **options: object) -> None:
            # `parse_intermixed_args` calls another of them.
            if inspect.stack()[1].filename != argparse.__file__:
                read(self, *args, **options)  # type: ignore[operator]
                raise Parsed
            return read(self, *args, **options)  # type: ignore[operator]

        return stop

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        for parser in PARSERS:
            patch.setattr(argparse.ArgumentParser, parser, understood(getattr(argparse.ArgumentParser, parser)))
        with pytest.raises(Parsed):
            loaded.main()


def compositions(words: list[str]) -> Iterator[list[str]]:
    """The words of single runs: the first of a sweep, and each other choice of a config."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(words)
    values = [
        [f"{each.key_or_group}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override() else [each.input_line or ""]
        for each in parsed
    ]  # fmt: skip
    first = [of_one[0] for of_one in values]
    yield first
    for place, of_one in enumerate(values):
        if of_one[0].partition("=")[0] in ("experiment", "optimizer"):
            yield from ([*first[:place], other, *first[place + 1 :]] for other in of_one[1:])


def test_commands_are_found() -> None:
    found = collected()
    assert found["python -m experiments.train experiment=asr_gpu optimizer=fadam seed=1 data.download=true"]
    assert found["make data-asr SCALE=gpu"] == "experiments/asr/librispeech.py"
    assert found["python -m scripts.prepare_speech --out asr"] == "experiments/asr/librispeech.py"
    assert found["make tune-asr SCALE=gpu"] == "configs/experiment/asr_gpu.yaml"
    assert {"make tune-asr", "make tune-llm", "make tune-vqvae"} <= set(found)
    assert len(found) > 80
    assert list(in_text("`make test` and make it; see make lint. `python -m scripts.bench_step --rounds 3`.")) == [
        "make test", "python -m scripts.bench_step --rounds 3", "make lint",
    ]  # fmt: skip
    assert list(expanded("python -m experiments.study run | status [--jobs 2] [a | b]")) == [
        "python -m experiments.study run --jobs 2", "python -m experiments.study status --jobs 2",
    ]  # fmt: skip


def test_every_command_can_be_given(compose_config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test: what `make` prints is much the same for many targets, and is looked at once."""
    from experiments.core.checks import check_choices
    from experiments.core.length import fit_length

    todo, failures = dict(collected()), []
    for command, where in list(todo.items()):
        if command.startswith("make "):
            try:
                todo |= {line: f"{where}, {command}" for line in make(command) if line not in todo}
            except AssertionError as error:
                failures.append(f"{where}: {error}")
    for command, where in todo.items():
        if command.startswith("make "):
            continue
        try:
            _, _, module, *words = shlex.split(command)
            if module not in HYDRAS:
                parse(module, words, monkeypatch)
                continue
            words = [word for word in words if word not in ("-m", "--multirun")]
            for single in compositions(words) if words else ():
                cfg = compose_config(*single)
                fit_length(cfg)
                check_choices(cfg)
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            failures.append(f"{where}: {command}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["asr_gpu", "--tell"], ("train-clean-100", "8 GB to fetch", "OpenSLR", "LibriSpeech/<split>")),
        (["asr_paper", "--tell"], ("960.9 h", "61 GB to fetch", "OpenSLR", "LibriSpeech/<split>")),
        (["llm_gpu", "--tell"], ("FineWeb-Edu", "4 GB of text", "Hugging Face hub", "data/source=files")),
        (["llm_paper", "--tell"], ("C4", "90 GB of text", "Hugging Face hub", "data/source=files")),
        (["vqvae_gpu", "--tell"], ("CIFAR-10", "0.15 GB to fetch", "Hugging Face hub", "--path <folder>")),
        (["vqvae_paper", "--tell"], ("ImageNet-1k", "150 GB to fetch", "HF_TOKEN", "--path <folder>")),
    ],
)
def test_what_will_be_fetched_is_said_first(capsys, tmp_path: Path, words: list[str], said: tuple[str, ...]) -> None:
    from scripts import fetch_data

    assert fetch_data.main([*words, f"paths.data_dir={tmp_path}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(part in shown for part in said), shown
    assert f"They go to {tmp_path}, or where FADAM_DATA or paths.data_dir says; " in shown
    assert not list(tmp_path.iterdir())


def test_fetching_says_in_a_sentence_what_it_cannot(capsys, tmp_path: Path, monkeypatch) -> None:
    from scripts import fetch_data

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("datasets.load_dataset", lambda name: 1 / 0)
    for words, said in (
        (["asr_gpu", "--gpu"], "error: asr_gpu wants a CUDA GPU, and this machine has none"),
        (
            ["vqvae_gpu"],
            "error: uoft-cs/cifar10 cannot be loaded (ZeroDivisionError: division by zero); name a local copy",
        ),
        (["nothing"], "error: experiment=nothing is not allowed; experiment must be one of asr_cpu, "),
    ):
        assert fetch_data.main([*words, f"paths.data_dir={tmp_path}"]) == 2
        assert said in capsys.readouterr().err


def test_the_fast_tests_are_there() -> None:
    """`make test-fast` names files and tests that exist, each once."""
    line = ["make", "-n", "-o", ".venv/.ready", "--no-print-directory", "test-fast"]
    text = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    named = re.findall(r"(?<= )tests/[^\s;&]+", text)
    assert len(named) == len(set(named)) > 20
    for path, _, test in (name.partition("::") for name in named):
        files = [ROOT / path] if path.endswith(".py") else list((ROOT / path).glob("test_*.py"))
        assert any(f"def {test or 'test_'}" in file.read_text(encoding="utf-8") for file in files), path


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_reproduce_makes_its_data_first(scale: str) -> None:
    for task in ("asr", "llm", "vqvae"):
        lines = make(f"make reproduce-{task} SCALE={scale}")
        data = [i for i, line in enumerate(lines) if line.startswith("python -m scripts.")]
        trained = [i for i, line in enumerate(lines) if f"experiments.train -m experiment={task}_{scale} " in line]
        assert data[0] < trained[0]
        assert ("fetch_data" in lines[data[0]]) is (scale != "cpu")


def test_a_store_that_is_missing_names_the_command_that_makes_it() -> None:
    from experiments.vqvae.store import made_by

    folder = Path("data/images")
    cifar = "`python -m scripts.prepare_images --source cifar10 --size 32 --out data/images`"
    assert made_by(folder / "cifar10-32") == cifar
    assert made_by(folder / "photographs-32").startswith(
        "`make data-vqvae` or `python -m scripts.prepare_images --source ph"
    )
    assert "--source imagenet --size 256" in made_by(folder / "imagenet-256")
    assert "--source folder --folder <images>" in made_by(folder / "holiday-32")


def test_all_alternatives_of_a_sweep_are_looked_at() -> None:
    words = ["experiment=asr_cpu", "optimizer=adamw_clip,fadam", "seed=1,2,3"]
    first = ["experiment=asr_cpu", "optimizer=adamw_clip", "seed=1"]
    assert list(compositions(words)) == [first, ["experiment=asr_cpu", "optimizer=fadam", "seed=1"]]
    assert list(itertools.chain(*compositions(["experiment=asr_cpu"]))) == ["experiment=asr_cpu"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_fits_its_terminal(width: int) -> None:
    line = ["make", "--no-print-directory", "help"]
    environment = {**os.environ, "COLUMNS": str(width)}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    named = {words[1] for words in map(str.split, lines) if words[:1] == ["make"] and len(words) > 1}
    described = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(described) <= named
    assert "The comparisons" in lines
    assert all(f"{name}=" in done.stdout for name in ("SCALE", "SEEDS", "JOBS", "OPTIMIZERS", "ARGS", "PYTHON"))


def test_a_try_of_two_steps_is_compared_with_nothing() -> None:
    assert any("experiments.analysis compare llm " in line for line in make("make reproduce-llm"))
    tried = make("make reproduce-llm ARGS=debug=fast")
    assert any("debug=fast" in line for line in tried)
    assert not any("experiments.analysis" in line for line in tried)


@pytest.mark.parametrize(
    ("module", "words", "folder"),
    [
        ("experiments.study.__main__", ["status"], "elsewhere"),
        ("experiments.study.__main__", ["own"], "elsewhere/own"),
        ("experiments.analysis.__main__", ["compare"], "elsewhere"),
        ("scripts.push_wandb", [], "elsewhere"),
        ("scripts.prepare_images", [], "other/images"),
        ("scripts.prepare_speech", [], "other/speech"),
    ],
)
def test_the_variables_move_data_and_runs_for_every_command(
    module: str, words: list[str], folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FADAM_RUNS", "elsewhere")
    monkeypatch.setenv("FADAM_DATA", "other")
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    assert re.search(rf"{folder}[\s)]", capsys.readouterr().out)
