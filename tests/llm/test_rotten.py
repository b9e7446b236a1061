"""Rotten text: each case is read with a stated result, counted under a name, or refused naming the file."""

from __future__ import annotations

import errno
import glob
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from experiments.core.errors import DataError
from experiments.llm import packing, tokenizer
from experiments.llm.data import PackedText
from experiments.llm.local import matching
from experiments.llm.text import Files
from tests.conftest import ROOT

GOOD = [f"some words of document {number}" for number in range(4)]

# A case writes files into an empty folder. What comes out: the documents that are read, empty ones too, and the kinds
# of oddities; or a pattern that the error's message matches.
Write = Callable[[Path], object]


def jsonl(*rows: Any, name: str = "a.jsonl", end: str = "\n") -> Write:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return lambda folder: (folder / name).write_bytes("".join(line + end for line in lines).encode())


def raw(name: str, content: bytes) -> Write:
    return lambda folder: (folder / name).write_bytes(content)


def table(columns: dict[str, Any], name: str = "a.parquet", schema: Any = None) -> Write:
    return lambda folder: pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), folder / name)


def link(name: str, to: str) -> Write:
    return lambda folder: (folder / name).symlink_to(to)


def both(*writes: Write) -> Write:
    def write(folder: Path) -> None:
        for one in writes:
            one(folder)

    return write


