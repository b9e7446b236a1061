"""Comparing optimizers on somebody's own task: `python -m experiments.study own <config>`; docs/own-task.md."""

from experiments.core.catalogue import Metric
from experiments.own.task import OwnTask

__all__ = ["Metric", "OwnTask"]
