from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from experiments.analysis import choose, compare, figures, publish, tables
from experiments.analysis.records import load_records

REPOSITORY = Path(__file__).resolve().parents[2]
PAPER = str(REPOSITORY / "results/paper.yaml")


def make_tables(runs: Path, *words: str) -> tuple[int, Path]:
    out = runs.parent / "tables"
    return tables.main([*words, "--runs", str(runs), "--out", str(out), "--paper", PAPER]), out


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


# --- tables


def test_table_of_known_numbers(write, six, trials, runs):
    write(*six, *trials)
    status, out = make_tables(runs, "asr")
    assert status == 0
    text = (out / "asr.md").read_text()
    assert row(text, "test-clean WER") == [
        "test-clean WER (%) ↓",
        "1.5 (w2v-BERT XL, arXiv:2108.06209, table 1 of arXiv:2202.01855) [W]",
        "1.34 (FAdam, leaderboards of arXiv:2405.12807) [L]",
        "44.00 ± 2.00 (n=3)",
        "41.00 ± 1.00 (n=3)",
        "-3.00 [-5.48, -0.52] (3 pairs)",
        "FAdam better, taken alone",
    ]
    assert "0.91 M-parameter Conformer, 2.7 h, 6,000 utterances of data set `synthetic`, 200 steps, 9.1 hours" in text
    assert "1 thread on one processor, 4.0 min a run; not comparable with LibriSpeech" in text
    # A bar inside a transcript must not open another column.
    assert row(text, "test-clean | a") == ["test-clean", "a \\| b", "adamw_clip says", "fadam says"]
    assert row(text, "milliseconds a step") == ["milliseconds a step", "152.0 ± 1.0 (n=3)", "152.0 ± 1.0 (n=3)"]
    assert row(text, "steps to") == ["steps to dev-clean WER of 60.00%", "150 ± 0 (n=3)", "150 ± 0 (n=3)"]
    assert row(text, "optimizer.lr=0.002") == ["optimizer.lr=0.002", "**0.5000** (chosen)", "**0.4500** (chosen)"]
    assert row(text, "optimizer.lr=0.004") == ["optimizer.lr=0.004", "0.7000", "diverged (1 of 1)"]
    assert "FAdam: optimizer.lr=0.002 lies inside the space (optimizer.lr in {0.001, 0.002, 0.004})" in text
    assert "python -m experiments.train experiment=asr_cpu optimizer=fadam seed=3" in text
    assert "torch 2.11.0" in text
    assert six[0]["data"]["fingerprint"] in text
    links = [part.split(")")[0] for part in text.split("[record](")[1:]]
    assert len(links) == 12
    assert all((out / link).is_file() for link in links)
    assert "Seeds used both" not in text
    assert "instead" not in text


def test_tables_are_the_same_to_the_byte(write, six, trials, runs):
    write(*six, *trials)
    _, out = make_tables(runs)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) == {"asr.md", "llm.md", "vqvae.md"}
    make_tables(runs)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_without_records_the_papers_numbers_stand_alone(runs):
    status, out = make_tables(runs, "all")
    assert status == 0
    text = (out / "asr.md").read_text()
    assert "No published records yet." in text
    assert row(text, "torchaudio")[1:] == ["3.1", "8.05", "–", "–", "–", "–", "[W]", "pytorch/audio examples"]
    assert "Ours, scale" not in text
    assert "C1 [A]: LLM pretraining" in (out / "llm.md").read_text()


def test_smoke_runs_are_in_no_table(write, record, runs):
    write(record("fadam", 1, 0.1, scale="smoke"))
    _, out = make_tables(runs, "asr")
    assert "No published records yet." in (out / "asr.md").read_text()


def test_a_mixed_table_is_refused_and_nothing_is_written(write, six, record, runs, capsys):
    write(*six, record("fadam", 4, 0.4, data={"name": "other", "fingerprint": "sha256:bbb"}))
    status, out = make_tables(runs, "asr")
    assert status == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert "sha256:bbb" in error
    assert six[0]["data"]["fingerprint"] in error


def test_a_mixed_tuning_table_is_refused(write, six, trials, tuning, runs):
    write(*six, *trials, tuning("fadam", 0.008, 0.5, data={"name": "other", "fingerprint": "sha256:bbb"}))
    assert make_tables(runs, "asr")[0] == 2


