"""Pages are whole at any moment, say what the records say, and do not change while the records do not."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.analysis.__main__ import main
from experiments.analysis.pages import BEGIN, END, Pages
from experiments.core.errors import AnalysisError
from experiments.core.protocol import Protocol
from tests.analysis.conftest import ROOT
from tests.test_readme import LONGEST

README = f"# Mine\n{BEGIN}\nstale\n{END}\nrest\n"


@pytest.fixture(scope="module")
def files(pages: Pages) -> dict[str, str | bytes]:
    return pages.files(README)


@pytest.fixture(scope="module")
def report(pages: Pages) -> str:
    return pages.report()


def text(files: dict[str, str | bytes], name: str) -> str:
    content = files[name]
    assert isinstance(content, str)
    return content


def test_what_is_written(files: dict[str, str | bytes]) -> None:
    assert {f"results/tables/{n}.md" for n in ("llm", "asr", "vqvae", "verdicts", "theory")} <= set(files)
    shown = set(
        re.findall(r"\]\((?:\.\./|results/)(figures/[^)]+)\)", "".join(v for v in files.values() if isinstance(v, str)))
    )
    assert {f"results/{name}" for name in shown} == {name for name in files if name.endswith(".png")}


def test_readme_has_the_answer_its_two_pictures_and_the_table(files: dict[str, str | bytes]) -> None:
    readme = text(files, "README.md")
    assert readme.startswith("# Mine\n")
    assert readme.endswith(f"{END}\nrest\n")
    assert "stale" not in readme
    assert "- **Language modelling.** FAdam needs 0.0" in readme
    assert "FAdam's gain grows with size" in readme
    assert "Yes, every main arm: Muon by 0.0" in readme
    assert readme.index("figures/answer.png") < readme.index("figures/bowls.png") < readme.index("| task | measure |")
    assert "[Language modelling](results/tables/llm.md)" in readme
    with pytest.raises(AnalysisError, match="lacks the lines"):
        Pages.readme(None, "nothing")  # type: ignore[arg-type]


def test_readme_stays_short_whatever_the_answer(pages: Pages, empty: Pages) -> None:
    for each in (pages, empty):
        readme = each.readme((ROOT / "README.md").read_text(encoding="utf-8"))
        assert readme.count("\n") <= LONGEST


def test_a_task_page_has_all_its_parts(files: dict[str, str | bytes]) -> None:
    page = text(files, "results/tables/llm.md")
    for title in (
        "The answer", "Comparisons", "Which is easier to tune?", "Epsilon and the scale of the gradients (C4)",
        "Does the gain grow with size?", "Does another optimizer beat both?", "Every measure",
    ):  # fmt: skip
        assert f"\n## {title}\n" in page
    assert all(f"\n### Every rate tried: {size} M\n" in page for size in (0.32, 1.12, 2.67, 7.77))
    assert "planned runs have been published" in page
    assert "VQ-VAE, Gaussian likelihood" in text(files, "results/tables/vqvae.md")
    assert "another paper's model" in text(files, "results/tables/asr.md")


def test_what_was_done_otherwise_stands_on_the_page(pages: Pages, files: dict[str, str | bytes]) -> None:
    assert any(p.afterwards for p in pages.study.protocols)
    assert any(p.afterwards and p.size is not None for p in pages.study.protocols)
    for p in pages.study.protocols:
        assert all(note in text(files, f"results/tables/{p.task}.md") for note in p.afterwards)


def test_before_the_first_run_the_pages_are_whole(empty: Pages) -> None:
    made = empty.files(README)
    assert {n for n in made if n.endswith(".png")} == {"results/figures/theory.png"}
    readme = text(made, "README.md")
    assert "no pair has been run, so nothing is said yet" in readme
    assert "![" not in readme
    assert "0 planned runs have been published" in text(made, "results/tables/asr.md")


class Reader(HTMLParser):
    """Collects ids, links, headings, and tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("which", ["full", "empty"])
def test_the_page_is_sound_html(which: str, report: str, empty: Pages) -> None:
    page = report if which == "full" else empty.report()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert {link for link in reader.links if not link.startswith("#")} <= {
        f"tables/{n}.md" for n in ("llm", "asr", "vqvae")
    }
    assert reader.headings[0] == 1
    assert all(b <= a + 1 for a, b in zip(reader.headings, reader.headings[1:], strict=False))
    assert "`" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert "$" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_folded_details_and_the_words_stand_on_the_page(report: str) -> None:
    assert report.count("<details>") >= 6
    assert '<nav aria-label="Contents">' in report
    assert '<span class="word good">better</span>' in report
    assert '<span class="word same">equivalent</span>' in report


def test_what_the_optimizer_knows_stands_on_the_page(report: str, pages: Pages) -> None:
    """The same tables, words and figures as in results/fisher/table.md."""
    assert '<a href="#knows">What the optimizer knows</a>' in report
    page = (ROOT / "results" / "fisher" / "table.md").read_text(encoding="utf-8")
    for section in pages.knows_sections():
        assert f"\n## {section.title}\n" in page
        assert f'<h3 id="{section.id}">' in report
    part = report[report.index('<h2 id="knows">') :]
    assert part.count("<table>") >= 6
    assert 'aria-label="Ratio and rank correlation along training"' in part
    assert "<code>llama.model.layers.0</code>" in part
    said = next(f.sentence for f in pages.findings if f.claim.id == "C10")
    assert html.escape(said) in report


def test_arrows_run_one_way() -> None:
    """The analysis imports no torch and nothing of tasks and theory, and they nothing of it."""
    code = "import sys, experiments.analysis.pages; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("torch", "lightning", "experiments.asr", "experiments.llm", "experiments.vqvae", "experiments.theory"):
        assert f"'{name}'" not in done.stdout
    for folder in ("core", "theory", "asr", "llm", "vqvae"):
        for path in (ROOT / "experiments" / folder).glob("*.py"):
            assert not re.search(r"^ *(from|import) experiments\.(analysis|study)", path.read_text(), re.M), path


def test_the_published_pages_are_those_of_the_published_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make tables report` changes no file."""
    monkeypatch.chdir(ROOT)
    for command in ("tables", "report"):
        assert main([command, "--out", str(tmp_path)]) == 0
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {Path("README.md"), Path("results/report.html"), Path("results/verdicts.json")} <= set(made)
    for name, content in made.items():
        assert (ROOT / name).read_bytes() == content, f"{name} is not what `make tables report` makes"
    for folder in ("results/tables", "results/figures"):
        assert {p.name for p in (ROOT / folder).iterdir()} == {n.name for n in made if n.parent == Path(folder)}


def test_what_is_missing_is_said_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_progress(pages: Pages) -> None:
    p: Protocol = pages.study.planners["llm"].protocol
    assert re.fullmatch(r"All \d+ planned runs have been published.", pages.progress(p))


@pytest.mark.parametrize("which", ["full", "empty"])
def test_long_tables_are_folded(which: str, report: str, empty: Pages) -> None:
    """On a phone each row is a card: forty of them are twenty screens."""
    page = re.sub(r"<details>.*?</details>", "", report if which == "full" else empty.report(), flags=re.S)
    rows = {re.search(r"<caption>(.*?)<", t)[1]: t.count("<tr>") for t in re.findall(r"<table>.*?</table>", page, re.S)}  # type: ignore[index]
    assert rows
    assert max(rows.values()) <= 30, rows
