"""Documents: cleaning, splitting, reading, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.core.errors import ConfigError, DataError
from experiments.llm.text import Files, Hub, Speeches, articles, clean_speech, role_of
from experiments.llm.tokenizer import BytePairs
from scripts.prepare_text import prepare

SHARES = {"val": 0.2, "test": 0.1, "train": 0.0}


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("We will. [Applause] And we", "We will. And we"),
        ("[Delivered in person before a joint session at 9:04 p.m.]\n\nMr. Speaker", "Mr. Speaker"),
        ("Thank you. [laughter]", "Thank you."),
        ("as of [1815-03-03] the [States] paid [In millions]", "as of [1815-03-03] the [States] paid [In millions]"),
        ("the [Rights; White House correction] of all", "the Rights of all"),
        ("so. [At this point, the President paused.] Then", "so. Then"),
        ("law [see APP Note] is", "law is"),
    ],
)
def test_stage_directions_go_and_the_text_stays(raw: str, clean: str) -> None:
    assert clean_speech(raw) == clean


def test_roles_follow_their_shares_and_the_text_alone() -> None:
    texts = [f"document {i}" for i in range(4000)]
    roles = [role_of(text, SHARES) for text in texts]
    assert roles == [role_of(text, SHARES) for text in texts]
    assert abs(roles.count("val") / 4000 - 0.2) < 0.03
    assert abs(roles.count("test") / 4000 - 0.1) < 0.02
    assert roles != [role_of(text, SHARES, seed=1) for text in texts]
    assert {role_of(text, {"val": 0.5, "test": 0.5}) for text in texts} == {"val", "test"}
    assert {role_of(text, {"train": 0.0}) for text in texts} == {"train"}


def test_no_speech_is_in_two_splits_and_every_era_is_in_all() -> None:
    source = Speeches(15, 4)
    parts = {role: list(source.documents(role)) for role in ("train", "val", "test")}
    every = [text for part in parts.values() for text in part]
    assert len(every) == len(set(every)) == 249
    assert [len(part) for part in parts.values()] == [219, 15, 15]
    assert not any("[Applause]" in text or "[Laughter]" in text for text in every)
    roles = source.roles()
    assert roles == Speeches(15, 4).roles() != Speeches(15, 5).roles()
    years = {role: {int(name[:4]) for name, r in roles.items() if r == role} for role in parts}
    assert sum(map(len, years.values())) == len(set.union(*years.values()))  # no year is in two
    for role in ("val", "test"):
        eras = [min((year - 1790) * 8 // (2026 - 1790), 7) for year in years[role]]  # of 29 or 30 years
        assert set(eras) == set(range(8))
        assert max(map(eras.count, range(8))) <= 3


def test_speeches_of_a_year_with_several_train() -> None:
    roles = Speeches(15, 4).roles()
    several = [name for name in roles if sum(other[:4] == name[:4] for other in roles) > 1]
    assert len(several) == 31
    assert {roles[name] for name in several} == {"train"}


def test_both_configs_hold_the_same_speeches_out(tmp_path: Path) -> None:
    fingerprints = []
    for data in ("llm_sotu", "llm_sotu_bytes"):
        module = prepare("llm_cpu", [f"data={data}", f"paths.data_dir={tmp_path}"])
        source = module.source
        assert isinstance(source, Speeches)
        assert source.roles() == Speeches(15, 4).roles()
        fingerprints.append({role: counts["sha256"] for role, counts in module.packed.splits.items()})
        if data == "llm_sotu":
            alone = BytePairs.train(source.documents("train"), 1024)
            assert module.tokenizer.digest == alone.digest  # trained on nothing else
    assert fingerprints[0] == fingerprints[1]


def test_wikitext_lines_become_articles() -> None:
    rows = ["", " = First = \n", "", " a \n", " = = Part = = \n", " b \n", "", " = Second = \n", " c \n"]
    found = list(articles(rows))
    assert [text.split("\n")[0].strip() for text in found] == ["= First =", "= Second ="]
    assert "= = Part = =" in found[0]
    assert "".join(found) == "".join(rows)


def write(folder: Path, kind: str, texts: list[str]) -> str:
    if kind == "txt":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    elif kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"body": texts}), folder / "a.parquet")
    return str(folder / f"*.{kind}")


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_local_files_are_read_whole_and_split_alike(tmp_path: Path, kind: str) -> None:
    texts = [f"line one of {i}\nline two: naïve — {i}\n" for i in range(30)]
    column = "text" if kind == "txt" else "body"
    source = Files(write(tmp_path, kind, texts), column=column, val_share=0.2, test_share=0.2)
    for role in ("train", "val", "test"):
        wanted = {text for text in texts if role_of(text, {"val": 0.2, "test": 0.2, "train": 0.0}) == role}
        assert set(source.documents(role)) == wanted != set()


@pytest.mark.parametrize("name", ["bad.txt", "bad.jsonl"])
def test_a_file_that_is_not_utf8_is_named(tmp_path: Path, name: str) -> None:
    good, bad = tmp_path / f"a{Path(name).suffix}", tmp_path / name
    good.write_bytes(b'{"text": "good"}\n')
    bad.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=rf"{name} is not UTF-8 text: .* in line 2"):
        list(Files(str(tmp_path / f"*{bad.suffix}"), val_share=0.0, test_share=0.0).documents("train"))


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches data\.source\.files="):
        list(Files(str(tmp_path / "*.txt")).documents("train"))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(DataError, match=r"must all end in the same one of \.txt, .* got \.csv, \.txt"):
        list(Files(str(tmp_path / "a.*")).documents("train"))
    (tmp_path / "b.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(
        DataError, match=r"row 1 of .*b\.jsonl has no column 'text'; data.source.column must be .* body"
    ):
        list(Files(str(tmp_path / "*.jsonl")).documents("train"))
    (tmp_path / "c.json").write_text('{"text": 7}\n')
    with pytest.raises(DataError, match=r"column 'text' in row 1 of .*c\.json holds int, not text"):
        list(Files(str(tmp_path / "*.json")).documents("train"))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"d\.parquet cannot be read as Parquet"):
        list(Files(str(tmp_path / "*.parquet")).documents("train"))


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"val_share must be at least 0 and less than 1, got 1\.5"):
        Files("x", val_share=1.5)
    with pytest.raises(ConfigError, match=r"eval_speeches must be a whole number of at least 1, got 0\.5"):
        Speeches(0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"eval_speeches must be at most 72, a third of .*, got 73"):
        Speeches(73).roles()
    with pytest.raises(ConfigError, match="leave nothing"):
        Files("x", val_share=0.6, test_share=0.6)
    with pytest.raises(ConfigError, match="group must be null or articles"):
        Files("x", group="lines")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="splits must name train, val, test"):
        Hub("a/b", None, {"train": "train"}, "x")
    with pytest.raises(ConfigError, match="cannot be streamed"):
        Speeches(15).stream("train")


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'allenai/c4' on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    source = Hub("allenai/c4", "en", {"train": "train", "val": "validation", "test": "validation"}, "c4")
    with pytest.raises(DataError, match=r"allenai/c4 cannot be read from the .* hub \(Conn.*data/source=files") as e:
        list(source.documents("val"))
    assert "long story" not in str(e.value)


def test_hub_splits_are_divided_only_where_roles_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = {"train": [f"t{i}" for i in range(50)], "validation": [f"v{i}" for i in range(50)]}
    asked: list[tuple[str, str | None, str]] = []

    def load(path: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> object:
        asked.append((path, config, split))
        assert streaming
        return datasets.Dataset.from_dict({"text": rows[split]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Hub("allenai/c4", "en", {"train": "train", "val": "validation", "test": "validation"}, "c4")
    found = {role: list(source.documents(role)) for role in ("train", "val", "test")}
    assert found["train"] == rows["train"]
    assert sorted(found["val"] + found["test"]) == sorted(rows["validation"])
    assert found["val"]
    assert found["test"]
    assert asked[0] == ("allenai/c4", "en", "train")
