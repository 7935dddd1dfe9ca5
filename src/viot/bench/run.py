"""`viot bench`: one task by several methods, budgets and seeds. A row is a file, so that what was done once is never done again."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .. import __version__
from ..calibrate import Strength
from ..checkpoint import differences
from ..console import complain, say
from ..cost import planned
from ..methods import make
from ..population import CLOCKS, write_text
from ..problem import SteeringWarning
from ..record import describe, plain
from ..report.words import count, duration, plural
from ..spelling import split_list
from ..task import Task, safe, writable
from .measure import Reading
from .table import glimpse, write
from .tasks import tasks

#: What a run may differ in from others of its bench.
ITS_OWN = ("method", "lam", "budget", "seed")
#: Budgets and seeds of a task that names none.
NFE, SEEDS = (320, 640), 3


@dataclass(frozen=True)
class Cell:
    """One row to be: a method as it was written, its budget in network rows per group, and the seed."""

    method: str
    nfe: int
    seed: int
    task: Task

    @property
    def file(self) -> str:
        name = safe(self.method)
        # Two spellings must not share a file.
        mark = "" if name == self.method else "-" + hashlib.blake2b(self.method.encode(), digest_size=3).hexdigest()
        return f"{name}{mark}.{self.nfe}.{self.seed}.json"


@dataclass(frozen=True)
class Bench:
    """A bench: its cells, how answers are read, and the folder of its rows."""

    name: str
    folder: Path
    cells: list[Cell]
    reading: Reading

    @classmethod
    def asked(cls, args: argparse.Namespace) -> Bench:
        """What the command line asks for. Every name in it is looked up here."""
        known = tasks[args.task].make()
        # What one run is told and a bench has several of, or none.
        absent = ("particles", "budget", "seed", "unsteered", "method", "config", "set", "checkpoint")
        base = Task.asked(argparse.Namespace(**{**vars(args), **dict.fromkeys(absent)}))
        solved = isinstance(base.lam, Strength)
        if solved:
            raise ValueError(
                f"a bench has one λ for all budgets and seeds, not --lam {base.lam}: `viot sample --lam {base.lam}` solves for one"
            )
        if base.groups is None and known.groups is not None and not base.prompts:
            base = replace(base, groups=known.groups)
        written = split_list(args.methods) if args.methods else list(known.line_up or known.methods)
        if again := {text for text in written if written.count(text) > 1}:
            raise ValueError(f"--methods names {again.pop()!r} twice")
        by = {text: base.by(text, args) for text in written}
        for task in by.values():
            make(task.method, **task.settings)
        budgets = numbers("--nfe", args.nfe) if args.nfe else known.nfe or NFE
        which = seeds(args.seeds) if args.seeds else tuple(range(SEEDS))
        cells = [
            Cell(text, nfe, seed, replace(task, budget=nfe, particles=max(1, nfe // task.steps), seed=seed))
            for nfe in budgets
            for seed in which
            for text, task in by.items()
        ]
        # A judge that steers is none.
        usual = known.judges if base.model == known.model else ()
        judges = [name for name in (args.judge or usual) if name != base.reward]
        folder = Path(args.out) if args.out else Path("runs") / f"bench-{args.task}"
        return cls(args.task, folder, cells, Reading(tuple(judges), known.characters))

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    def config(self, cell: Cell, model: Any) -> dict[str, Any]:
        """Everything that decides a row."""
        task = cell.task
        method = make(task.method, **task.settings)
        found = {
            "model": {**describe(task.model, model), "name": task.model, "load": plain(task.loading)},
            "reward": task.reward,
            "method": {"name": task.method, **plain(method.settings())},
            "groups": plain(task.groups),
            "steps": task.steps,
            "lam": task.lam,
            "budget": cell.nfe,
            "seed": cell.seed,
            "reading": asdict(self.reading),
        }
        return json.loads(json.dumps(found))

    def missing(self, model: Any) -> list[Cell]:
        """The cells without a row; an error where the folder holds rows of another bench."""
        stored = {path.name: row for path, row in read(self.folder)}
        known = {cell.file: cell for cell in self.cells}
        for name, row in stored.items():
            ours = self.config(known.get(name, self.cells[0]), model)
            theirs = row["config"]
            if name not in known:
                # A row that is not asked for again must be of the same bench all the same: it stands in the same table.
                ours, theirs = ({k: v for k, v in config.items() if k not in ITS_OWN} for config in (ours, theirs))
            if differ := list(differences(ours, theirs)):
                raise ValueError(
                    f"{self.rows / name} belongs to another bench ({'; '.join(differ[:3])}). Give another --out, or remove that file to have "
                    f"its row made anew."
                )
        others = sorted({row["viot"] for row in stored.values()} - {__version__})
        if others:
            complain(f"note: rows in {self.rows} were made by viot {', '.join(others)}, this is {__version__}; they are kept.")
        return [cell for cell in self.cells if cell.file not in stored]


def run(args: argparse.Namespace) -> int:
    """The command: `viot bench TASK …`, or `viot bench report FOLDER`."""
    if args.task == "report":
        if not args.folder:
            raise ValueError("viot bench report takes the folder of a bench: viot bench report runs/bench-text")
        return report(Path(args.folder))
    if args.folder:
        raise ValueError(f"viot bench takes one task; {args.folder!r} is too many. Write --out {args.folder} for the folder.")
    bench = Bench.asked(args)
    writable(bench.rows)
    # An interrupted bench goes on from its rows.
    args.checkpoint = str(bench.folder)
    model = bench.cells[0].task.load(args.device)
    judges = bench.reading.ready()
    todo = bench.missing(model)
    rows = {cell.file: _planned(cell, model) for cell in todo}
    kinds = [len({getattr(cell, name) for cell in bench.cells}) for name in ("method", "nfe", "seed")]
    what = f"{plural(kinds[0], 'method')} × {plural(kinds[1], 'budget')} × {plural(kinds[2], 'seed')}"
    there = f", {count(len(bench.cells) - len(todo))} of them there already" if len(todo) < len(bench.cells) else ""
    say(f"{bench.name}: {what}, {plural(len(bench.cells), 'row')}{there}; {plural(sum(rows.values()), 'network row')} to spend")
    bar = tqdm(total=len(todo), disable=None, desc=bench.name)
    try:
        for i, cell in enumerate(todo):
            bar.set_postfix_str(f"{cell.method} {cell.nfe}", refresh=True)
            took = _make(bench, cell, model, judges)
            bar.update()
            rest = sum(rows[other.file] for other in todo[i + 1 :])
            if i == 0 and rest and rows[cell.file]:
                complain(f"the first row took {duration(took)}; at that rate the others take {duration(took / rows[cell.file] * rest)}")
    finally:
        bar.close()
    return report(bench.folder)


def _planned(cell: Cell, model: Any) -> int:
    """Network rows of a cell; 0 where it will fail to begin."""
    try:
        return planned(cell.task.prepare(model)).network
    except (ValueError, TypeError):
        return 0


def _make(bench: Bench, cell: Cell, model: Any, judges: dict[str, Callable]) -> float:
    """Make a row and write it; returns the seconds that it took. A method that cannot do the task has a row that says why."""
    config = bench.config(cell, model)
    row: dict[str, Any] = {
        "viot": __version__,
        "digest": hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8).hexdigest(),
        "task": bench.name,
        "method": cell.method,
        "budget": cell.nfe,
        "seed": cell.seed,
    }
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # The table has the effective sample sizes.
            warnings.simplefilter("ignore", SteeringWarning)
            population = cell.task.prepare(model).finish(progress=False)
    except (ValueError, TypeError, RuntimeError) as error:
        row["failed"] = " ".join(str(error).split()) or type(error).__name__
        complain(f"note: {cell.method} at {cell.nfe} rows: {row['failed']}")
    else:
        end, g = time.perf_counter(), population.shape[0]
        row["metrics"] = bench.reading(population, model, judges)
        row |= {name: getattr(population, name) // g for name in ("nfe", "reward_rows", "grad_rows", "decode_rows")}
        row["seconds"] = {name: population.seconds.get(name, 0.0) for name in CLOCKS} | {"reading": time.perf_counter() - end}
    write_text(bench.rows / cell.file, json.dumps({**row, "config": config}, indent=1, ensure_ascii=False))
    return time.perf_counter() - start


def report(folder: Path) -> int:
    """Tables and figure of the rows in a bench's folder."""
    rows = [row for _, row in read(folder)]
    if not rows:
        raise FileNotFoundError(f"{folder} holds no rows of a bench; viot bench TASK --out {folder} makes them")
    write(rows, folder)
    say(f"\n{glimpse(rows)}")
    failed = {row["method"] for row in rows if "failed" in row}
    if failed:
        say(f"\nRows of failed runs are kept like others: remove their files in {folder / 'rows'} to have them tried again.")
    say(f"\n{folder}: table.md, report.html, and a file per row in rows/")
    return 0 if len(failed) < len({row["method"] for row in rows}) else 2


