"""A small study with known answers, made up once for all tests of the analysis."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from experiments.analysis.comparisons import Study
from experiments.analysis.pages import Pages
from experiments.core.protocol import Run, protocol
from tests.made_up import bowl_value, complete, small_studies

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"0.3M": 0.01, "1M": 0.02, "3M": 0.03, "8M": 0.04}  # FAdam's gain


def value(run: Run) -> float:
    """FAdam better on language, equivalent on speech, noisy on images; AdamW loses 0.3 where epsilon is felt."""
    noise = {"llm": 0.001, "asr": 0.0004, "vqvae": 0.08}[run.task]
    size = run.trial.partition("-")[0]
    gain = SIZES.get(size, 0.02) if run.task == "llm" else 0.0
    floor = {"llm": 1.6, "asr": 0.25, "vqvae": 5.8}[run.task]
    found = bowl_value(0.0025, floor, noise, gain)(run)
    settings = dict(run.settings)
    if run.choices and run.arm == "adamw" and settings["optimizer.eps"] > 1e-3 * settings["value"]:
        found += 0.3
    if run.arm == "muon":
        found -= 0.1
    if run.arm == "fadam_global_clip" and run.task == "vqvae":
        return math.inf
    return 26 - found if run.variant == "gaussian" else found


@pytest.fixture(scope="session")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    small_studies(folder)
    return folder


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory, declared: Path) -> Path:
    """The records of the whole small study."""
    root = tmp_path_factory.mktemp("records")
    complete(root, [protocol(path.stem, declared) for path in sorted(declared.glob("*.yaml"))], value)
    return root


@pytest.fixture(scope="session")
def study(records: Path, declared: Path) -> Study:
    return Study([records], declared)


@pytest.fixture(scope="session")
def pages(study: Study) -> Pages:
    return Pages(study, ROOT / "results")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory, declared: Path) -> Pages:
    """The same before the first run."""
    return Pages(Study([tmp_path_factory.mktemp("none")], declared), ROOT / "results")
