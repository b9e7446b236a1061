"""Words and sentences of the claims."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.analysis import tables, verdicts
from experiments.analysis.bowls import bowls, taken
from experiments.analysis.comparisons import Compared, GridVerdict, Point, Study, ladder
from experiments.analysis.families import Word
from experiments.analysis.pages import BEGIN, END, Pages
from experiments.analysis.verdicts import Finding, load_claims, load_theory
from experiments.core.catalogue import task
from experiments.core.errors import AnalysisError
from tests.analysis.conftest import ROOT


def found(pages: Pages, claim: str, place: str) -> Finding:
    return next(f for f in pages.findings if (f.claim.id, f.where) == (claim, place))


def test_sentences_of_known_answers(pages: Pages) -> None:
    better = found(pages, "C1", "Language modelling")
    assert (better.word, better.reading) == ("better", "holds here")
    assert better.sentence.startswith("FAdam needs 0.0")
    assert (
        "fewer bits per byte than AdamW with clipping: better, by more than the 0.01 bits per byte" in better.sentence
    )
    same = found(pages, "C2", "Speech recognition")
    assert (same.word, same.reading) == ("equivalent", "does not show here")
    assert "equivalent, since less than 1 in 100 words would not matter" in same.sentence
    open_ = found(pages, "C3", "VQ-VAE, discrete likelihood")
    assert (open_.word, open_.reading) == ("undecided after 8 pairs", "")
    assert "which may be chance: undecided after 8 pairs, the last look that was planned; about " in open_.sentence
    assert "pairs would decide it" in open_.sentence
    lost = found(pages, "C7", "VQ-VAE, discrete likelihood")
    assert "clipping of the global norm in 8 of 8 runs: better." in lost.sentence.replace("in 0 and ", "")
    assert found(pages, "C6", "Speech recognition").reading == "holds here"


@pytest.mark.parametrize(
    ("word", "interval", "words"),
    [
        ("better", (0.012, 0.03), "better, by more than the"),
        ("better", (0.002, 0.008), "better, though by less than the"),
        ("better", (0.002, 0.015), "better, though perhaps by less than the"),
        ("worse", (-0.03, -0.012), "worse, by more than the"),
        ("worse", (-0.008, -0.002), "worse, though by less than the"),
        ("worse", (-0.015, -0.002), "worse, though perhaps by less than the"),
    ],
)
def test_size_of_a_difference_is_told_from_its_interval(
    pages: Pages, word: Word, interval: tuple[float, float], words: str
) -> None:
    """Whether it matters is not told from the mean, whose interval may reach to the other side."""
    c = next(c for c in pages.study.comparisons if c.comparison.id == "C1" and c.protocol.task == "llm")
    verdict = replace(c.verdict, word=word, mean=sum(interval) / 2, interval=interval)
    assert f": {words} 0.01 bits per byte that would matter (" in verdicts.sentence(replace(c, verdict=verdict))


def test_before_the_first_run_everything_says_so(empty: Pages) -> None:
    assert {f.word for f in empty.findings if f.claim.id != "C10"} == {verdicts.NOT_RUN}
    assert {f.reading for f in empty.findings if f.claim.id != "C10"} == {""}
    assert "no pair has been run, so nothing is said yet" in found(empty, "C1", "Language modelling").sentence
    assert "Not known yet" in verdicts.size_sentence(empty.study.ladder)
    assert "Not known yet" in verdicts.context_sentence([], empty.study.planners["llm"].protocol)


def test_epsilon(pages: Pages) -> None:
    c4 = found(pages, "C4", "Language modelling")
    assert (c4.word, c4.reading) == ("supported", "holds here")
    assert "AdamW without clipping loses at most 0.3000 bits per byte (by epsilon: -0.3000 at 0.0001, " in c4.sentence
    assert "at 1e-08), shown to be worse by more than matters somewhere; FAdam gives the reference's res" in c4.sentence
    assert "everywhere (by epsilon: same at 0.0001, same at 1e-08), shown to be within what matters" in c4.sentence
    assert c4.sentence.endswith("0.01 bits per byte would matter.")


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.3, 0.2], "FAdam gains at most 0.2500 bits per byte (by epsilon: +0.2500 at 0.0001)"),
        ([-0.3, 0.1], "FAdam loses at most 0.1000 bits per byte (by"),
        ([-math.inf, 0.1], "FAdam diverges in 1 of 2 runs (by"),
        ([math.inf, 0.1], "FAdam diverges at its own reference (by"),
        ([math.inf, -math.inf], "FAdam diverges in 1 of 2 runs (by"),
        ([math.nan, -math.inf], "FAdam diverges in 2 of 2 runs (by"),
    ],
)
def test_what_keeps_c4_open_is_named(gains: list[float], words: str) -> None:
    point = Point("fadam", "bf16-true", 1e-4, 1.0, np.array(gains))
    verdict = GridVerdict("undecided", 1, 1, {"fadam": False}, {"fadam": False}, {"fadam": [point]})
    assert verdicts.grid_words(verdict, task("llm").metric("test/bits_per_byte"), 0.01).startswith(words)


def test_a_grid_whose_runs_stand_alone_says_so() -> None:
    """The first runs of C4's grid came before their references, and the page said "So far: ."."""
    verdict = GridVerdict("", 2, 144, {}, {}, {})
    said = verdicts.grid_words(verdict, task("llm").metric("test/bits_per_byte"), 0.01)
    assert said == "no point and its reference have run on one seed yet. 0.01 bits per byte would matter."


