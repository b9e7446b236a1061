"""Look at the report with a real browser: nothing may fail to load, overflow, be illegible or lead nowhere.

    python -m experiments.analysis.check [results/report.html]

Drives a headless Chromium or Chrome found on PATH (or named by FADAM_BROWSER) over its DevTools pipe, at the widths of
a phone, a tablet and a desk, light and dark, and in print. Before it judges the page it looks at a page with every
fault that it knows, so that a check that has gone blind fails. Leaves with status 1 where something is wrong and with
status 3 where there is no browser. It is a command of its own, for machines that have one: the ordinary test command
needs no browser, and checks of the same page what can be read from its source (tests/analysis/test_pages.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
WIDTHS = (360, 768, 1280)
HEIGHT = 900
PRINT_WIDTH = 718  # pixels of CSS on A4 between margins of 10 mm
TIMEOUT = 120.0  # seconds for one answer of the browser
NO_BROWSER_STATUS = 3
# Text this small in CSS pixels is not read on a phone.
LEAST_TEXT = 8.5

# Runs in the page; returns what was found, as plain data.
_MEASURE = (Path(__file__).parent / "report.js").read_text(encoding="utf-8").replace("LEAST_TEXT", str(LEAST_TEXT))
# Shows what is folded away, and loads what waits for being seen.
_UNFOLD = """
(async () => {
  for (const d of document.querySelectorAll('details')) d.open = true;
  for (const i of document.images) { i.loading = 'eager'; try { await i.decode(); } catch (e) { /* measured later */ } }
  await document.fonts.ready;
})()
"""
# One fault of every kind, by words of its finding.
FAULTS = {
    "console error": "<script>console.error('a console error')</script>",
    "exception": "<script>undefined.call()</script>",
    "failed to load": "<img alt='none' src='no-such-picture.png'>",
    "asks the network": "<img alt='far' src='http://127.0.0.1:9/far.png'>",
    "image without pixels": "<img alt='broken' src='data:image/png;base64,AAAA'>",
    "wider than": "<div style='width: 3000px'>wide</div>",
    "leads nowhere": "<a href='#nowhere'>nowhere</a>",
    "does not exist": "<a href='no-such-record.json'>a record</a>",
    "id used twice": "<p id='one'>a</p><p id='one'>b</p>",
    "skips a level": "<h4>too deep</h4>",
    "without a name": "<svg width='9' height='9'></svg>",
    "without a caption": "<table><tr><th>no scope</th></tr></table>",
    "contrast too low": "<p style='color: #999; background: #aaa'>faint</p>",
    "small text": "<p style='font-size: 5px'>tiny</p>",
    "empty drawing": "<svg aria-label='nothing' width='0' height='0'></svg>",
}


class BrowserError(Exception):
    """The browser did not do as it was asked; the message is one sentence."""


def find_browser(environment: Mapping[str, str] = os.environ) -> str | None:
    """Path of a Chromium or Chrome, None where there is none."""
    named = environment.get("FADAM_BROWSER")
    if named:
        return shutil.which(named)
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


class Browser:
    """A headless browser, spoken to over its DevTools pipe: messages of JSON, each ended by a zero byte."""

    _session: str | None = None

    def __init__(self, program: str, folder: Path) -> None:
        flags = [
            "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "--disable-gpu",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars",
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root otherwise
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def connect() -> None:  # in the child: the browser reads from 3 and writes to 4
            high = [os.dup(fd) for fd in (theirs_in, theirs_out)]
            while min(high) < 5:
                high = [os.dup(fd) for fd in high]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._log = (folder / "browser.log").open("wb+")
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        words = [program, *flags, "about:blank"]
        self._process = subprocess.Popen(words, pass_fds=(3, 4), preexec_fn=connect, **streams)
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Open an empty page and listen to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        with contextlib.suppress(BrowserError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for fd in (self._in, self._out):
            os.close(fd)
        self._log.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError(f"the browser gave no answer in {TIMEOUT:.0f} s")
            data = os.read(self._in, 1 << 20)
            if not data:
                self._log.seek(0)
                said = self._log.read().decode(errors="replace").strip().splitlines()
                raise BrowserError(f"the browser went away: {said[-1] if said else 'without a word'}")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        content: dict[str, Any] = json.loads(message)
        return content

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for one thing and wait for the answer; events that come first are kept.

        Raises:
            BrowserError: no answer, or a refusal.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        with contextlib.suppress(BrokenPipeError):  # why it went away is learnt when its answer is read
            while data:
                data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    def wait_for(self, event: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not any(e["method"] == event for e in self.events):
            message = self._receive(deadline)
            if "method" in message:
                self.events.append(message)

    def evaluate(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"a script of the check failed: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def open(self, url: str, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Load a page anew at a width; the events of earlier pages are forgotten."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        for address in ("about:blank", url):
            self.events.clear()
            answer = self.call("Page.navigate", url=address)
            if answer.get("errorText"):
                raise BrowserError(f"{address} cannot be opened: {answer['errorText']}")
            self.wait_for("Page.loadEventFired")


@contextlib.contextmanager
def running(program: str) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="check-report-", ignore_cleanup_errors=True) as folder:
        browser = Browser(program, Path(folder))
        try:
            browser.attach()
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class View:
    """One way of looking at the page."""

    width: int
    scheme: str = "light"
    media: str = "screen"

    def __str__(self) -> str:
        return "print" if self.media == "print" else f"{self.width} px, {self.scheme}"


VIEWS = (
    *(View(width, scheme) for width in WIDTHS for scheme in ("light", "dark")),
    View(PRINT_WIDTH, media="print"),
)


def event_findings(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the browser complained of while it loaded the page."""
    found = []
    for event in events:
        p = event["params"]
        match event["method"]:
            case "Runtime.consoleAPICalled" if p["type"] in ("error", "warning", "assert"):
                words = " ".join(str(a.get("value", a.get("description", ""))) for a in p["args"])
                found.append(f"console {p['type']}: {words}")
            case "Runtime.exceptionThrown":
                details = p["exceptionDetails"]
                found.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
            case "Log.entryAdded" if p["entry"]["level"] in ("error", "warning"):
                found.append(f"log {p['entry']['level']}: {p['entry']['text']} {p['entry'].get('url', '')}".rstrip())
            case "Network.loadingFailed":
                found.append(f"failed to load: a {p.get('type', 'file')}: {p['errorText']}")
            case "Network.requestWillBeSent" if urlsplit(p["request"]["url"]).scheme not in ("file", "data", "about"):
                found.append(f"asks the network: {p['request']['url']}")
            case _:
                pass
    return found


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def link_findings(links: Sequence[Sequence[str]], ids: Sequence[str], page: Path) -> list[str]:
    """Links, as (written, resolved), that lead nowhere. Links to the network are not followed."""
    known = {*ids, "", "top"}
    found = []
    for written, resolved in dict.fromkeys((a, b) for a, b in links):
        parts = urlsplit(resolved)
        if parts.scheme in ("http", "https", "mailto"):
            continue
        if parts.scheme != "file":
            found.append(f"file: {written[:80]} is a link of kind {parts.scheme!r}")
            continue
        target = Path(unquote(parts.path))
        if target == page:
            if unquote(parts.fragment) not in known:
                found.append(f"anchor {written} leads nowhere")
        elif not target.exists():
            found.append(f"file {written} does not exist")
    return found


