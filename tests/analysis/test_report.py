"""The report, as far as its source tells: what a browser must judge is `experiments.analysis.check_report`'s."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image, PngImagePlugin

from experiments.analysis import report, report_figures
from experiments.analysis.paper import load_paper
from experiments.analysis.records import load_records, parse_record
from experiments.analysis.report_parts import word_differences
from experiments.analysis.verdicts import load_claims
from experiments.core.study import afterwards, protocol
from tests.analysis.made_up import TUNED, made_up, seed_part

REPOSITORY = Path(__file__).resolve().parents[2]
PAPER = REPOSITORY / "results/paper.yaml"
CLAIMS = REPOSITORY / "results/claims.yaml"
# Elements that HTML does not close.
VOID = {"meta", "link", "br", "img", "input", "hr"}
LEVEL = {"adamw": 1.80, "adamw_clip": 1.78, "adamw_update_clip": 1.77, "fadam": 1.75, "fadam_no_clip": 1.79}
JITTER = {11: 0.001, 12: -0.001, 13: 0.002, 14: -0.002, 15: 0.0}


def value(run) -> float | None:
    if run.trial == "lr0.02":
        return None  # diverged
    own = JITTER[run.seed] if run.arm == "fadam" else 0.0
    return LEVEL.get(run.arm, 1.76) + seed_part(run) + own


@dataclass
class Page(HTMLParser):
    """What there is in a page: elements with their attributes, the text inside of each, and what is never closed."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    open: list[tuple[str, int]] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag, attrs):
        self.handle_data(" ")  # words of two elements are two words
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.mistakes.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data):
        for _, i in self.open:
            self.texts[i] = self.texts.get(i, "") + data

    def all(self, tag):
        return [(a, " ".join(self.texts.get(i, "").split())) for i, (t, a) in enumerate(self.elements) if t == tag]

    @property
    def links(self):
        return [(a["href"], text) for a, text in self.all("a")]

    @property
    def text(self):
        return " ".join(self.texts.get(0, "").split())


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    return page


def in_place(records, root: Path):
    """The records as files under `root`."""
    for r in records:
        path = root / r.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return [replace(r, root=root) for r in records]


def written(records, out: Path, root: Path) -> str:
    paper = load_paper(PAPER)
    return report.page(report.context(records, paper, load_claims(CLAIMS), None, out, root, tuned=TUNED))


