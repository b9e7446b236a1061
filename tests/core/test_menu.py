"""What `experiments.train` shows to a person who names no experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import size, train
from experiments.core import menu
from experiments.core.checks import check_launcher
from experiments.core.errors import ConfigError
from tests.conftest import CONFIGS
from tests.core.test_launchers import launcher


def test_the_head_of_a_config_is_cut_into_sentences_and_commands(tmp_path: Path) -> None:
    path = tmp_path / "asr_cpu.yaml"
    path.write_text(
        "# @package _global_\n# A model (small) of\n# speech. Costs 4.5 minutes (AMD EPYC).\n"
        "# python -m experiments.train experiment=asr_cpu\n# Gives 29 %: see e.g. a.md.\nseed: 1 # comment\n# no head\n"
    )
    assert menu.entry(path) == menu.Entry(
        "asr_cpu", "A model (small) of speech.", "Costs 4.5 minutes (AMD EPYC).", "Gives 29 %: see e.g. a.md."
    )
    assert menu.commands(menu.header(path)) == ["python -m experiments.train experiment=asr_cpu"]


def test_every_experiment_says_what_it_costs_and_how_it_is_started() -> None:
    for entry in menu.entries("experiment"):
        assert entry.cost, entry.name
        lines = menu.commands(menu.header(CONFIGS / "experiment" / f"{entry.name}.yaml"))
        assert any(f"experiments.train experiment={entry.name} " in line for line in lines), entry.name


def test_the_menu_names_every_choice_and_shows_three_examples() -> None:
    lines = list(menu.menu(train.__doc__ or "", 80))
    text = "\n".join(lines)
    shown = [path.stem for path in (CONFIGS / "optimizer").glob("*.yaml")]
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        shown += [path.stem] if path.stem.split("_")[1] in menu.SCALES else []
    assert len(shown) > 20
    assert all(f"\n  {name}" in text for name in shown)
    examples = [line for line in lines if line.startswith("  python -m experiments.train")]
    assert len(examples) == 3
    assert all(len(line) <= 80 for part in lines for line in part.splitlines() if line not in examples)
    assert lines.index("\n  asr_cpu") < lines.index("\n  asr_gpu") < lines.index("\n  asr_paper")


@pytest.mark.parametrize("doc", [train.__doc__, size.__doc__])
@pytest.mark.parametrize(("words", "status"), [([], 2), (["optimizer=fadam"], 2), (["--help"], 0), (["-h", "a=1"], 0)])
def test_no_experiment_is_a_menu(capsys, doc: str, words: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as left:
        menu.show_if_asked(doc, words)
    assert left.value.code == status
    shown = capsys.readouterr()
    assert "\n  asr_cpu\n" in shown.out
    assert shown.err == ("" if status == 0 else "error: name an experiment of the list above: experiment=<name>\n")


@pytest.mark.parametrize("words", [["experiment=asr_cpu"], ["-m", "+experiment=toy"], ["--hydra-help"], ["--cfg=job"]])
def test_an_experiment_and_hydras_own_help_are_no_menu(capsys, words: list[str]) -> None:
    menu.show_if_asked(train.__doc__, words)
    assert capsys.readouterr().out == ""


def test_slurm_without_slurm_is_a_sentence(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = launcher("experiment=llm_paper", "hydra/launcher=slurm")["_target_"]
    with pytest.raises(ConfigError, match="this machine has no srun: start it on a login node"):
        check_launcher(slurm)
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    check_launcher(slurm)
    check_launcher(launcher("experiment=asr_cpu")["_target_"])