def test_a_diverged_run_is_in_the_table(write, six, record, runs):
    write(*six, record("fadam", 3, 0.1, diverged=True, target={"metric": "dev-clean/wer", "value": 0.6, "steps": None}))
    _, out = make_tables(runs, "asr")
    text = (out / "asr.md").read_text()
    assert row(text, "test-clean WER")[4:] == [
        "∞ (1 of 3 diverged; others 40.50 ± 0.71)",
        "+∞ (3 pairs)",
        "no detectable difference: FAdam diverged on 1 of 3",
    ]
    assert "- Diverged: FAdam seed 3." in text
    assert row(text, "steps to")[2] == "not reached by 1 of 3; 150 ± 0 (n=2)"


def test_what_makes_a_comparison_unfair_is_said(write, six, trials, record, tuning, runs):
    write(*six, *trials, record("adamw", 1, 0.43, data_seed=7))
    for content in (c for c in six if c["arm"] == "fadam"):
        content["config"]["optimizer"]["lr"] = content["optimizer"]["lr"] = 0.1
        write(content)
    for content in trials:
        write({**content, "seed": 1})
        (runs / "asr/cpu" / content["arm"] / f"{content['trial']}-s100.json").unlink()
    _, out = make_tables(runs, "asr")
    text = (out / "asr.md").read_text()
    assert "**The evaluation runs use optimizer.lr = 0.1 instead.**" in text
    assert "**Seeds used both for tuning and for evaluation: 1.**" in text
    assert "**Not tuned: AdamW.**" in text
    assert "The arms have different seeds" in text
    assert "the data order differs between arms for seeds 1" in text


def test_variants_have_their_own_sections_and_a_collapse_is_flagged(write, record, runs):
    for variant in ("gaussian", "discretized_logistic"):
        for arm in ("adamw_clip", "fadam"):
            for seed in (1, 2, 3):
                metrics = {
                    "val/psnr": 20.0 + seed / 10 + (arm == "fadam"),
                    "val/codebook_perplexity": 100.0 + seed,
                    "val/codebook_usage": 0.9,
                    "val/mse" if variant == "gaussian" else "val/bits_per_dim": 0.01 * seed,
                }
                collapsed = arm == "fadam" and variant == "gaussian" and seed == 2
                write(
                    record(
                        arm, seed, 0.0, task="vqvae", variant=variant, metrics=metrics, collapsed=collapsed, samples=[]
                    )
                )
    status, out = make_tables(runs, "vqvae")
    assert status == 0
    discrete, gaussian = (out / "vqvae.md").read_text().split("## Ours, scale `cpu`, `")[1:]
    assert discrete.startswith("discretized_logistic")
    assert "bits per dimension" in discrete
    assert "bits per dimension" not in gaussian
    assert "- **Collapsed codebook**: FAdam seed 2." in gaussian
    assert "Collapsed" not in discrete
    assert row(gaussian, "validation PSNR")[-1] == "FAdam better, taken alone"
    assert row(gaussian, "validation share")[1] == "90.0 ± 0.0 (n=3)"


def test_language_table(write, record, runs):
    for arm, shift in (("adamw_clip", 0.0), ("fadam", 0.1)):
        for seed in (1, 2, 3):
            metrics = {"val/loss": 1.8 + seed / 100 + shift, "test/bits_per_byte": 2.5}
            samples = [{"prompt": "My fellow", "text": f"citizens {arm}"}]
            write(record(arm, seed, 0.0, task="llm", metrics=metrics, samples=samples))
    _, out = make_tables(runs, "llm")
    text = (out / "llm.md").read_text()
    assert row(text, "validation loss")[1:] == [
        "1.8200 ± 0.0100 (n=3)",
        "1.9200 ± 0.0100 (n=3)",
        row(text, "validation loss")[3],
        "FAdam worse, taken alone",
    ]
    assert row(text, "test bits per byte")[-1] == "no detectable difference"
    assert "| – | My fellow | citizens adamw_clip | citizens fadam |" in text


def test_an_unknown_task_is_named(runs, capsys):
    assert make_tables(runs, "chess")[0] == 2
    assert "unknown task 'chess'; choose from asr, llm, vqvae" in capsys.readouterr().err


