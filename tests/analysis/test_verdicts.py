"""Verdicts, on made-up records with known answers: each of the four words, by each kind of test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.analysis import verdicts as module
from experiments.analysis.paper import load_paper
from experiments.analysis.records import AnalysisError, load_records
from experiments.analysis.stats import BETTER_ARM, NEITHER, decide
from experiments.analysis.verdicts import (
    CONTRADICTED,
    NONE,
    NOT_TESTED,
    SUPPORTED,
    Claim,
    Verdict,
    as_json,
    load_claims,
    main,
    overall,
    page,
    short_table,
    verdicts,
)
from tests.analysis.conftest import record
from tests.analysis.made_up import TUNED, made_up, seed_part

REPOSITORY = Path(__file__).resolve().parents[2]
CLAIMS = {c.id: c for c in load_claims(REPOSITORY / "results/claims.yaml")}
NOISE = {11: 0.3, 12: -0.3, 13: 0.1, 14: -0.1, 15: 0.2}


def claim(key: str, *tasks: str) -> Claim:
    return replace(CLAIMS[key], tasks=tasks or CLAIMS[key].tasks)


def study_of(task: str, gains: dict[str, float], spread: float = 0.004, eps: dict[str, float] | None = None):
    """Records of a study in which FAdam is better than each arm by `gains`, in the units of the metric."""

    def value(run):
        if run.part == "eps":
            return 1.0 + ((eps or {}).get(run.arm, 0.0) if run.trial == "eps0.0001" else 0.0)
        own = spread * NOISE[run.seed] if run.arm in ("fadam", "fadam_decoupled_decay") else 0.0
        key = f"{run.arm} continuous" if run.part == "continuous" else run.arm
        gain = gains.get(key, 0.0)
        # The continuous metric of the VQ-VAE is better the higher, all others the lower.
        sign = -1 if run.part == "continuous" else 1
        return 20.0 + sign * gain + own + seed_part(run) if sign < 0 else 1.0 + gain + own + seed_part(run)

    return made_up(task, value, tiers=("who", "why", "after"))


def only(found: tuple[Verdict, ...], scale: str = "study") -> Verdict:
    (verdict,) = [v for v in found if v.scale == scale]
    return verdict


def verdict_on(key: str, task: str, records) -> Verdict:
    return only(verdicts([claim(key, task)], records, tuned=TUNED))


# --- the claims


def test_every_claim_of_the_paper_is_there():
    assert list(CLAIMS) == [f"C{i}" for i in range(1, 11)]
    paper = load_paper(REPOSITORY / "results/paper.yaml")
    load_claims(REPOSITORY / "results/claims.yaml", paper.marks)
    by_id = {c.id: c for c in paper.claims}
    assert {"C1", "C2", "C3", "C9"} <= set(by_id)
    for key in ("C1", "C2", "C3", "C9"):
        assert (CLAIMS[key].mark, CLAIMS[key].tasks) == (by_id[key].mark, (by_id[key].task,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": "belief"}, "test 'belief' is none of superiority"),
        ({"mark": "Z"}, "mark 'Z' is none of"),
        ({"tasks": ["chess"]}, "unknown task 'chess'"),
        ({"verdict": "supported"}, "must have exactly the keys"),
        ({"also": [["fadam"]]}, "must be two arms, or two arms and a metric"),
    ],
)
def test_a_bad_claim_is_named(tmp_path, change, words):
    content = yaml.safe_load((REPOSITORY / "results/claims.yaml").read_text())
    content["claims"][0].update(change)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(AnalysisError, match=words):
        load_claims(path, {"A"})
    with pytest.raises(AnalysisError, match="cannot be read"):
        load_claims(tmp_path / "none.yaml")


# --- superiority


@pytest.mark.parametrize(
    ("gain", "spread", "word"),
    [
        (0.05, 0.004, SUPPORTED),
        (-0.05, 0.004, CONTRADICTED),
        (0.005, 0.004, NONE),  # certain, but 0.01 would matter
        (0.05, 0.4, NONE),  # large, but not certain
    ],
)
def test_superiority(gain, spread, word):
    verdict = verdict_on("C1", "llm", study_of("llm", {"adamw_clip": gain}, spread))
    assert verdict.word == word
    assert (verdict.have, verdict.need, len(verdict.records)) == (26, 26, 26)
    assert {c.opponent for c in verdict.also} == {"adamw", "adamw_update_clip"}
    assert "FAdam against AdamW + clip: gain " in verdict.sentence
    assert "sign-flip p 0.062 (Holm 0.500)" in verdict.sentence or word == NONE
    assert ("could have been detected (power 80% after the correction, " in verdict.sentence) == (word == NONE)


def test_certain_but_too_small_is_said():
    verdict = verdict_on("C1", "llm", study_of("llm", {"adamw_clip": 0.005}, 0.0004))
    assert verdict.word == NONE
    assert "below 0.0100, the least that would matter" in verdict.sentence


def test_what_holms_correction_does_not_bear_is_no_verdict():
    assert "taken alone" not in verdict_on("C1", "llm", study_of("llm", {"adamw_clip": 0.05})).sentence
    weak = verdict_on("C1", "llm", study_of("llm", {"adamw_clip": 0.05}, 0.1))
    assert weak.word == NONE
    assert decide(weak.comparison.gain, weak.comparison.matters) == BETTER_ARM
    assert weak.comparison.outcome == NEITHER
    assert weak.comparison.gain.p_t < 0.05 < weak.comparison.p_t_holm
    assert "better taken alone, not after Holm's correction" in weak.sentence


def test_another_metric_is_reported_beside_and_decides_nothing():
    verdict = verdict_on("C3", "vqvae", study_of("vqvae", {"adamw_clip": 0.3}))
    (other,) = [c for c in verdict.also if c.part == "secondary"]
    assert (other.metric.keys[0], other.matters, other.primary) == ("test/psnr", 0.15, False)
    assert other.gain.mean == pytest.approx(-verdict.comparison.gain.mean)
    assert verdict.word == SUPPORTED


def test_divergence_decides():
    records = study_of("llm", {"adamw_clip": -0.05})
    lost = ("fadam", "main")
    bad = [replace(r, diverged=True) if (r.arm, r.trial) == lost and r.seed != 13 else r for r in records]
    verdict = verdict_on("C1", "llm", bad)
    assert verdict.word == CONTRADICTED
    assert verdict.sentence.startswith(
        "FAdam against AdamW + clip: gain -∞ (the first diverged on 4 of 5 seeds), 5 pairs, sign-flip p "
    )


def test_one_diverged_run_does_not_decide():
    records = study_of("llm", {"adamw_clip": 0.05})
    bad = [replace(r, diverged=True) if (r.arm, r.trial, r.seed) == ("fadam", "main", 13) else r for r in records]
    verdict = verdict_on("C1", "llm", bad)
    assert verdict.word == NONE
    assert "the first diverged on 1 of 5 seeds" in verdict.sentence


def test_the_clip_against_global_norm_clipping():
    better = verdict_on("C7", "llm", study_of("llm", {"fadam_global_clip": 0.03, "fadam_no_clip": 0.05}))
    assert (better.word, better.need) == (SUPPORTED, 18)
    assert better.sentence.startswith(
        "FAdam, decoupled decay against FAdam, decoupled decay, global-norm clip: gain +0.02"
    )
    assert [(c.arm, c.opponent) for c in better.also] == [("fadam", "fadam_no_clip")]
    assert verdict_on("C7", "llm", study_of("llm", {"fadam_global_clip": -0.05})).word == CONTRADICTED


# --- not tested


@pytest.mark.parametrize("missing", ["main", "tune"])
def test_a_missing_record_leaves_the_claim_untested(missing):
    records = study_of("llm", {"adamw_clip": 0.05})
    chosen = next(r for r in records if r.arm == "adamw_clip" and r.trial.startswith(missing))
    verdict = verdict_on("C1", "llm", [r for r in records if r is not chosen])
    assert (verdict.word, verdict.sentence, verdict.comparison) == (NOT_TESTED, "25 of 26 records", None)
    # It is none of the records that another claim needs.
    assert verdict_on("C5", "llm", [r for r in records if r is not chosen]).word == NONE


def test_an_arm_that_moves_more_than_the_other_is_not_the_insensitive_one():
    mine, other = (s for s in verdict_on("C4", "llm", study_of("llm", {}, eps={"adamw": 0.3})).sweeps)
    sides = {s.arm: s for s in (mine, other)}
    noisy = replace(sides["fadam"], range=0.4, noise=0.5, sensitive=False)
    assert module.sweep_verdict(CLAIMS["C4"], [noisy, sides["adamw"]])[0] == NONE
    calm = replace(noisy, range=0.2)
    assert module.sweep_verdict(CLAIMS["C4"], [calm, sides["adamw"]])[0] == SUPPORTED


def test_without_records_nothing_is_tested():
    found = verdicts(tuple(CLAIMS.values()), (), tuned=TUNED)
    assert {v.word for v in found} == {NOT_TESTED}
    assert {v.scale for v in found} == {"study", "theory"}
    assert only([v for v in found if v.claim.id == "C5"]).sentence == "0 of 66 records"


# --- non-inferiority


@pytest.mark.parametrize(
    ("gain", "spread", "word"),
    [
        (0.0, 0.004, SUPPORTED),
        (0.05, 0.004, SUPPORTED),
        (-0.005, 0.004, SUPPORTED),  # worse, but by less than matters
        (-0.05, 0.004, CONTRADICTED),
        (0.0, 0.4, NONE),
        (-0.0095, 0.004, NONE),  # perhaps worse by as much as matters
        (0.0, 0.02, NONE),  # not worse by as much as matters if taken alone
    ],
)
def test_noninferiority(gain, spread, word):
    records = study_of("llm", {"fadam_corrected_momentum": gain}, spread)
    assert verdict_on("C6", "llm", records).word == word


# --- epsilon


@pytest.mark.parametrize(
    ("eps", "word"),
    [
        ({"adamw": 0.3}, SUPPORTED),
        ({"adamw": 0.3, "fadam": 0.2}, CONTRADICTED),
        ({"fadam": 0.2}, CONTRADICTED),
        ({"adamw": 0.005}, NONE),
        ({}, NONE),
    ],
)
def test_range(eps, word):
    verdict = verdict_on("C4", "llm", study_of("llm", {}, eps=eps))
    assert verdict.word == word
    assert {s.arm for s in verdict.sweeps} == {"adamw", "fadam"}
    assert verdict.sentence.startswith("over 7 values of eps FAdam moves by ")
    assert verdict.need == 2 * (8 + 5 + 7 * 2)


# --- interaction


@pytest.mark.parametrize(
    ("discrete", "gaussian", "word"),
    [
        (0.15, 0.0, SUPPORTED),  # 5 times what matters against nothing
        (0.15, 0.9, NONE),  # 5 times against 6 times, with the spread of both
        (0.0, 0.9, CONTRADICTED),
    ],
)
def test_interaction(discrete, gaussian, word):
    gains = {"adamw_clip": discrete, "adamw_clip continuous": gaussian}
    verdict = verdict_on("C9", "vqvae", study_of("vqvae", gains, 0.02 if word != NONE else 0.2))
    assert verdict.word == word
    assert verdict.need == 52
    expected = discrete / 0.03 - gaussian / 0.15
    assert verdict.comparison.gain.mean == pytest.approx(expected, abs=1.5)
    # The two sides, and the interaction in decibels, which both sides measure.
    assert [c.part for c in verdict.also] == ["main", "continuous", "interaction"]
    assert verdict.also[-1].metric.keys[0] == "test/psnr"


# --- several tasks


def part(word: str, task: str) -> Verdict:
    return Verdict(CLAIMS["C5"], "study", task, word, "", have=3, need=4)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ((SUPPORTED, NONE, NONE), SUPPORTED),
        ((CONTRADICTED, NONE, CONTRADICTED), CONTRADICTED),
        ((SUPPORTED, CONTRADICTED, SUPPORTED), NONE),
        ((NONE, NONE, NONE), NONE),
        ((NOT_TESTED, SUPPORTED, NOT_TESTED), SUPPORTED),
        ((NOT_TESTED, NONE, NOT_TESTED), NONE),
        ((NOT_TESTED, NOT_TESTED, NOT_TESTED), NOT_TESTED),
    ],
)
def test_a_claim_on_several_tasks(words, word):
    parts = [part(w, t) for w, t in zip(words, ("asr", "llm", "vqvae"), strict=True)]
    verdict = overall(CLAIMS["C5"], "study", parts)
    assert (verdict.word, verdict.task) == (word, "")
    if word == NOT_TESTED:
        assert verdict.sentence == "9 of 12 records"
    else:
        assert all(f"{w} on {t}" in verdict.sentence for w, t in zip(words, ("asr", "llm", "vqvae"), strict=True))
    assert verdict.sentence.startswith("mixed: ") == ({SUPPORTED, CONTRADICTED} <= set(words))


# --- scales without a study


def published(write, gains: list[float], **changes) -> None:
    for seed, gain in enumerate(gains, start=1):
        write(record("adamw_clip", seed, 0.4 + gain, **changes), record("fadam", seed, 0.4, **changes))


def test_a_plain_scale_has_its_own_verdict(write, runs):
    published(write, [0.05, 0.052, 0.048])
    found = verdicts([CLAIMS["C2"], CLAIMS["C5"]], load_records(runs), tuned=TUNED)
    verdict = only([v for v in found if v.claim.id == "C2"], "cpu")
    assert (verdict.word, verdict.need) == (SUPPORTED, 6)
    assert verdict.comparison.p_holm == pytest.approx(1 / 4)
    assert only([v for v in found if v.claim.id == "C2"]).word == NOT_TESTED
    assert only([v for v in found if v.claim.id == "C5"], "cpu").word == NOT_TESTED


def test_two_pairs_of_a_plain_scale_are_too_few(write, runs):
    published(write, [0.05, 0.052])
    verdict = only(verdicts([CLAIMS["C2"]], load_records(runs), tuned=TUNED), "cpu")
    assert (verdict.word, verdict.sentence) == (NOT_TESTED, "4 of 6 records")


def test_smoke_runs_have_no_verdict(write, runs):
    published(write, [0.05, 0.052, 0.048], scale="smoke")
    assert {v.scale for v in verdicts([CLAIMS["C2"]], load_records(runs), tuned=TUNED)} == {"study"}


# --- the identity


def theory(ratio: float, correlation: float = 0.99, rounding: float = 1e-12) -> dict:
    case = {"batch": 16, "moment_empirical": {"ratio": ratio, "correlation": correlation}}
    return {"rounding": rounding, "cases": [case, {**case, "batch": 1}]}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (theory(1.1), SUPPORTED),
        (theory(1 / 16), CONTRADICTED),
        (theory(1.1, correlation=0.5), CONTRADICTED),
        (theory(1.1, rounding=0.1), CONTRADICTED),
        (None, NOT_TESTED),
    ],
)
def test_identity(content, word):
    verdict = only(verdicts([CLAIMS["C10"]], (), content, tuned=TUNED), "theory")
    assert verdict.word == word
    agrees = "pattern agrees, size does not" in verdict.sentence
    assert agrees == (content == theory(1 / 16))
    assert bool(verdict.remark) == (agrees or content == theory(1.1, correlation=0.5))
    assert "times the batch, 1 to 1" in verdict.sentence or not agrees


# --- what is written


@pytest.fixture(scope="module")
def found():
    records = [*study_of("llm", {"adamw_clip": 0.05, "fadam_global_clip": -0.05}), *study_of("vqvae", {})]
    return verdicts(tuple(CLAIMS.values()), records, theory(1 / 16), tuned=TUNED)


def test_json_holds_numbers_and_records(found):
    content = json.loads(as_json(found))
    entry = next(v for v in content["verdicts"] if (v["claim"], v["scale"]) == ("C1", "study"))
    assert entry["verdict"] == "supported"
    numbers = entry["tasks"]["llm"]
    assert numbers["comparison"]["gain"] == pytest.approx(0.05, abs=1e-3)
    assert numbers["comparison"]["p_sign_flip"] == 0.0625
    assert len(numbers["records"]) == 26
    assert "llm/study/fadam/main-s11.json" in numbers["records"]
    assert {v["verdict"] for v in content["verdicts"]} <= set(module.WORDS)


def test_page_names_verdicts_and_links_records(found, tmp_path):
    text = page(found, load_paper(REPOSITORY / "results/paper.yaml"), tmp_path / "runs", tmp_path / "tables")
    lines = text.splitlines()
    assert next(line for line in lines if line.startswith("| C1 |")).count("**supported**") == 1
    assert "[fadam 11](../runs/llm/study/fadam/main-s11.json)" in text
    row = next(line for line in lines if line.startswith("| C7 |"))
    assert "**no detectable difference** (asr: not tested here; llm: contradicted; vqvae: supported)" in row
    assert "| `study` | asr | not tested here | asr: 0 of 26 records | – |" in lines
    assert page(found, load_paper(REPOSITORY / "results/paper.yaml"), tmp_path / "runs", tmp_path / "tables") == text
    assert len(short_table(found)) == 2 + 10 + 1


def test_the_command_writes_both_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = ["--runs", str(tmp_path / "none"), "--out", str(tmp_path), "--theory", str(tmp_path / "none.json")]
    assert main(words) == 0
    first = [(tmp_path / name).read_bytes() for name in ("tables/verdicts.md", "verdicts.json")]
    assert main(words) == 0
    assert [(tmp_path / name).read_bytes() for name in ("tables/verdicts.md", "verdicts.json")] == first
    capsys.readouterr()
    assert main([*words, "--claims", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
