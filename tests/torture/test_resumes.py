"""A run that is ended at any moment, by any signal, goes on to the very bits of one that was never stopped."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.core import stopping
from tests.asr.conftest import speech_root as speech_root
from tests.conftest import record_path
from tests.llm.conftest import jsonl as jsonl
from tests.llm.conftest import tiny as tiny
from tests.llm.test_module import STREAMED
from tests.torture.conftest import Perform, differences, outcome
from tests.vqvae.conftest import make_store as make_store
from tests.vqvae.test_module import TINY, TINY_MODEL

STEPS = ("trainer.max_steps=24", "eval_every=6", "logger=none", "progress=line")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUS = {signal.SIGKILL: {-9}, signal.SIGTERM: {stopping.TERMINATED}, signal.SIGINT: {130}}


@pytest.fixture
def words(request: pytest.FixtureRequest) -> Callable[[str], list[str]]:
    """The overrides of a small run of each kind."""

    def of(kind: str) -> list[str]:
        if kind == "speech":
            root = request.getfixturevalue("speech_root")
            return [
                "experiment=asr_cpu", "scale=smoke", f"data.root={root}", "data.max_utterances=4", "model.dim=16",
                "model.layers=1", "model.heads=2", "model.kernel=3", "model.dropout=0.2", "scheduler.warmup_steps=2",
                "module.augment={_target_: experiments.asr.features.SpecAugment}", *STEPS,
            ]  # fmt: skip
        if kind == "images":
            store = request.getfixturevalue("make_store")(size=16)
            return [
                "experiment=vqvae_cpu", *TINY, *TINY_MODEL["ConvVQVAE"], f"data.root={store}",
                "model.quantiser.start_after=4", "model.quantiser.codes=40", *STEPS,
            ]  # fmt: skip
        return [*request.getfixturevalue("tiny"), *(STREAMED if kind == "stream" else ()), *STEPS]

    return of


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "optimizer", "signals"),
    [
        pytest.param(
            kind, optimizer, count, marks=() if short else (pytest.mark.long,), id=f"{kind}-{optimizer}-{count}"
        )
        for kind in ("speech", "text", "stream", "images")
        for optimizer, count, short in (("fadam", 1, True), ("fadam", 12, False), ("adamw_clip", 11, False))
    ],
)
def test_an_ended_run_goes_on_to_the_same_bits(
    compose_config, perform: Perform, measured, words, kind: str, optimizer: str, signals: int, tmp_path: Path
) -> None:
    common = [*words(kind), f"optimizer={optimizer}"]
    # The first run makes the data's caches, whose time is no part of what follows.
    warm = compose_config(*common, f"paths.runs_dir={tmp_path / 'warm'}")
    assert perform(warm) == 0
    expected, seconds = measured(compose_config(*common, f"paths.runs_dir={tmp_path / 'whole'}"))
    moments = random.Random(f"{kind} {optimizer}")
    ended = 0
    for number in range(signals):
        cfg = compose_config(*common, f"paths.runs_dir={tmp_path / str(number)}")
        sent = SIGNALS[number % len(SIGNALS)]
        status = perform(cfg, after=seconds * moments.uniform(0.05, 1.0), number=sent)
        assert status in STATUS[sent] | {0}
        ended += status != 0
        assert record_path(cfg).exists() is (status == 0)
        assert perform(cfg) == 0
        assert differences(expected, outcome(cfg)) == [], f"{sent.name}, number {number}"
        assert not [path.name for path in Path(cfg.paths.runs_dir).rglob("*.tmp")]
    print(f"{kind}, {optimizer}: {ended} of {signals} runs were ended before their end, all went on to the same bits")