# --- choice of tuned values


def run_choose(runs: Path, *words: str) -> tuple[int, Path]:
    out = runs.parent / "tuned"
    return choose.main(["asr", "--scale", "cpu", "--runs", str(runs), "--out", str(out), *words]), out


def test_the_best_trial_is_chosen_and_written(write, trials, runs):
    write(*trials)
    status, out = run_choose(runs)
    assert status == 0
    text = (out / "asr_cpu-fadam.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert yaml.safe_load(text) == {"optimizer": {"lr": 0.002}}
    assert "optimizer.lr=0.002: 0.45  asr/cpu/fadam/tune-lr0.002-s100.json  <- chosen" in text
    assert "optimizer.lr=0.004: diverged" in text
    assert "tuning seed 100" in text
    assert yaml.safe_load((out / "asr_cpu-adamw_clip.yaml").read_text()) == {"optimizer": {"lr": 0.002}}


@pytest.mark.parametrize("edge", [0.001, 0.004])
def test_a_best_trial_at_the_edge_is_refused_loudly(write, trials, tuning, runs, capsys, edge):
    write(*trials, tuning("fadam", edge, 0.1))
    status, out = run_choose(runs)
    assert status == 3
    assert not out.exists()
    error = capsys.readouterr().err
    assert "AT THE EDGE: FAdam" in error
    assert f"optimizer.lr={edge:g} of {{0.001, 0.002, 0.004}}" in error
    assert "widen the space for all arms" in error


def test_a_choice_at_the_edge_can_be_taken_and_says_so(write, trials, tuning, runs):
    write(*trials, tuning("fadam", 0.001, 0.1))
    status, out = run_choose(runs, "--allow-edge")
    assert status == 0
    assert "# At the edge of the search space: optimizer.lr." in (out / "asr_cpu-fadam.yaml").read_text()
    assert "At the edge" not in (out / "asr_cpu-adamw_clip.yaml").read_text()


def test_unequal_numbers_of_trials_are_refused(write, trials, tuning, runs, capsys):
    write(*trials, tuning("fadam", 0.003, 0.5))
    status, out = run_choose(runs)
    assert status == 2
    assert not out.exists()
    assert "adamw_clip 3 trials in 3 runs, fadam 4 trials in 4 runs" in capsys.readouterr().err


def test_every_trial_diverged(write, tuning, runs, capsys):
    write(*(tuning("fadam", rate, None) for rate in (0.001, 0.002, 0.004)))
    assert run_choose(runs)[0] == 2
    assert "every tuning trial of arm fadam diverged" in capsys.readouterr().err


def test_no_trials_is_one_sentence(runs, capsys):
    assert run_choose(runs)[0] == 2
    assert "no tuning records of asr cpu" in capsys.readouterr().err


def test_a_variant_names_its_file_and_other_keys_are_kept(write, tuning, runs):
    for rate, value in ((0.001, 21.0), (0.002, 22.0), (0.004, 20.0)):
        for decay in (0.1, 0.01, 0.001):
            write(
                tuning(
                    "fadam",
                    rate,
                    0.0,
                    variant="gaussian",
                    trial=f"tune-lr{rate}-wd{decay}",
                    objective={"metric": "val/psnr", "mode": "max", "value": value - abs(decay - 0.01)},
                    searched={"optimizer.lr": rate, "optimizer.weight_decay": decay, "optimizer.rho": 0.5},
                )
            )
    status, out = run_choose(runs)
    assert status == 0
    assert [p.name for p in out.iterdir()] == ["asr_cpu-gaussian-fadam.yaml"]
    chosen = yaml.safe_load((out / "asr_cpu-gaussian-fadam.yaml").read_text())  # no experiment name in these records
    assert chosen == {"optimizer": {"lr": 0.002, "weight_decay": 0.01, "rho": 0.5}}


def test_the_file_is_named_after_the_experiment_that_reads_it(write, trials, runs):
    write(*({**content, "variant": "gaussian", "experiment_name": "asr_cpu_gaussian"} for content in trials))
    status, out = run_choose(runs)
    assert status == 0
    assert {p.name for p in out.iterdir()} == {"asr_cpu_gaussian-fadam.yaml", "asr_cpu_gaussian-adamw_clip.yaml"}


# --- figures


def test_figures_are_written_and_repeat(write, six, trials, record, runs, tmp_path):
    write(*six, *trials, record("fadam", 4, None, diverged=True))
    out = tmp_path / "figures"
    assert figures.main(["asr", "--runs", str(runs), "--out", str(out)]) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) == {"asr_curves.png", "asr_curves.svg", "asr_tuning.png", "asr_tuning.svg"}
    assert before["asr_curves.png"].startswith(b"\x89PNG")
    figures.main(["asr", "--runs", str(runs), "--out", str(out)])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_figure_says_what_it_shows(write, six, trials, record, runs):
    write(*six, *trials, record("fadam", 4, None, diverged=True))
    records, spec = load_records(runs), figures.task_spec("asr")
    axis = figures.curves_figure(records, spec).axes[0]
    assert axis.get_xlabel() == "optimizer steps"
    assert axis.get_ylabel() == "dev-clean WER (%)"
    labels = [t.get_text() for t in axis.get_legend().get_texts()]
    assert labels == ["AdamW + clip (n=3)", "FAdam (n=4, 1 diverged ×)"]
    tuned = figures.tuning_figure(records, spec).axes[0]
    assert tuned.get_xscale() == "log"
    assert "FAdam, diverged" in [t.get_text() for t in tuned.get_legend().get_texts()]


