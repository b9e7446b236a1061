"""The sampler of batches: epochs, resuming, several processes."""

from __future__ import annotations

import pytest

from experiments.core.data import StepBatchSampler
from experiments.core.errors import ConfigError, DataError


def epoch_batches(epoch: int) -> list[list[int]]:
    return [[10 * epoch + k, 10 * epoch + k + 5] for k in range(5)]


def test_sampler_runs_through_epochs_and_resumes_anywhere() -> None:
    whole = list(StepBatchSampler(epoch_batches, steps=12))
    assert whole == [*epoch_batches(0), *epoch_batches(1), *epoch_batches(2)[:2]]
    for start in range(13):
        assert list(StepBatchSampler(epoch_batches, steps=12, start=start)) == whole[start:]


def test_sampler_shares_an_epoch_among_processes_without_overlap() -> None:
    parts = [list(StepBatchSampler(epoch_batches, steps=4, rank=rank, world_size=2)) for rank in range(2)]
    assert parts[0] == [epoch_batches(0)[0], epoch_batches(0)[2], epoch_batches(1)[0], epoch_batches(1)[2]]
    assert parts[1] == [epoch_batches(0)[1], epoch_batches(0)[3], epoch_batches(1)[1], epoch_batches(1)[3]]


@pytest.mark.parametrize(
    ("options", "named"), [({"steps": 0}, "steps"), ({"start": 9}, "start"), ({"rank": 1}, "rank")]
)
def test_sampler_options(options: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StepBatchSampler(epoch_batches, **({"steps": 8} | options))


def test_sampler_with_too_few_batches() -> None:
    with pytest.raises(DataError, match="fewer than the 6 processes"):
        list(StepBatchSampler(epoch_batches, steps=1, rank=0, world_size=6))