def cut(write: Write, name: str, share: float) -> Write:
    def short(folder: Path) -> None:
        write(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return short


ROWS = [{"text": text} for text in GOOD]
PLAIN = jsonl(*ROWS, name="b.jsonl")
UTF16 = "some words".encode("utf-16")

READ: dict[str, tuple[Write, list[str], dict[str, int]]] = {
    "null": (jsonl({"text": None}, *ROWS), ["", *GOOD], {}),
    "first-shard-of-nulls": (both(jsonl(*[{"text": None}] * 50), PLAIN), [""] * 50 + GOOD, {}),
    "last-shard-of-nulls": (both(jsonl(*ROWS), jsonl({"text": None}, name="b.jsonl")), [*GOOD, ""], {}),
    "empty-text": (jsonl({"text": ""}, *ROWS), ["", *GOOD], {}),
    "first-file-empty": (both(raw("a.jsonl", b""), PLAIN), GOOD, {"empty-file": 1}),
    "last-file-empty": (both(PLAIN, raw("c.jsonl", b"")), GOOD, {"empty-file": 1}),
    "all-files-empty": (both(raw("a.jsonl", b""), raw("b.jsonl", b"")), [], {"empty-file": 2}),
    "blank-lines": (jsonl("", *ROWS, "", "  \t"), GOOD, {}),
    "blank-lines-alone": (raw("a.jsonl", b"\n\n \n"), [], {}),
    "no-last-line-end": (raw("a.jsonl", b'{"text": "one"}\n{"text": "two"}'), ["one", "two"], {}),
    "windows-line-ends": (jsonl(*ROWS, end="\r\n"), GOOD, {}),
    "byte-order-mark": (raw("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n'), ["one"], {}),
    "another-column-null-in-the-first-shard": (
        both(jsonl(*[{**row, "meta": None} for row in ROWS]), jsonl({"text": "x", "meta": {"a": 1}}, name="b.jsonl")),
        [*GOOD, "x"],
        {},
    ),
    "another-column-of-many-types": (jsonl(*[{"text": "x", "id": i} for i in (1, "1", [1], None)]), ["x"] * 4, {}),
    "columns-in-another-order": (jsonl({"a": 1, "text": "x"}, {"text": "y", "a": 1}), ["x", "y"], {}),
    "a-key-twice": (jsonl('{"text": "first", "text": "last"}'), ["last"], {}),
    "line-separators-in-a-text": (jsonl({"text": "a\u2028b\u2029c\x85d\x0be"}), ["a\u2028b\u2029c\x85d\x0be"], {}),
    "line-separators-unescaped": (raw("a.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode()), ["a\u2028b\x85c"], {}),
    "escaped-line-ends": (jsonl({"text": "a\nb\r\nc"}), ["a\nb\r\nc"], {}),
    "nul-bytes": (jsonl({"text": "a\x00b"}), ["a\x00b"], {}),
    "surrogate-pair-escaped": (raw("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n'), ["\U0001f600"], {}),
    "an-end-token-spelt-out": (jsonl({"text": "<|e<|end|>nd|>"}), ["<|e<|end|>nd|>"], {}),
    "one-long-line": (jsonl({"text": "word " * 200_000}), ["word " * 200_000], {}),
    "json-array": (raw("a.json", json.dumps(ROWS).encode()), GOOD, {}),
    "json-array-over-lines": (raw("a.json", json.dumps(ROWS, indent=1).encode()), GOOD, {}),
    "json-array-empty": (raw("a.json", b"[]"), [], {}),
    "json-array-with-mark": (raw("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()), GOOD, {}),
    "json-lines-called-json": (jsonl(*ROWS, name="a.json"), GOOD, {}),
    "the-same-file-linked": (both(PLAIN, link("a.jsonl", "b.jsonl")), GOOD, {"linked-again": 1}),
    "folders-linked-in-a-circle": (both(PLAIN, link("loop", ".")), GOOD, {}),
    "two-circles": (both(PLAIN, link("a", "."), link("b", ".")), GOOD, {}),
    "a-folder-linked": (
        lambda folder: (
            (folder / "real").mkdir(), PLAIN(folder / "real"), (folder / "again").symlink_to("real"),
        ),
        GOOD, {},
    ),
    "a-hidden-file": (both(PLAIN, raw("._b.jsonl", b"\x00\x05")), GOOD, {}),
    "a-folder-called-like-a-file": (both(PLAIN, lambda folder: (folder / "x.jsonl").mkdir()), GOOD, {}),
    "text-empty": (both(raw("a.txt", b""), raw("b.txt", b"x")), ["", "x"], {"empty-file": 1}),
    "text-with-mark": (raw("a.txt", b"\xef\xbb\xbfone"), ["one"], {}),
    "text-line-ends-stay": (raw("a.txt", b"a\r\nb\rc\n"), ["a\r\nb\rc\n"], {}),
    "text-blank": (raw("a.txt", b" \n\t\n"), [" \n\t\n"], {}),
    "parquet-nulls": (table({"text": pyarrow.array([None, "x"])}), ["", "x"], {}),
    "parquet-first-shard-of-nulls": (
        both(table({"text": pyarrow.nulls(2)}), table({"text": ["x"]}, name="b.parquet")), ["", "", "x"], {},
    ),
    "parquet-without-rows": (table({"text": pyarrow.array([], pyarrow.string())}), [], {}),
    "parquet-long-strings": (table({"text": pyarrow.array(["x"], pyarrow.large_string())}), ["x"], {}),
    "parquet-dictionary": (table({"text": pyarrow.array(["x", "y", "x"]).dictionary_encode()}), ["x", "y", "x"], {}),
    "parquet-other-columns-differ": (
        both(table({"text": ["x"], "a": [1]}), table({"a": ["1"], "text": ["y"]}, name="b.parquet")), ["x", "y"], {},
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[Write, str]] = {
    "nothing-there": (lambda folder: None, r"no file matches data\.source\.files=.*/\*\*/\*\.\*"),
    "broken-link": (both(PLAIN, link("a.jsonl", "gone.jsonl")), r"a\.jsonl is a link to a file that is not there"),
    "link-to-itself": (both(PLAIN, link("a.jsonl", "a.jsonl")), r"a\.jsonl is a link to a file that is not there"),
    "a-pipe": (both(PLAIN, lambda folder: os.mkfifo(folder / "a.jsonl")), r"a\.jsonl is no regular file"),
    "mixed-formats": (both(PLAIN, raw("a.txt", b"x")), r"must all end in the same one of .* got \.jsonl, \.txt"),
    "unknown-format": (raw("a.jsonl.gz", b"\x1f\x8b"), r"must all end in the same one of .* got \.gz"),
    "not-json": (jsonl(*ROWS, "words"), r"line 5 of .*a\.jsonl is not JSON"),
    "line-cut-off": (cut(jsonl(*ROWS), "a.jsonl", 0.9), r"line 4 of .*a\.jsonl is not JSON"),
    "two-objects-in-a-line": (jsonl('{"text": "a"} {"text": "b"}'), r"line 1 of .*a\.jsonl is not JSON"),
    "old-mac-line-ends": (jsonl(*ROWS, end="\r"), r"line 1 of .*a\.jsonl is not JSON"),
    "an-object-over-lines": (raw("a.json", b'{\n"text": "a"\n}\n'), r"line 1 of .*a\.json is not JSON"),
    "an-array-cut-off": (cut(raw("a.json", json.dumps(ROWS).encode()), "a.json", 0.7), r"a\.json is not JSON"),
    "a-list": (jsonl(["text"]), r"row 1 of .*a\.jsonl is list, not an object with the text under 'text'"),
    "a-string": (jsonl('"text"'), r"row 1 of .*a\.jsonl is str, not an object"),
    "null-as-row": (jsonl(*ROWS, "null"), r"row 5 of .*a\.jsonl is null, not an object"),
    "an-array-of-strings": (raw("a.json", b'["a", "b"]'), r"row 1 of .*a\.json is str, not an object"),
    "nested-too-deeply": (jsonl("[" * 200_000), r"line 1 of .*a\.jsonl is (nested too deeply|not JSON)"),
    "a-number-too-long": (jsonl('{"text": "x", "n": ' + "9" * 5000 + "}"), r"line 1 of .*a\.jsonl is not JSON"),
    "a-tab-unescaped": (jsonl('{"text": "a\tb"}'), r"line 1 of .*a\.jsonl is not JSON: Invalid control"),
    "no-such-column": (jsonl({"body": "x", "id": 1}), r"row 1 of .*a\.jsonl has no column 'text'; .* one of body, id"),
    "a-row-without-the-column": (jsonl(*ROWS, {"body": "x"}), r"row 5 of .*a\.jsonl has no column 'text'"),
    "an-empty-object": (jsonl({}), r"row 1 of .*a\.jsonl has no column 'text'; .* none: it has no columns"),
    "a-number-as-text": (jsonl(*ROWS, {"text": 7}), r"column 'text' in row 5 of .*a\.jsonl holds int, not text"),
    "a-list-as-text": (jsonl({"text": ["a"]}), r"column 'text' in row 1 of .*a\.jsonl holds list, not text"),
    "half-a-character": (raw("a.jsonl", b'{"text": "a\\ud83d"}\n'), r"in row 1 of .*a\.jsonl holds half a character"),
    "latin-1": (raw("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n'), r"a\.jsonl is not UTF-8 text: .* in line 2"),
    "utf-16": (raw("a.jsonl", UTF16), r"a\.jsonl is not UTF-8 text: .* in line 1, byte 0"),
    "a-character-cut-off": (raw("a.jsonl", b'{"text": "x"}\n{"text": "\xe2\x82'), r"a\.jsonl is not UTF-8 .* line 2"),
    "compressed-without-a-word": (raw("a.jsonl", b"\x1f\x8b\x08\x00"), r"a\.jsonl is not UTF-8 text"),
    "text-latin-1": (raw("a.txt", b"fine\ncaf\xe9"), r"a\.txt is not UTF-8 text: .* in line 2, byte 3 of it"),
    "text-utf-16": (raw("a.txt", UTF16), r"a\.txt is not UTF-8 text"),
    "parquet-empty": (raw("a.parquet", b""), r"a\.parquet cannot be read as Parquet"),
    "parquet-words": (raw("a.parquet", b"PAR1 this is none"), r"a\.parquet cannot be read as Parquet"),
    "parquet-cut-off": (cut(table({"text": GOOD}), "a.parquet", 0.8), r"a\.parquet cannot be read as Parquet"),
    "parquet-no-such-column": (table({"body": ["x"]}), r"a\.parquet has no column 'text'; .* must be one of body"),
    "parquet-numbers": (table({"text": [1, 2]}), r"column 'text' in row 1 of .*a\.parquet holds int, not text"),
    "parquet-bytes": (table({"text": [b"x"]}), r"column 'text' in row 1 of .*a\.parquet holds bytes, not text"),
    "parquet-lists": (table({"text": [["x"]]}), r"column 'text' in row 1 of .*a\.parquet holds list, not text"),
    "parquet-second-shard-bad": (
        both(table({"text": ["x"]}), raw("b.parquet", b"PAR1")), r"b\.parquet cannot be read as Parquet",
    ),
}  # fmt: skip


def source(folder: Path) -> Files:
    return Files(f"{folder}/**/*.*", val_share=0.0, test_share=0.0)


@pytest.mark.parametrize("case", READ)
def test_rotten_text_that_is_read(case: str, tmp_path: Path) -> None:
    write, documents, problems = READ[case]
    write(tmp_path)
    files = source(tmp_path)
    assert list(files.documents("train")) == documents
    assert files.problems == problems


@pytest.mark.parametrize("case", REFUSED)
def test_rotten_text_that_is_refused_with_the_files_name(case: str, tmp_path: Path) -> None:
    write, message = REFUSED[case]
    write(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        list(source(tmp_path).documents("train"))
    assert "\n" not in str(error.value)


def test_oddities_are_in_the_runs_record(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    jsonl(*[{"text": f"{text} {n}"} for text in GOOD for n in range(9)], {"text": None}, {"text": ""})(folder)
    raw("b.jsonl", b"")(folder)
    files = Files(f"{folder}/*.jsonl", val_share=0.2, test_share=0.2)
    spec = {"kind": "bytes", "vocab_size": tokenizer.Bytes.vocab_size}
    data = PackedText(files, spec, length=4, batch_size=1, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup("fit")
    assert data.problems == {"empty-document": 2, "empty-file": 1}


def test_articles_of_rows_without_text_are_read(tmp_path: Path) -> None:
    jsonl({"text": " = One = \n"}, {"text": None}, {"text": " a \n"})(tmp_path)
    files = Files(f"{tmp_path}/*.jsonl", val_share=0.0, test_share=0.0, group="articles")
    assert list(files.documents("train")) == [" = One = \n a \n"]


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jsonl",
        "**/*.jsonl",
        "one/**/*.jsonl",
        "**/two/*.jsonl",
        "*/**/b.*",
        "**/o*/**/*.jsonl",
        "one/two/b.jsonl",
        "**",
    ],
)
def test_patterns_match_what_those_of_the_shell_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    for name in (
        "a.jsonl",
        "one/a.jsonl",
        "one/two/b.jsonl",
        "one/two/three/b.jsonl",
        ".hidden/a.jsonl",
        "one/.a.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for root in (str(tmp_path), ""):
        monkeypatch.chdir(tmp_path)
        wanted = {Path(p) for p in glob.glob(os.path.join(root, pattern), recursive=True) if os.path.isfile(p)}
        assert {p for p in matching(os.path.join(root, pattern)) if p.is_file()} == wanted


def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    PLAIN(tmp_path)
    spec = {"kind": "bytes", "vocab_size": tokenizer.Bytes.vocab_size}
    data = PackedText(source(tmp_path), spec, length=4, batch_size=1, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "_write", full)
    with pytest.raises(
        DataError, match=r"cache cannot be written \(No space left on device\): move it with FADAM_DATA"
    ):
        data.prepare_data()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("prepare_text", ["--experiment", "llm_cpu", "data=llm_files", "data.source.files={folder}/*.jsonl"]),
        ("prepare_text", ["--experiment", "no_such_experiment"]),
        ("prepare_speech", ["--out", "{folder}/file/speech", "--no-human"]),
    ],
)
def test_scripts_leave_with_status_2_and_a_sentence(tmp_path: Path, script: str, words: list[str]) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", f"scripts.{script}", *(word.format(folder=tmp_path) for word in words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
