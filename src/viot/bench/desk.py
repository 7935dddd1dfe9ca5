"""Where rows are made: a model, those who read its answers, and what these are held against."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..console import complain
from ..population import CLOCKS, write_text
from ..problem import SteeringWarning
from .plan import Bench, Cell
from .reference import References, scorer
from .samples import Kept


@dataclass
class Desk:
    """What a process makes rows with."""

    model: Any
    judges: dict[str, Callable]
    references: References | None = None

    @classmethod
    def of(cls, bench: Bench, device: str | None) -> Desk:
        return cls(bench.plain.load(device), bench.reading.ready())


def make_row(bench: Bench, cell: Cell, desk: Desk) -> float:
    """Make a row and write it; returns the seconds that it took. A method that cannot do the task has a row that says why."""
    config = bench.config(cell, desk.model)
    row: dict[str, Any] = {
        "viot": __version__,
        "digest": hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8).hexdigest(),
        "task": bench.name,
        "method": cell.method,
        "budget": cell.nfe,
        "seed": cell.seed,
    }
    # Outside of what a method may fail at: a target that cannot be told is no fault of its.
    against = None if desk.references is None else desk.references.against(cell.task.reward, float(config["lam"]))
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # The table has the effective sample sizes.
            warnings.simplefilter("ignore", SteeringWarning)
            population = bench.reading.watched(cell.task.prepare(desk.model, scorer(cell.task.reward))).finish(progress=False)
    except (ValueError, TypeError, RuntimeError) as error:
        row["failed"] = " ".join(str(error).split()) or type(error).__name__
        complain(f"note: {cell.method} at {cell.nfe} rows: {row['failed']}")
    else:
        end, g = time.perf_counter(), population.shape[0]
        row["metrics"] = bench.reading(population, desk.model, desk.judges, against)
        if curves := bench.reading.curves(population):
            row["curves"] = curves
        row |= {name: getattr(population, name) // g for name in ("nfe", "reward_rows", "grad_rows", "decode_rows")}
        row["seconds"] = {name: population.seconds.get(name, 0.0) for name in CLOCKS} | {"reading": time.perf_counter() - end}
        # Before the row: what has a row has its samples.
        if (kept := Kept.of(population, against, bench.reading.features, desk.model.device)) is not None:
            kept.write(bench.samples / Path(cell.file).stem)
    write_text(bench.rows / cell.file, json.dumps({**row, "config": config}, indent=1, ensure_ascii=False))
    return time.perf_counter() - start
