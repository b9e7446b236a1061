"""Tables hold the numbers of the records, and say where there are none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.analysis import tables
from experiments.analysis.comparisons import Study
from experiments.analysis.pages import Pages
from experiments.analysis.paper import load_paper
from experiments.analysis.plain import pilots
from experiments.core.catalogue import task
from experiments.core.table import Table
from tests.analysis.conftest import ROOT
from tests.made_up import content, put

BITS = task("llm").metric("test/bits_per_byte")


def row(table: Table, name: str) -> dict[str, str]:
    cells = next(r for r in table.rows if r[0].text == name)
    return dict(zip(table.header, (c.text for c in cells), strict=True))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "–"),
        ([1.0], "1.0000 (n=1)"),
        ([1.0, 2.0], "1.5000 ± 0.7071 (n=2)"),
        ([1.0, 2.0, math.inf], "1 of 3 diverged, others 1.5000 ± 0.7071"),
        ([math.inf], "1 of 1 diverged"),
        ([1.0, math.nan], "1.0000 (n=1)"),
    ],
)
def test_means(values: list[float], text: str) -> None:
    assert tables.mean_sd(BITS, values) == text


def test_headline(study: Study) -> None:
    table = tables.headline(study)
    assert [r[0].text for r in table.rows] == [
        "Language modelling", "Speech recognition", "VQ-VAE, discrete likelihood", "VQ-VAE, Gaussian likelihood",
    ]  # fmt: skip
    found = row(table, "Language modelling")
    c = study.comparisons[0] if study.comparisons[0].protocol.name == "llm" else None
    assert c is not None
    assert found["FAdam"] == tables.mean_sd(BITS, c.challenger, False)
    assert (found["word"], found["pairs"], found["matters"]) == ("better", "4", "0.01")


def test_an_arm_that_diverged_is_counted_not_averaged(study: Study) -> None:
    p = study.planners["vqvae"].protocol
    assert (
        row(tables.means(study, p), "test bits per dimension ↓")["FAdam, AdamW's decay, global clip"]
        == "8 of 8 diverged"
    )


def test_unknown_metrics_stand_last_and_hidden_ones_not_at_all(tmp_path: Path, declared: Path, records: Path) -> None:
    import json
    import shutil

    shutil.copytree(records / "asr", tmp_path / "asr")
    for path in tmp_path.rglob("main-s*.json"):
        record = json.loads(path.read_text())
        record["metrics"] |= {"mine/novel": 3.0, "test-other/wer": 0.9, "test-human/wer": 1.2, "dev-other/wer": 0.5}
        path.write_text(json.dumps(record))
    study = Study([tmp_path], declared)
    table = tables.means(study, study.planners["asr"].protocol)
    names = [r[0].text for r in table.rows]
    assert names == ["test-clean WER (%) ↓", "dev-clean WER (%) ↓", "dev-other WER (%) ↓", "mine/novel"]
    assert row(table, "mine/novel")["FAdam"].startswith("3.0000 ± 0.0000")


def test_rates_mark_the_chosen_settings(study: Study) -> None:
    table = tables.rates(study, study.planners["llm"].protocol)
    marked = {(r[0].text, r[1].text, h) for r in table.rows for h, c in zip(table.header, r, strict=True) if c.kind}
    assert ("FAdam", "0.001", "0.0025") in marked
    assert len([m for m in marked if m[0] == "FAdam"]) == 1


def test_grid_says_what_is_the_same(study: Study) -> None:
    table = tables.grid(study, "llm")
    rows = {tuple(c.text for c in r[:3]): [c.text for c in r[3:]] for r in table.rows}
    assert rows["FAdam", "float32", "1"] == ["same", "same"]
    assert rows["AdamW", "bfloat16", "9.5e-07"] == ["-0.3000", "-0.3000"]


def test_bowls_ladder_context_costs(pages: Pages) -> None:
    study = pages.study
    p = study.planners["llm"].protocol
    assert row(tables.bowls(pages.bowls["llm"], p), "FAdam")["best rate"] == "0.0025"
    assert study.ladder is not None
    sizes = tables.ladder(study, study.ladder)
    assert [r[0].text for r in sizes.rows] == ["0.32 M", "1.12 M", "2.67 M", "7.77 M"]
    assert all(" and " in r[1].text for r in sizes.rows)
    assert row(tables.context(study, p), "Muon")["gain over FAdam"].startswith("+0.0")
    assert row(tables.costs(study, p), "FAdam")["minutes a run"] == "1.0"


def test_reported_numbers_say_whose_they_are(study: Study) -> None:
    table = tables.paper(study, load_paper(ROOT / "results/paper.yaml"), "asr")
    assert row(table, "w2v-BERT XL")["optimizer"] == "Adam, another paper's model"
    assert row(table, "FAdam")["test-clean WER (%)"] == "1.34"
    assert "not known to us" in table.notes[0]
    assert tables.paper(study, load_paper(ROOT / "results/paper.yaml"), "llm").rows == ()


def test_without_records_each_says_so(empty: Pages) -> None:
    study = empty.study
    p = study.planners["llm"].protocol
    for table in (tables.means(study, p), tables.rates(study, p), tables.context(study, p), tables.plain(study, "llm")):
        assert table.rows == ()
        assert table.notes == (tables.NOTHING,)
    assert row(tables.headline(study), "Language modelling")["word"] == "not run yet"


def test_pilot_and_other_scales(tmp_path: Path, declared: Path) -> None:
    for seed in (1001, 1002, 1003):
        for arm, value in (("fadam", 1.5 + 0.01 * (seed % 2)), ("adamw_clip", 1.5)):
            metrics: dict[str, float | None] = {"test/bits_per_byte": value}
            for steps in (20, 40):
                made = content("llm", arm, seed, metrics, trial=f"p{steps}", purpose="pilot", steps=steps)
                put(tmp_path, made)
            put(tmp_path, content("llm", arm, seed, metrics, scale="gpu"))
            put(tmp_path, content("llm", arm, seed, metrics, scale="smoke"))
    study = Study([tmp_path], declared)
    found = pilots(study.table, study.protocols)
    assert [q.label for q in found] == ["trainer.max_steps=20", "trainer.max_steps=40"]
    sd = float(np.std([0.01, 0.0, 0.01], ddof=1))
    assert found[0].sd == pytest.approx(sd)
    assert found[0].minutes == 1.0
    table = tables.plain(study, "llm")
    assert len(table.rows) == 1
    assert (table.rows[0][0].text, table.rows[0][-1].text) == ("gpu", "3")