def test_a_mean_line_ends_where_a_run_diverged():
    whole, broken = [(1, 1.0), (2, 2.0)], [(1, 3.0), (2, float("nan"))]
    assert figures.mean_curve([whole, broken]) == [(1, 2.0, pytest.approx(2**0.5))]
    assert figures.mean_curve([whole, []]) == []
    assert figures.mean_curve([]) == []


def test_figures_without_records(runs, tmp_path, capsys):
    assert figures.main(["llm", "--runs", str(runs), "--out", str(tmp_path / "figures")]) == 0
    assert "llm: no records to draw curves from" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()


# --- comparison


def run_compare(runs: Path, published: Path) -> int:
    return compare.main(["asr", "--runs", str(runs), "--published", str(published), "--paper", PAPER])


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ((0.40, 0.41, 0.42), "agrees"),
        ((0.44, 0.43, 0.42), "agrees"),
        ((0.50, 0.51, 0.52), "higher than published"),
        ((0.30, 0.31, 0.32), "lower than published"),
        ((), "no own runs"),
        ((0.40, float("inf")), "differs: own diverged 1 of 2, published 0 of 3"),
    ],
)
def test_agreement_in_words(own, words):
    # 95% prediction interval of three more runs: 0.41 ± 4.303 * 0.01 * sqrt(2/3) = 0.41 ± 0.0351
    assert compare.agreement((0.40, 0.41, 0.42), own) == words


def test_agreement_needs_a_spread():
    assert compare.agreement((0.4,), (0.4,)) == "one published value, spread unknown"
    assert compare.agreement((), (0.4,)) == "nothing published"
    inf = float("inf")
    assert compare.agreement((inf, inf), (inf,)) == "agrees: own diverged 1 of 1, published 2 of 2"


def test_comparison_shows_all_three_sides(write, six, runs, tmp_path, capsys):
    published = tmp_path / "published"
    write(*six, root=published)
    write(*six)
    assert run_compare(runs, published) == 0
    text = capsys.readouterr().out
    for words in ("1.34", "41.00 ± 1.00 (n=3)", "agrees", "Your runs", "-3.00", "4.0"):
        assert words in text
    assert "Note:" not in text


def test_comparison_names_other_data_configuration_and_settings(write, six, runs, tmp_path, capsys):
    published = tmp_path / "published"
    write(*six, root=published)
    for content in six:
        content["data"]["fingerprint"] = "sha256:mine"
        content["config"]["model"]["dim"] = 144
        content["optimizer"]["lr"] = 0.1
    write(*six)
    assert run_compare(runs, published) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Your data (sha256:mine) are not the published data" in text
    assert "Your configuration is not the published one: model.dim is 96" in text
    assert "Your FAdam has other settings: lr 0.1 instead of 0.002." in text


