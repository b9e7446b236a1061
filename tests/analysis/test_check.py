"""The parts of the browser check that need no browser; the check tries itself on a page of faults whenever it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from experiments.analysis.check import __main__ as check
from experiments.analysis.check.__main__ import View, event_findings, findings, link_findings

CLEAN = {
    "width": 360,
    "inner": 360,
    "scroll": 360,
    "overflow": [],
    "images": [],
    "figures": [],
    "twice": [],
    "links": [],
    "jumps": [],
    "nameless": [],
    "headless": [],
    "ids": ["here"],
    "faint": [],
    "tiny": [],
    "h1": 1,
    "lang": "en",
    "title": "A page",
}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text("")
    return path


def test_a_clean_page_has_no_findings(page: Path) -> None:
    assert findings(CLEAN, page, View(360)) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scroll": 400, "overflow": ["table"]}, "wider than its window, 400 px: table"),
        ({"inner": 980}, "wider than its window, 980 px: no element found"),
        ({"images": ["x.png"]}, "image without pixels: x.png"),
        ({"figures": ["svg"]}, "empty drawing"),
        ({"twice": ["a"]}, "id used twice: a"),
        ({"jumps": ["Deep"]}, "heading that skips a level: Deep"),
        ({"nameless": ["svg"]}, "picture without a name"),
        ({"headless": ["table"]}, "table without a caption"),
        ({"faint": list("abcdef")}, "contrast too low: a, b, c, d and 2 more"),
        ({"tiny": ["5 px"]}, "small text: 5 px"),
        ({"h1": 2}, "2 of level 1"),
        ({"lang": ""}, "without a language or a title"),
    ],
)
def test_what_is_found(page: Path, change: dict[str, Any], word: str) -> None:
    assert any(word in finding for finding in findings({**CLEAN, **change}, page, View(360)))


def test_small_text_is_no_fault_in_print(page: Path) -> None:
    assert findings({**CLEAN, "tiny": ["5 px"]}, page, View(718, media="print")) == []


def test_links(page: Path, tmp_path: Path) -> None:
    (tmp_path / "a record.json").write_text("{}")
    here = page.as_uri()
    good = [
        ("#here", f"{here}#here"),
        ("a%20record.json", (tmp_path / "a record.json").as_uri()),
        ("https://example.org", "https://example.org/"),
    ]
    assert link_findings(good, ["here"], page) == []
    bad = [
        ("#there", f"{here}#there"),
        ("none.json", (tmp_path / "none.json").as_uri()),
        ("javascript:x()", "javascript:x()"),
    ]
    found = link_findings(bad, ["here"], page)
    assert found[0] == "anchor #there leads nowhere"
    assert found[1] == "file none.json does not exist"
    assert "javascript" in found[2]


@pytest.mark.parametrize(
    ("method", "params", "word"),
    [
        ("Runtime.consoleAPICalled", {"type": "error", "args": [{"value": "oh"}]}, "console error: oh"),
        ("Runtime.consoleAPICalled", {"type": "log", "args": []}, None),
        ("Runtime.exceptionThrown", {"exceptionDetails": {"text": "Uncaught"}}, "exception: Uncaught"),
        ("Log.entryAdded", {"entry": {"level": "error", "text": "bad"}}, "log error: bad"),
        ("Log.entryAdded", {"entry": {"level": "info", "text": "fine"}}, None),
        ("Network.loadingFailed", {"type": "Image", "errorText": "gone"}, "failed to load: a Image: gone"),
        ("Network.requestWillBeSent", {"request": {"url": "http://a.b/c"}}, "asks the network: http://a.b/c"),
        ("Network.requestWillBeSent", {"request": {"url": "file:///a"}}, None),
        ("Network.requestWillBeSent", {"request": {"url": "data:,"}}, None),
        ("Page.loadEventFired", {}, None),
    ],
)
def test_events(method: str, params: dict[str, Any], word: str) -> None:
    assert event_findings([{"method": method, "params": params}]) == ([] if word is None else [word])


def test_without_a_browser_it_says_so(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(page.parent))
    monkeypatch.delenv("FADAM_BROWSER", raising=False)
    assert check.main([str(page)]) == check.NO_BROWSER_STATUS
    error = capsys.readouterr().err
    assert "no browser to check" in error
    assert "chromium" in error


def test_without_a_page_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(tmp_path / "none.html")]) == 2
    assert "is missing; make it with" in capsys.readouterr().err


def test_a_browser_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "google-chrome"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check.find_browser({}) == str(program)
    assert check.find_browser({"FADAM_BROWSER": str(program)}) == str(program)
    assert check.find_browser({"FADAM_BROWSER": "no-such-browser"}) is None


def test_a_browser_that_goes_away_is_an_error(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\necho no display >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("FADAM_BROWSER", str(program))
    fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert check.main([str(page)]) == 1
    assert "the browser went away: no display" in capfd.readouterr().err
    if fds is not None:
        assert len(os.listdir("/proc/self/fd")) == fds
