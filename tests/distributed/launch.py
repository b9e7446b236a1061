"""Checks that run in several processes of one gloo group, each a test of its own in the process of pytest."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

Check = Callable[[Path], None]
LIMIT_S = 200
_PRELOAD = ["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint.state_dict"]


def launch(checks: Sequence[Check], processes: int, folder: Path) -> dict[str, str]:
    """Run the checks one after the other in `processes` processes, and return by name what failed, with tracebacks.

    Each check gets a folder that all processes see. Whatever hangs is ended.
    """
    # Children of a server that has imported torch once start at once, on busy machines too.
    multiprocessing.set_forkserver_preload(_PRELOAD)
    context = torch.multiprocessing.start_processes(
        _process, (tuple(checks), processes, folder), processes, join=False, daemon=True, start_method="forkserver"
    )
    end = time.monotonic() + LIMIT_S
    hung = ""
    try:
        while not context.join(timeout=1):
            if time.monotonic() > end:
                hung = f"not done after {LIMIT_S} seconds"
                break
    except Exception as error:
        hung = str(error)
    finally:
        for process in context.processes:
            process.kill()
    failed: dict[str, str] = {}
    for check in checks:
        reports = []
        for rank in range(processes):
            file = folder / f"{check.__name__}-{rank}.json"
            report = json.loads(file.read_text()) if file.exists() else hung or "did not run"
            if report:
                reports.append(f"process {rank}: {report}")
        if reports:
            failed[check.__name__] = "\n".join(reports)
    return failed


def _process(rank: int, checks: Sequence[Check], processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=processes,
        timeout=timedelta(seconds=90),
    )  # fmt: skip
    for check in checks:
        own = folder / check.__name__
        own.mkdir(exist_ok=True)
        try:
            check(own)
            report = ""
        except BaseException:  # a failed pytest.raises is no Exception
            report = traceback.format_exc()
        (folder / f"{check.__name__}-{rank}.json").write_text(json.dumps(report))
        if report:
            break  # the others may be waiting for this process
        dist.barrier()
    dist.destroy_process_group()