def test_an_undecided_comparison_says_whether_it_goes_on(study: Study) -> None:
    c = next(c for c in study.comparisons if c.verdict.pairs)
    lost = replace(c.verdict, word="undecided", mean=-math.inf, sd=None, interval=None, diverged=(1, 0, 0))
    for look, says in ((None, "the last look that was planned."), (40, "looked at again after 40.")):
        said = verdicts.sentence(replace(c, verdict=replace(lost, next_look=look)))
        assert said.endswith(f"undecided after {c.verdict.pairs} pairs, {says}")


def test_size_and_context(study: Study) -> None:
    said = verdicts.size_sentence(study.ladder)
    assert said.startswith(
        "Over language models of 0.32 to 7.77 million parameters FAdam's gain grows with size, from "
    )
    assert re.search(r"from \+0\.\d{4} to \+0\.\d{4}: \+0\.0\d+ bits per byte for ten times the parameters", said)
    assert said.endswith("4 seeds).")
    said = verdicts.context_sentence(study.contexts, study.planners["llm"].protocol)
    assert said.startswith("Yes, every main arm: Muon by 0.0")
    matters = "bits per byte or more, where 0.01 bits per byte would matter"
    assert said.endswith(f" {matters} (after as many steps, 4 pairs each, 95% intervals, no verdict).")


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (1.12, "Not known yet: models of 0.32 to 7.77 million parameters are not all run."),
        (
            2.67,
            "Over language models of 0.32 to 1.12 million parameters FAdam's gain grows with size, from {}: "
            r"\+0\.0184 bits per ",
        ),
        (
            7.77,
            "Over language models of 0.32 to 2.67 million parameters FAdam's gain grows with size, from {}: "
            r"\+0\.0215 bits per ",
        ),
    ],
)
def test_sizes_that_are_not_all_run_are_not_spoken_of(study: Study, size: float, sentence: str) -> None:
    """The first pairs of a size are there before its comparison is looked at."""

    def until(c: Compared) -> Compared:
        if c.protocol.size is None or c.protocol.size < size:
            return c
        some = 3 if c.protocol.size == size else 0
        verdict = replace(c.verdict, pairs=0, word="undecided", mean=None, sd=None, interval=None)
        return replace(c, seeds=c.seeds[:some], gains=c.gains[:some], verdict=verdict)

    said = verdicts.size_sentence(ladder([until(c) for c in study.comparisons]))
    ends = r"\+0\.\d{4} to \+0\.\d{4}"
    assert re.match(sentence.format(ends), said)
    assert said.endswith("Models of 2.67 and 7.77 million are not all run.") == (size == 2.67)
    assert said.endswith("Models of 7.77 million are not all run.") == (size == 7.77)


def test_a_size_that_diverged_has_no_slope(study: Study) -> None:
    some = next(c for c in study.comparisons if c.protocol.size == 2.67)
    lost = replace(some, gains=np.array([-math.inf, *some.gains[1:]]), verdict=replace(some.verdict, sd=None))
    said = verdicts.size_sentence(ladder([lost if c is some else c for c in study.comparisons]))
    assert said == "It has no slope: some runs diverged."
    least = min((c for c in study.comparisons if c.protocol.size), key=lambda c: c.protocol.size or 0)
    alone = [replace(least, verdict=replace(least.verdict, sd=None))]
    alone += [replace(c, verdict=replace(c.verdict, pairs=0)) for c in study.comparisons if c is not least]
    assert verdicts.size_sentence(ladder(alone)).endswith(
        "some runs diverged. Models of 1.12, 2.67 and 7.77 million are not all run."
    )