def findings(measured: Mapping[str, Any], page: Path, view: View) -> list[str]:
    """What is wrong with the page as it was measured, one sentence a finding."""
    found = []
    if measured["scroll"] > view.width or measured["inner"] > view.width:
        wide = max(measured["scroll"], measured["inner"])
        found.append(f"wider than its window, {wide} px: {_few(measured['overflow']) or 'no element found'}")
    for key, words in (
        ("images", "image without pixels"),
        ("figures", "empty drawing"),
        ("twice", "id used twice"),
        ("jumps", "heading that skips a level"),
        ("nameless", "picture without a name for who cannot see it"),
        ("headless", "table without a caption, or with a header without a scope"),
        ("faint", "contrast too low"),
        ("tiny", "small text"),
    ):
        if measured[key] and not (key == "tiny" and view.media == "print"):
            found.append(f"{words}: {_few(measured[key])}")
    if measured["h1"] != 1:
        found.append(f"heading: {measured['h1']} of level 1 instead of one")
    if not measured["lang"] or not measured["title"]:
        found.append("page without a language or a title")
    return found + link_findings(measured["links"], measured["ids"], page)


def look(browser: Browser, page: Path, view: View) -> list[str]:
    """All findings of one view of the page, with everything unfolded."""
    browser.open(page.as_uri(), view.width, view.scheme, view.media)
    browser.evaluate(_UNFOLD)
    measured = browser.evaluate(_MEASURE)
    return [*event_findings(browser.events), *findings(measured, page, view)]


def blind_spots(browser: Browser, folder: Path) -> list[str]:
    """Faults of a page made to have them all that the check does not see."""
    page = folder / "faults.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Faults</title><body><h1>Faults</h1>'
        + "".join(FAULTS.values()),
        encoding="utf-8",
    )
    seen = look(browser, page, View(360))
    return [kind for kind in FAULTS if not any(kind in finding for finding in seen)]


def check(program: str, page: Path) -> list[str]:
    """Everything that is wrong with `page`; the views that show a finding are named.

    Raises:
        BrowserError: the browser failed, or the check does not see every fault of the page of faults.
    """
    page = page.resolve()
    found: dict[str, list[str]] = {}
    with running(program) as browser:
        with tempfile.TemporaryDirectory() as folder:
            blind = blind_spots(browser, Path(folder).resolve())
        if blind:
            raise BrowserError(f"the check has gone blind to: {', '.join(blind)}")
        for view in VIEWS:
            for finding in look(browser, page, view):
                found.setdefault(finding, []).append(str(view))
    return [f"{finding} ({'; '.join(dict.fromkeys(views))})" for finding, views in found.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("page", nargs="?", default="results/report.html", help="default: results/report.html")
    options = parser.parse_args(argv)
    page = Path(options.page)
    if not page.is_file():
        print(f"error: {page} is missing; make it with: python -m experiments.analysis report", file=sys.stderr)
        return 2
    program = find_browser()
    if program is None:
        searched = f"none of {', '.join(BROWSERS)} is on PATH, and FADAM_BROWSER names none"
        print(f"error: no browser to check {page} with: {searched}", file=sys.stderr)
        return NO_BROWSER_STATUS
    try:
        problems = check(program, page)
    except (BrowserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"{page}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{page}: nothing wrong in {len(VIEWS)} views ({'; '.join(map(str, VIEWS))})")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