def check_whole(text: str, out: Path) -> Page:
    """What must hold of the page whatever the records are."""
    page = parsed(text)
    assert not page.mistakes
    assert not page.open
    # No network: nothing that a browser loads has an address.
    for tag, a in page.elements:
        for key in ("src", "srcset", "poster", "data", "action"):
            assert not a.get(key) or a[key].startswith("data:"), (tag, a)
        if tag != "a" and "href" in a:
            assert a["href"].startswith(("#", "data:")), (tag, a)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|<iframe", text)
    # Anchors and files.
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, n in ids.items() if n > 1] == []
    for href, _ in page.links:
        if href.startswith("#"):
            assert href[1:] in ids, href
        else:
            assert (out / unquote(href)).is_file(), href
    used = set(re.findall(r'(?:url\(#|<use[^>]* href="#)([^")]+)', text))
    assert used <= ids.keys()
    # For those who cannot see it.
    assert all(a.get("alt") for a, _ in page.all("img"))
    assert all("aria-label" in a or "aria-hidden" in a for a, _ in page.all("svg"))
    assert all(a.get("scope") in ("row", "col") and t for a, t in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert page.all("html")[0][0]["lang"] == "en"
    assert "None" not in page.text
    assert "nan" not in page.text.split()
    return page


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def records(place):
    made = made_up("llm", value) + made_up("vqvae", lambda run: 6.0 + seed_part(run), tiers=("who",))
    return in_place(made, place / "runs")


@pytest.fixture(scope="module")
def text(records, place):
    return written(records, place, place / "runs")


@pytest.fixture(scope="module")
def page(text, place):
    return check_whole(text, place)


def test_the_answer_comes_first(page):
    lead = next(t for a, t in page.all("p") if a.get("class") == "answer")
    assert lead == (
        "Against AdamW with global-norm clipping (8 trials each over learning rate and weight decay, 5 paired seeds; "
        "scale “study”), FAdam is better on language model pretraining and not detectably different on the VQ-VAE."
    )
    points = next(t for a, t in page.all("ul") if a.get("class") == "points")
    # 1.78 - 1.75, and Student's interval of the jitter: 2.776 * 0.00158 / sqrt(5).
    assert "Language model pretraining better gain +0.0300 [+0.0280, +0.0320] in test bits per byte" in points
    assert "Speech recognition not tested here 0 of 26 records" in points


def test_every_record_is_led_to(page, records, place):
    led = {(place / unquote(href)).resolve() for href, _ in page.links if not href.startswith("#")}
    assert {r.path.resolve() for r in records} <= led


def test_a_mean_leads_to_its_records_and_a_gain_to_its_pairs(page, text, place):
    mean = next(href for href, t in page.links if t == "1.7530 ± 0.0019 (n=5)")
    assert mean == "#runs-llm-study-fadam-main"
    part = text[text.index('<details id="runs-llm-study-fadam-main"') :]
    part = part[: part.index("</details>")]
    assert re.findall(r'href="([^"]+)"', part) == [f"runs/llm/study/fadam/main-s{s}.json" for s in range(11, 16)]
    gain = next(href for href, t in page.links if t == "+0.0300 [+0.0280, +0.0320]")
    assert gain == "#pair-llm-study-main-fadam-adamw-clip"
    part = text[text.index(f'<details id="{gain[1:]}"') :]
    part = part[: part.index("</details>")]
    assert part.count(".json") == 10
    assert "+0.0290" in part


def test_a_trial_leads_to_its_own_record(page):
    assert ("runs/llm/study/lion/tune-p3-s100.json", "tune-p3-s100") in page.links
    # All trials but the best one came out as 2.
    assert ("runs/llm/study/fadam/tune-p2-s100.json", "2.0000") in page.links
    assert ("runs/llm/study/fadam/tune-p3-s100.json", "1.0000") in page.links


def test_what_diverged_is_shown(page):
    table = next(t for _, t in page.all("table") if t.startswith("test bits per byte over learning rate"))
    assert "∞ (2 of 2 diverged)" in table
    assert any("× diverged" in t for _, t in page.all("figcaption"))


def test_missing_tiers_are_said_in_the_status_commands_words(page):
    assert "asr, tier who, main: 52 missing of 52" in page.text
    assert "vqvae, tier why, switches: 54 missing of 54" in page.text
    # No empty plots instead: the tasks that have runs are drawn, the others are not.
    names = [a["aria-label"].split(":")[0] for a, _ in page.all("svg") if "aria-label" in a]
    assert not any("Speech" in name for name in names)
    assert names.count("Language model pretraining") > 8
    assert not any(n == 0 for n in map(len, names))


def test_what_was_not_declared_stands_with_how_it_was_run(page):
    notes = [note for task in ("asr", "llm", "vqvae") for note in afterwards(protocol(task))]
    assert notes
    assert all(note in page.text for note in notes)


def test_verdicts_stand_in_one_table(page):
    table = next(t for _, t in page.all("table") if t.startswith("Verdicts"))
    assert re.search(r"C1 LLM pretraining .*? supported gain \+0\.0300", table)
    assert re.search(r"C2 ASR, .*? not tested here 0 of 26 records", table)
    assert len([c for a, c in page.all("section") if a.get("class") == "claim"]) == 10


def test_the_same_records_give_the_same_bytes(records, text, place):
    assert written(list(records), place, place / "runs") == text
    assert len(text) < 4 * 2**20


def test_no_records(tmp_path):
    text = written([], tmp_path, tmp_path / "runs")
    page = check_whole(text, tmp_path)
    assert "Nothing has been published yet, so there is no answer." in page.text
    assert not page.all("svg")
    assert not page.all("img")


def test_the_longer_runs_alone(six, trials, write, runs, tmp_path):
    write(*six, *trials)
    page = check_whole(written(load_records(runs), tmp_path, runs), tmp_path)
    lead = next(t for a, t in page.all("p") if a.get("class") == "answer")
    assert "3 trials each over learning rate, 3 paired seeds; scale “cpu”" in lead
    assert "FAdam is better on speech recognition" in lead
    assert "The study itself, at scale “study”, has no answer yet" in page.text
    assert "The paper's model has about 0.6 billion parameters. Ours has 0.91 M, about 660 times fewer." in page.text
    # 0.44 against 0.41 as percentages.
    assert ("#runs-asr-cpu-fadam-main", "41.00 ± 1.00 (n=3)") in page.links


def test_a_part_of_a_tier(place, tmp_path):
    some = [
        r for r in made_up("llm", value, tiers=("who",)) if r.purpose == "tune" or (r.seed < 13 and r.arm != "adamw")
    ]
    page = check_whole(written(in_place(some, tmp_path / "runs"), tmp_path, tmp_path / "runs"), tmp_path)
    assert "llm, tier who, main: 38 done, 14 missing of 52" in page.text
    lead = next(t for a, t in page.all("p") if a.get("class") == "answer")
    assert lead == "The published records do not suffice for an answer yet."


def picture(path: Path, shade: int) -> None:
    image = Image.new("RGB", (2 * 4 + 1, 2 * 4 + 1), (shade, 0, 0))
    image.paste((0, 0, 9), (0, 0, 9, 4))
    fields = PngImagePlugin.PngInfo()
    for key, content in {"tile": "4", "gap": "1", "columns": "2", "rows": "original,reconstruction"}.items():
        fields.add_text(key, content)
    image.save(path, pnginfo=fields)


def test_pictures_and_transcripts(tmp_path, record):
    images = made_up("vqvae", lambda run: 6.0 + seed_part(run), tiers=("who",))
    images = in_place([r for r in images if r.purpose == "eval"], tmp_path / "runs")
    shown = []
    for i, r in enumerate(images):
        path = r.path.with_suffix(".png")
        picture(path, 10 + i)
        shown.append(replace(r, artifacts=(path.name,)))
    spoken = [{"split": "test-clean", "id": "1", "reference": "a b c", "hypothesis": "a <b> "}]
    files = [tmp_path / "runs/asr/cpu" / arm / "main-s1.json" for arm in ("adamw_clip", "fadam")]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record(path.parent.name, 1, 0.4, samples=spoken)))
    speech = [
        parse_record(json.loads(p.read_text()), tmp_path / "runs", p.relative_to(tmp_path / "runs")) for p in files
    ]
    text = written([*shown, *speech], tmp_path, tmp_path / "runs")
    page = check_whole(text, tmp_path)
    assert len(page.all("img")) == 1 + 4  # the originals, and what each arm made of them
    assert all(a["src"].startswith("data:image/png;base64,") for a, _ in page.all("img"))
    assert "&lt;b&gt;" in text
    assert ({}, "<b>") in page.all("ins")