def test_context_that_is_not_all_run_is_not_judged(study: Study) -> None:
    (muon,) = study.contexts
    soap = replace(muon, arm="soap", values=muon.values[:3])
    p = muon.protocol
    assert p.context is not None
    both = replace(p, context=replace(p.context, arms=("muon", "soap")))
    muon, soap = (replace(c, protocol=both) for c in (muon, soap))
    assert verdicts.context_sentence([soap], both) == "Not known yet: no other has run in pairs with them."
    assert verdicts.context_sentence([muon], p) == "Not known yet: no other has run in pairs with them."
    for found in ([muon, soap], [muon]):
        assert verdicts.context_sentence(found, both).endswith("no verdict). Not all run: SOAP.")
    spoilt = replace(
        soap,
        values=np.array([*muon.values[1:], math.nan]),
        gains={name: np.array([-math.inf, *gains[1:]]) for name, gains in muon.gains.items()},
    )
    assert verdicts.context_sentence([spoilt], both).startswith("SOAP (diverged in 1 of 5 runs) does not do better")
    lost = replace(muon, gains={name: -gains for name, gains in muon.gains.items()})
    assert verdicts.context_sentence([lost], both) == (
        "Muon does not do better than every main arm (after as many steps, 4 pairs each, 95% intervals, no verdict). "
        "Not all run: SOAP."
    )


@pytest.mark.parametrize(
    ("bend", "words"), [(0.05, "Neither is shown to be easier"), (0.005, "FAdam is easier"), (0.6, "FAdam is harder")]
)
def test_the_wider_bowl_is_easier_to_tune(study: Study, bend: float, words: str) -> None:
    p = study.planners["llm"].protocol
    table = study.table.copy()
    mine = (table["arm"] == "fadam") & (table["part"] == "tune") & (table["protocol"] == "llm")
    away = np.log(table.loc[mine, "lr"].astype(float) / 0.0025) ** 2
    table.loc[mine, p.tuning.name] += (bend - 0.05) * away
    mains = [c for c in verdicts.main_comparisons(study) if c.protocol is p]
    said = verdicts.easier(mains, {"llm": bowls(table, p)})
    assert said.startswith(f"{words} to tune on language. FAdam and AdamW with clipping stay within what matters of ")
    assert re.search(r"rates that span a factor of (at least )?[\d.]+ and [\d.]+ on language\.$", said)
    few = table[~(mine & (table["lr"] > 0.0025))]
    for some in ({}, bowls(table[~mine], p), bowls(few, p)):
        assert verdicts.easier(mains, {"llm": some}) == "It is not known yet on language."


def test_a_best_rate_that_is_passed_over_is_told(study: Study) -> None:
    p = study.planners["llm"].protocol
    table = study.table.copy()
    mine = (table["arm"] == "adamw_clip") & (table["part"] == "tune") & (table["protocol"] == "llm")
    assert verdicts.passed_over("adamw_clip", bowls(table, p)["adamw_clip"], p) == ""
    table.loc[mine & (table["lr"] == 0.004), p.tuning.name] = 1.8
    found = bowls(table, p)
    assert taken(found["adamw_clip"], p) == 1
    said = verdicts.passed_over("adamw_clip", found["adamw_clip"], p)
    assert "best rate of AdamW with clipping, 0.0025, stands beside a cliff (0.004 was worse by 0." in said
    assert "; 0.0016 was taken, which was worse by 0.0" in said
    row = next(row for row in tables.bowls(found, p).rows if row[0].text == "AdamW + clip")
    assert [cell.text for cell in row[1:3]] == ["0.0025", "0.0016"]
    table.loc[mine & (table["lr"] == 0.001), p.tuning.name] = 1.5
    few = bowls(table[~(mine & (table["lr"] > 0.004))], p)["adamw_clip"]
    assert few.lowest != taken(few, p)
    assert verdicts.passed_over("adamw_clip", few, p) == ""
    last = bowls(table, p)["adamw_clip"]
    assert "0.001, is the last one tried; 0.0016 was taken" in verdicts.passed_over("adamw_clip", last, p)


