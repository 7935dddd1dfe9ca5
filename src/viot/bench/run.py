"""`viot bench`: one task by several methods, budgets and seeds. A row is a file, so that what was done once is never done again."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import __version__
from ..calibrate import Strength
from ..checkpoint import differences
from ..console import complain, notes, say
from ..cost import planned
from ..methods import make
from ..population import CLOCKS, write_text
from ..problem import SteeringWarning
from ..record import describe, plain
from ..report.words import count, duration, plural
from ..spelling import number_or_wish, split_list
from ..task import Task, safe, writable
from .measure import Reading
from .reference import References, draw
from .table import glimpse, write
from .tasks import tasks

#: What a run may differ in from others of its bench.
ITS_OWN = ("method", "lam", "budget", "seed")
#: Budgets and seeds of a task that names none.
NFE, SEEDS = (320, 640), 3


@dataclass(frozen=True)
class Cell:
    """One row to be: a method as it was written, its budget in network rows per group, and the seed.

    `mark` tells cells of several rewards or strengths apart.
    """

    method: str
    nfe: int
    seed: int
    task: Task
    mark: str = ""

    @property
    def file(self) -> str:
        name = safe(self.method)
        # Two spellings must not share a file.
        mark = "" if name == self.method else "-" + hashlib.blake2b(self.method.encode(), digest_size=3).hexdigest()
        return f"{name}{mark}.{self.nfe}.{self.seed}{self.mark}.json"

    @property
    def key(self) -> tuple[Any, ...]:
        return self.method, self.nfe, self.seed, self.task.reward, self.task.lam


@dataclass(frozen=True)
class Bench:
    """A bench: its cells, how answers are read, the plain chain that its reference is drawn from, and the folder of its rows."""

    name: str
    folder: Path
    cells: list[Cell]
    reading: Reading
    plain: Task
    own: tuple[str, ...] = ITS_OWN

    @classmethod
    def asked(cls, args: argparse.Namespace) -> Bench:
        """What the command line asks for. Every name in it is looked up here."""
        known = tasks[args.task].make()
        # What one run is told and a bench has several of, or none.
        absent = ("particles", "budget", "seed", "unsteered", "method", "config", "set", "checkpoint", "lam")
        told = argparse.Namespace(**{**vars(args), **dict.fromkeys(absent)})
        base = Task.asked(told)
        lams = None if args.lam is None else strengths(args.lam)
        if base.groups is None and known.groups is not None and not base.prompts:
            base = replace(base, groups=known.groups)
        written = split_list(args.methods) if args.methods else list(known.line_up or known.methods)
        if again := {text for text in written if written.count(text) > 1}:
            raise ValueError(f"--methods names {again.pop()!r} twice")
        by = {text: base.by(text, told) for text in written}
        for task in by.values():
            make(task.method, **task.settings)
        rewards = (base.reward,) if args.reward or not known.rewards else known.rewards
        budgets = numbers("--nfe", args.nfe) if args.nfe else known.nfe or NFE
        which = seeds(args.seeds) if args.seeds else tuple(range(SEEDS))
        cells = [
            Cell(
                text,
                nfe,
                seed,
                replace(
                    task, budget=nfe, particles=max(1, nfe // task.steps), seed=seed, reward=reward, lam=task.lam if lam is None else lam
                ),
                (f".{safe(reward)}" if known.rewards else "") + (f".lam{lam:g}" if lams and len(lams) > 1 else ""),
            )
            for nfe in budgets
            for seed in which
            for reward in rewards
            for lam in lams or (None,)
            for text, task in by.items()
        ]
        same = base.model == known.model
        # A judge that steers is none.
        judges = [name for name in (args.judge or (known.judges if same else ())) if name not in rewards]
        reading = Reading(tuple(judges), known.characters)
        if same and known.features is not None:
            n = known.reference if args.reference is None else args.reference
            reading = replace(reading, features=known.features, reference=n, bandwidth=known.bandwidth, radius=known.radius)
        elif args.reference is not None:
            raise ValueError(f"{args.task} with the model {base.model} has no features in which answers could be compared with a reference")
        folder = Path(args.out) if args.out else Path("runs") / f"bench-{args.task}"
        own = (*ITS_OWN, "reward") if known.rewards else ITS_OWN
        return cls(args.task, folder, cells, reading, replace(base.by("base", told), lam=1.0, reward=rewards[0]), own)

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    def config(self, cell: Cell, model: Any) -> dict[str, Any]:
        """Everything that decides a row."""
        task = cell.task
        found = {
            **_chain(task, model),
            "reward": task.reward,
            "groups": plain(task.groups),
            "lam": task.lam,
            "budget": cell.nfe,
            "seed": cell.seed,
            "reading": asdict(self.reading),
        }
        return json.loads(json.dumps(found))

    def missing(self, model: Any) -> list[Cell]:
        """The cells without a row; an error where the folder holds rows of another bench."""
        stored = {path.name: row for path, row in read(self.folder)}
        known, keys = {cell.file: cell for cell in self.cells}, {cell.key: cell for cell in self.cells}
        made: set[str] = set()
        for name, row in stored.items():
            theirs = row["config"]
            # The same run has another file where it was one of several strengths.
            same = known.get(name) or keys.get((row["method"], row["budget"], row["seed"], theirs.get("reward"), theirs.get("lam")))
            ours = self.config(same or self.cells[0], model)
            if same is not None:
                made.add(same.file)
            else:
                # A row that is not asked for again must be of the same bench all the same: it stands in the same table.
                ours, theirs = ({k: v for k, v in config.items() if k not in self.own} for config in (ours, theirs))
            if differ := list(differences(ours, theirs)):
                raise ValueError(
                    f"{self.rows / name} belongs to another bench ({'; '.join(differ[:3])}). Give another --out, or remove that file to have "
                    f"its row made anew."
                )
        others = sorted({row["viot"] for row in stored.values()} - {__version__})
        if others:
            complain(f"note: rows in {self.rows} were made by viot {', '.join(others)}, this is {__version__}; they are kept.")
        return [cell for cell in self.cells if cell.file not in made]

    def references(self, model: Any) -> References | None:
        """What answers are held against; base draws that are missing are made now."""
        if self.reading.features is None or not self.reading.reference:
            return None
        task, folder = self.plain, self.folder / "reference"
        return self.reading.references(draw(folder, task, model, self.reading.reference, _chain(task, model)), model)


def _chain(task: Task, model: Any) -> dict[str, Any]:
    """Model, method and steps of a run, for the record."""
    method = make(task.method, **task.settings)
    return {
        "model": {**describe(task.model, model), "name": task.model, "load": plain(task.loading)},
        "method": {"name": task.method, **plain(method.settings())},
        "steps": task.steps,
    }


def run(args: argparse.Namespace) -> int:
    """The command: `viot bench TASK …`, or `viot bench report FOLDER`."""
    if args.task == "report":
        if not args.folder:
            raise ValueError("viot bench report takes the folder of a bench: viot bench report runs/bench-text")
        return report(Path(args.folder))
    if args.folder:
        raise ValueError(f"viot bench takes one task; {args.folder!r} is too many. Write --out {args.folder} for the folder.")
    bench = Bench.asked(args)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs takes a number of processes ≥ 1, not {args.jobs}")
    writable(bench.rows)
    # An interrupted bench goes on from its rows.
    args.checkpoint = str(bench.folder)
    desk = Desk.of(bench, args.device)
    todo = bench.missing(desk.model)
    rows = {cell.file: _planned(cell, desk.model) for cell in todo}
    kinds = [len({getattr(cell, name) for cell in bench.cells}) for name in ("method", "nfe", "seed")]
    kinds += [len({getattr(cell.task, name) for cell in bench.cells if cell.method == bench.cells[0].method}) for name in ("reward", "lam")]
    names = ("method", "budget", "seed", "reward", "strength")
    # One reward and one strength go without saying.
    what = " × ".join(plural(n, name) for n, name in zip(kinds, names, strict=True) if n > 1 or name in names[:3])
    there = f", {count(len(bench.cells) - len(todo))} of them there already" if len(todo) < len(bench.cells) else ""
    say(f"{bench.name}: {what}, {plural(len(bench.cells), 'row')}{there}; {plural(sum(rows.values()), 'network row')} to spend")
    if todo:
        desk.references = bench.references(desk.model)
    jobs = min(args.jobs or 1, len(todo))
    made = _spread(args, todo, jobs) if jobs > 1 else _in_turn(bench, todo, desk)
    bar = tqdm(total=len(todo), disable=None, desc=bench.name)
    try:
        for i, (file, took) in enumerate(made):
            bar.set_postfix_str(file.removesuffix(".json"), refresh=True)
            bar.update()
            spent = rows.pop(file)
            if i == 0 and spent and (rest := sum(rows.values())):
                complain(f"the first row took {duration(took)}; at that rate the others take {duration(took / spent * rest / jobs)}")
    finally:
        made.close()
        bar.close()
    return report(bench.folder)


def _in_turn(bench: Bench, todo: list[Cell], desk: Desk) -> Generator[tuple[str, float], None, None]:
    """Make the rows one by one; yields file and seconds of every row that is done."""
    for cell in todo:
        yield cell.file, _make(bench, cell, desk)


def _planned(cell: Cell, model: Any) -> int:
    """Network rows of a cell; 0 where it will fail to begin."""
    try:
        return planned(cell.task.prepare(model)).network
    except (ValueError, TypeError):
        return 0


@dataclass
class Desk:
    """What a process makes rows with."""

    model: Any
    judges: dict[str, Callable]
    references: References | None = None

    @classmethod
    def of(cls, bench: Bench, device: str | None) -> Desk:
        return cls(bench.plain.load(device), bench.reading.ready())


def _make(bench: Bench, cell: Cell, desk: Desk) -> float:
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
            population = cell.task.prepare(desk.model).finish(progress=False)
    except (ValueError, TypeError, RuntimeError) as error:
        row["failed"] = " ".join(str(error).split()) or type(error).__name__
        complain(f"note: {cell.method} at {cell.nfe} rows: {row['failed']}")
    else:
        end, g = time.perf_counter(), population.shape[0]
        row["metrics"] = bench.reading(population, desk.model, desk.judges, against)
        row |= {name: getattr(population, name) // g for name in ("nfe", "reward_rows", "grad_rows", "decode_rows")}
        row["seconds"] = {name: population.seconds.get(name, 0.0) for name in CLOCKS} | {"reading": time.perf_counter() - end}
    write_text(bench.rows / cell.file, json.dumps({**row, "config": config}, indent=1, ensure_ascii=False))
    return time.perf_counter() - start


# -- several processes ----------------------------------------------------------------------------------------------------------------


def _spread(args: argparse.Namespace, todo: list[Cell], jobs: int) -> Generator[tuple[str, float], None, None]:
    """Make the rows by so many processes of one thread each; yields file and seconds of every row that is done.

    A process asks for its next row when it has none: each is given out once. What it reads of the model is loaded anew in each.
    """
    context, left = multiprocessing.get_context("spawn"), deque(cell.file for cell in todo)
    # Pipes are of another class on every system.
    busy: dict[Any, BaseProcess] = {}
    try:
        for _ in range(jobs):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, args), daemon=True)
            process.start()
            there.close()
            busy[here] = process
        while busy:
            ready: list[Any] = wait(list(busy))
            for line in ready:
                try:
                    told = line.recv()
                except EOFError:
                    busy[line].join()
                    raise ChildProcessError(
                        f"a process of the bench ended with exit code {busy[line].exitcode} (too little memory?). The same command goes on from "
                        f"its rows; --jobs {jobs - 1} asks for fewer at a time"
                    ) from None
                if isinstance(told, Exception):
                    raise told
                if told is not None:
                    yield told
                if left:
                    line.send(left.popleft())
                else:
                    line.send(None)
                    busy.pop(line).join()
    finally:
        for process in busy.values():
            process.terminate()
            process.join()


def _work(line: Any, args: argparse.Namespace) -> None:
    """A process: makes the rows that it is given until there are no more."""
    # Ctrl-C reaches every process of a terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        with notes():
            bench = Bench.asked(args)
            desk = Desk.of(bench, args.device)
            desk.references = bench.references(desk.model)
            cells = {cell.file: cell for cell in bench.cells}
            line.send(None)
            while (file := line.recv()) is not None:
                line.send((file, _make(bench, cells[file], desk)))
    except (EOFError, BrokenPipeError):
        # Nobody asks for rows any more.
        return
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        line.send(error)


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


def strengths(text: str) -> tuple[float, ...]:
    """λ: `2`, or several, `0.5,1,2`."""
    pieces = [piece.strip() for piece in text.split(",")]
    found = [number_or_wish(piece) for piece in pieces]
    wish = next((piece for piece, lam in zip(pieces, found, strict=True) if isinstance(lam, Strength)), None)
    if wish is not None:
        raise ValueError(f"a bench has one λ for all budgets and seeds, not --lam {wish}: `viot sample --lam {wish}` solves for one")
    if len(set(found)) < len(found):
        raise ValueError(f"--lam takes different numbers between commas, for example 0.5,1,2, not {text!r}")
    return tuple(lam for lam in found if not isinstance(lam, Strength))


def seeds(text: str) -> tuple[int, ...]:
    """A count, `3` (0, 1 and 2), or a range, `3:6` (3, 4 and 5)."""
    first, colon, last = text.partition(":")
    if not (first or "0").isdecimal() or not (last if colon else first).isdecimal():
        raise ValueError(f"--seeds takes a count or a range such as 3:6, not {text!r}")
    found = tuple(range(int(first or 0), int(last))) if colon else tuple(range(int(first)))
    if not found:
        raise ValueError(f"--seeds {text} holds no seed; 3 means the seeds 0, 1 and 2, and 3:6 the seeds 3, 4 and 5")
    return found