def read(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows in a bench's folder, with their files."""
    for path in sorted((folder / "rows").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            lacking = {"config", "viot", "task", "method", "budget", "seed"} - set(row)
            if lacking:
                raise KeyError(min(lacking))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the row of a bench ({type(error).__name__}: {error}); remove it") from error
        yield path, row


# -- how it is written ----------------------------------------------------------------------------------------------------------------


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """`320,640`"""
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() and int(piece) > 0 for piece in pieces) or len(set(pieces)) < len(pieces):
        raise ValueError(f"{flag} takes different whole numbers > 0 between commas, for example 320,640, not {text!r}")
    return tuple(int(piece) for piece in pieces)


def seeds(text: str) -> tuple[int, ...]:
    """A count, `3` (0, 1 and 2), or a range, `3:6` (3, 4 and 5)."""
    first, colon, last = text.partition(":")
    if not (first or "0").isdecimal() or not (last if colon else first).isdecimal():
        raise ValueError(f"--seeds takes a count or a range such as 3:6, not {text!r}")
    found = tuple(range(int(first or 0), int(last))) if colon else tuple(range(int(first)))
    if not found:
        raise ValueError(f"--seeds {text} holds no seed; 3 means the seeds 0, 1 and 2, and 3:6 the seeds 3, 4 and 5")
    return found
