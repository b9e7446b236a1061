"""What the trained models make, for the report: pictures, transcripts and texts of the two optimizers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.analysis.pictures import rows_of
from experiments.analysis.records import SCALES, AnalysisError, Record, by_arm, evaluation, sections, select
from experiments.analysis.report_parts import Links, data_uri, word_differences
from experiments.analysis.study import OPPONENT
from experiments.analysis.tasks import arm_label

TRANSCRIPTS, CONTINUATIONS = 6, 2
TILES = 8  # of a run's pictures, as many as a phone shows large enough
# The study first; then the longer runs.
_SCALES = tuple(scale for scale in SCALES if scale != "smoke")
_ARMS = ("adamw", OPPONENT, "adamw_update_clip", "fadam")


@dataclass(frozen=True)
class Strip:
    label: str
    source: str
    href: str


@dataclass(frozen=True)
class Pictures:
    title: str
    strips: tuple[Strip, ...]
    tiles: int


@dataclass(frozen=True)
class Sample:
    title: str
    given: str
    made: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]


def _shown_scale(records: Sequence[Record], task: str) -> tuple[str, dict[str, Record]] | None:
    """The scale, and a run of FAdam and of its opponent with the lowest seed that both have."""
    for scale in _SCALES:
        arms = by_arm(
            r
            for r in evaluation(records)
            if (r.task, r.scale) == (task, scale) and r.arm in (OPPONENT, "fadam") and r.samples
        )
        if "fadam" not in arms or len(arms) < 2:
            continue
        shared = set.intersection(*({r.seed for r in runs} for runs in arms.values()))
        if shared:
            return scale, {arm: next(r for r in runs if r.seed == min(shared)) for arm, runs in arms.items()}
    return None


def picture_views(records: Sequence[Record], links: Links) -> tuple[list[Pictures], list[str]]:
    """Originals and reconstructions, one block a likelihood, of the study or else of the longer runs."""
    views, failures = [], []
    here = [r for r in evaluation(records) if r.task == "vqvae" and r.artifacts]
    here = [r for r in here if r.arm in _ARMS]
    for variant in dict.fromkeys(variant for _, variant in sections(here)):
        for scale in _SCALES:
            runs = select(here, scale=scale, variant=variant)
            if "fadam" not in by_arm(runs) or len(by_arm(runs)) < 2:
                continue
            try:
                found = rows_of(runs)
            except AnalysisError as error:
                failures.append(str(error).replace(f"{runs[0].root}/", ""))
                continue
            if found is None:
                continue
            seed, rows, grid = found
            labels = {arm_label(r.arm): r for r in runs if r.seed == seed}
            tiles = min(TILES, grid.columns)
            strips = tuple(
                Strip(
                    label,
                    data_uri(strip.crop((0, 0, tiles * grid.tile, grid.tile))),
                    links.record(labels[label]) if label in labels else "",
                )
                for label, strip in rows
            )
            title = f"{variant.replace('_', ' ')}, scale {scale}, seed {seed}"
            views.append(Pictures(title, strips, tiles))
            break
    return views, failures


def transcript_views(records: Sequence[Record], links: Links) -> tuple[str, list[Sample]]:
    found = _shown_scale(records, "asr")
    if found is None:
        return "", []
    scale, runs = found
    by_split: dict[str, list[Mapping[str, Any]]] = {}
    first = next(iter(runs.values()))
    for s in first.samples:
        by_split.setdefault(str(s.get("split", "")), []).append(s)
    # A few of every split rather than the first split alone.
    ordered = [s for row in zip(*(v[:TRANSCRIPTS] for v in by_split.values()), strict=False) for s in row]
    samples = []
    for s in ordered[:TRANSCRIPTS]:
        key, reference = (s.get("split"), s.get("id")), str(s.get("reference", ""))
        made = []
        for arm, r in runs.items():
            mine = next((t for t in r.samples if (t.get("split"), t.get("id")) == key), None)
            if mine is not None:
                made.append(
                    (
                        arm_label(arm),
                        links.record(r),
                        tuple(word_differences(reference, str(mine.get("hypothesis", "")))),
                    )
                )
        samples.append(Sample(f"{key[0]}, {key[1]}", reference, tuple(made)))
    return f"Scale {scale}, seed {first.seed}.", samples


def language_views(records: Sequence[Record], links: Links) -> tuple[str, list[Sample]]:
    found = _shown_scale(records, "llm")
    if found is None:
        return "", []
    scale, runs = found
    first = next(iter(runs.values()))
    samples = []
    for s in first.samples[:CONTINUATIONS]:
        made = []
        for arm, r in runs.items():
            mine = next((t for t in r.samples if t.get("id") == s.get("id")), None)
            if mine is not None:
                made.append((arm_label(arm), links.record(r), (("same", str(mine.get("hypothesis", "")).strip()),)))
        samples.append(Sample(str(s.get("id", "")).replace("-", " "), str(s.get("prompt", "")).strip(), tuple(made)))
    return f"Scale {scale}, seed {first.seed}.", samples