def test_the_identity_of_c10_rests_on_the_small_network_and_on_the_tasks(pages: Pages) -> None:
    c10 = found(pages, "C10", "A small network and the tasks' models")
    assert c10.word in ("supported", "contradicted", "undecided")
    assert c10.reading.startswith(c10.claim.reads.get(c10.word, ""))
    assert "A small network, batches of 16: " in c10.sentence
    assert re.search(r"The tasks' own models, \d seeds, .* speech .* language .* images .*", c10.sentence)
    assert verdicts.findings(pages.study, [c10.claim], {})[0].word == verdicts.NOT_RUN


def test_marks_separate_the_change_from_its_effect() -> None:
    marks = {c.id: c.marks for c in load_claims(ROOT / "results/claims.yaml")}
    assert {marks[f"C{i}"] for i in range(4, 9)} == {"change [A], effect [P]"}
    assert {marks[c] for c in ("C1", "C2", "C3", "C9", "C10")} == {"[A]"}


def test_json_holds_every_finding(pages: Pages) -> None:
    content = json.loads(verdicts.as_json(pages.findings))
    assert len(content["verdicts"]) == len(pages.findings)
    first = content["verdicts"][0]
    assert (first["claim"], first["comparison"]["pairs"], first["comparison"]["study"]) == ("C1", 4, "llm")
    assert first["comparison"]["detectable"] < 0.01
    assert all(
        v is None or isinstance(v, float)
        for v in (x["comparison"]["gain"] for x in content["verdicts"] if "comparison" in x)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mark": "X"}, "C1: a mark must be one of A, L, P, W"),
        ({"test": "guess"}, "C1: test 'guess' does not fit"),
        ({"reads": {"better": "yes"}}, "does not fit the words of reads"),
        ({"says": ""}, "must be texts"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_bad_claim_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = yaml.safe_load((ROOT / "results/claims.yaml").read_text())
    content["claims"][0] |= change
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(AnalysisError, match=words):
        load_claims(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"none.yaml cannot be read"):
        load_claims(tmp_path / "none.yaml")
    for content, words in (("{", "bad.json: no valid JSON"), ('{"schema": 1}', "bad.json: nothing of x with schema 1")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(AnalysisError, match=words):
            load_theory(tmp_path / "bad.json", "x", "y")
    assert load_theory(tmp_path / "none.json", "x", "y") is None


def test_whether_to_use_it_is_said(pages: Pages, empty: Pages) -> None:
    said = dict(pages.answers())["Should I use it?"]
    assert said.startswith(
        "On language, yes: it is better there; on speech and images (Gaussian likelihood) there is no reason to "
        "leave a tuned AdamW: the two are equivalent; on images (discrete likelihood)"
    )
    assert "there is no reason to leave a tuned AdamW: no gain has been shown" in said
    assert said.endswith(". Models are small here; of large ones nothing is shown.")
    assert dict(empty.answers())["Should I use it?"].startswith(
        "On language, speech, images (discrete likelihood) and images (Gaussian likelihood) it is "
    )


def test_what_the_parts_do_is_said(pages: Pages, empty: Pages) -> None:
    said = dict(pages.answers())["Which of its parts count?"]
    assert said.startswith(
        "Each pair differs in one part, and the learning rate is tuned anew. FAdam against FAdam with Adam's momentum: "
        "equivalent on language and speech, undecided after 8 pairs on images (discrete likelihood). FAdam against "
    )
    assert "norm: equivalent on language and speech, better on images (discrete likelihood). FAdam against" in said
    assert "with clipping:" not in said
    assert "not run yet on language, speech and images (discrete likelihood)." in verdicts.parts(empty.study)


def test_the_answer_says_whether_epsilon_matters(pages: Pages, empty: Pages) -> None:
    said = dict(pages.answers())["Does epsilon matter?"]
    assert said.startswith("Language modelling, supported: over epsilon from 1e-4 to 1e-16, gradients scaled down to ")
    assert "AdamW does not. AdamW without clipping loses at most 0.3000 bits per byte (by epsilon: -0.3000" in said
    assert "Does epsilon matter?" not in dict(empty.answers())


def test_answers_are_the_same_in_readme_and_report(pages: Pages, empty: Pages) -> None:
    for each in (pages, empty):
        readme, report = each.readme(f"{BEGIN}\n{END}"), each.report()
        assert len(each.answers()) == (10 if each is pages else 9)
        for asked, said in each.answers():
            assert f"- **{asked}** {said}\n" in readme
            assert f"<strong>{html.escape(asked)}</strong> {html.escape(said)}</li>" in report
