"""How long the rows of a bench will take, before the first of them: two small steps of the model, times what each will spend."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from ..cost import Estimate, Rows, measure, planned
from ..problem import DeadPopulation
from .plan import Cell
from .reference import scorer

#: Steps are made of more and more rows, up to a run's own, until one takes so many seconds: of a single row, of which more is the call than the
#: row, or of several.
ENOUGH, GROWTH = (1.0, 0.2), 8
#: How many times slower than thought a row's network calls can be, among other work.
SLOWED = 2.0


def spending(cell: Cell, model: Any) -> tuple[Rows, int]:
    """The rows of a cell, and how many of them are finished samples; none where it will fail to begin."""
    try:
        run = cell.task.prepare(model, scorer(cell.task.reward))
        return planned(run), run.problem.G * run.problem.K
    except (ValueError, TypeError):
        return Rows(0, 0, 0), 0


def seconds(todo: list[Cell], spent: dict[str, tuple[Rows, int]], model: Any, jobs: int = 1) -> dict[str, float]:
    """Seconds of each cell by its file, of a process of its own where there are several; nothing where a step cannot be made.

    Of the model, the reward and a step of the kernel: what a method does beside, and the reading of answers, is not in it.
    """
    costly = max(todo, key=lambda cell: (spent[cell.file][0].gradient > 0, spent[cell.file][0].network > 0))
    threads = torch.get_num_threads()
    if jobs > 1:
        torch.set_num_threads(1)
    try:
        found = _measured(costly, model)
    except (ValueError, TypeError, RuntimeError, DeadPopulation):
        # The row will say it.
        return {}
    finally:
        torch.set_num_threads(threads)
    return {file: replace(found, rows=rows, extra={}, finished=finished).seconds["total"] for file, (rows, finished) in spent.items()}


def after(rate: float, took: float, left: Iterable[float]) -> float:
    """Seconds of rows that were thought to take so long each, once one took `took`, `rate` times what was thought of it. Up to `SLOWED` that is a
    slower machine, and a share of every row; beyond it is what every row does beside the model, however few particles it has.
    """
    slower = min(rate, SLOWED)
    beside = took * (1 - slower / rate)
    return sum(slower * thought + beside for thought in left if thought)


def _measured(cell: Cell, model: Any) -> Estimate:
    """Two steps of as many rows as the run will have at a time, or as few as tell enough."""
    n = 1
    while True:
        run = replace(cell.task, batch_size=n).prepare(model, scorer(cell.task.reward))
        whole = min(cell.task.batch_size or run.problem.G * run.problem.K, run.problem.G * run.problem.K)
        found = measure(run)
        if n >= whole or n * sum(found.each.values()) > ENOUGH[n > 1]:
            return found
        n = min(whole, GROWTH * n)


def at_once(jobs: int) -> int:
    """How many rows are made at a time: more processes than cores wait for each other."""
    return max(1, min(jobs, os.cpu_count() or 1))