@pytest.mark.parametrize("side", ["own", "published", "none"])
def test_comparison_with_a_side_missing(write, six, runs, tmp_path, capsys, side):
    published = tmp_path / "published"
    if side != "none":
        write(*six, root=published if side == "published" else runs)
    assert run_compare(runs, published) == 0
    text = capsys.readouterr().out
    missing = {"own": ["published"], "published": ["your own"], "none": ["published", "your own"]}[side]
    assert all(f"{name}: no evaluation records yet" in text for name in missing)
    assert ("1.34" in text) == (side != "none")


def test_comparison_of_mixed_own_runs_is_refused(write, six, record, runs, tmp_path, capsys):
    write(*six, record("fadam", 4, 0.4, data={"name": "other", "fingerprint": "sha256:bbb"}))
    assert run_compare(runs, tmp_path / "published") == 2
    assert "your runs of asr cpu would mix two data sets" in capsys.readouterr().err


# --- publishing


def run_publish(runs: Path, *words: str) -> tuple[int, Path]:
    to = runs.parent / "results"
    return publish.main(["--runs", str(runs), "--to", str(to), *words]), to


def test_publishing_copies_once_with_artifacts(write, six, record, runs, capsys):
    write(*six)
    path = write(record("fadam", 4, 0.4, artifacts=["main-s4.png"]))
    (path.parent / "main-s4.png").write_bytes(b"picture")
    status, to = run_publish(runs)
    assert status == 0
    files = {p.relative_to(to): p.read_bytes() for p in to.rglob("*") if p.is_file()}
    assert files == {p.relative_to(runs): p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    assert "7 copied, 0 updated, 0 unchanged, 0 refused" in capsys.readouterr().out
    times = {p: p.stat().st_mtime_ns for p in to.rglob("*")}
    assert run_publish(runs)[0] == 0
    assert "0 copied, 0 updated, 7 unchanged" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in to.rglob("*")} == times
    write(record("fadam", 1, 0.1))
    (path.parent / "main-s4.png").write_bytes(b"new picture")
    run_publish(runs)
    assert "0 copied, 2 updated, 5 unchanged" in capsys.readouterr().out


def test_a_failed_copy_leaves_nothing_behind(write, record, runs, monkeypatch):
    write(record("fadam", 1, 0.4))
    to = run_publish(runs)[1]
    target = to / "asr/cpu/fadam/main-s1.json"
    before = target.read_bytes()
    write(record("fadam", 1, 0.3))

    def fail(source: Path, destination: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run_publish(runs)
    assert target.read_bytes() == before
    assert [p for p in to.rglob("*") if p.is_file()] == [target]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dirty": True}, "changed working tree"),
        ({"artifacts": ["gone.png"]}, "artifact gone.png is missing"),
        ({"finished": ""}, "did not finish"),
    ],
)
def test_what_cannot_be_stood_behind_is_refused(write, record, runs, capsys, change, words):
    write(record("fadam", 1, 0.4, **change), record("fadam", 2, 0.4))
    status, to = run_publish(runs)
    assert status == 1
    assert words in capsys.readouterr().out
    assert [p.name for p in to.rglob("*.json")] == ["main-s2.json"]


def test_smoke_and_other_tasks_stay_behind_and_dirty_can_be_allowed(write, record, runs, capsys):
    write(
        record("fadam", 1, 0.4, scale="smoke"), record("fadam", 2, 0.4, dirty=True), record("fadam", 3, 1, task="llm")
    )
    status, to = run_publish(runs, "asr", "--allow-dirty")
    assert status == 0
    assert [p.relative_to(to) for p in to.rglob("*.json")] == [Path("asr/cpu/fadam/main-s2.json")]
    assert "1 of scale smoke left out" in capsys.readouterr().out
    assert json.loads((to / "asr/cpu/fadam/main-s2.json").read_text())["dirty"] is True


def test_sizes_by_split_are_those_of_the_training_split(record, write, runs) -> None:
    data = {"name": "photographs", "fingerprint": "sha256:0", "tiles": {"train": 63729, "val": 1851}}
    write(record("fadam", 1, 0.5, data=data))
    assert tables.data_words(load_records(runs)[0]) == "63,729 tiles of data set `photographs`"