def test_the_command(six, write, runs, tmp_path, capsys):
    write(*six)
    out = tmp_path / "page.html"
    options = ["--runs", str(runs), "--out", str(out), "--paper", str(PAPER), "--claims", str(CLAIMS)]
    options += ["--theory", str(tmp_path / "none.json")]
    assert report.main(options) == 0
    assert "wrote" in capsys.readouterr().out
    check_whole(out.read_text(encoding="utf-8"), tmp_path)
    assert report.main([*options, "--paper", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", [("same", "a b c")]),
        ("a b c", "a x c", [("same", "a"), ("wrong", "x"), ("same", "c")]),
        ("a b c", "a c", [("same", "a"), ("missing", "b"), ("same", "c")]),
        ("a", "a y", [("same", "a"), ("wrong", "y")]),
        ("a", "", [("missing", "a")]),
    ],
)
def test_word_differences(reference, hypothesis, expected):
    assert word_differences(reference, hypothesis) == expected


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.001, 0.01], [0.001, 0.002, 0.005, 0.01]),
        ([7e-4, 4.5e-2], [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]),
        ([1e-3, 0.9], [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]),
        ([1e-4, 0.5], [1e-4, 1e-3, 0.01, 0.1]),
        ([1e-30, 1e-4], [1e-30, 1e-25, 1e-20, 1e-15, 1e-10, 1e-5]),
    ],
)
def test_ticks(places, expected):
    assert report_figures.ticks(places) == pytest.approx(expected)


def test_drawings_are_alike_and_their_own():
    lines = [report_figures.Line("fadam", [(1e-3, 1.0), (1e-2, 2.0)], [0.1], (1e-3, 1.0))]
    one = report_figures.lines("one", "a label", lines, "x", "y")
    assert one == report_figures.lines("one", "a label", lines, "x", "y")
    other = report_figures.lines("two", "a label", lines, "x", "y")
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    assert "var(--arm-d55e00)" in one
    assert "#d55e00" not in one.lower()
    assert 'aria-label="a label"' in one
