"""What a bench is to make: its cells, a row each, and everything that decides them."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..calibrate import Strength
from ..checkpoint import differences
from ..console import complain
from ..methods import make
from ..record import describe, plain
from ..spelling import number_or_wish, split_list
from ..task import Task, safe
from .features import check, standard_bandwidth
from .measure import Reading
from .reference import References, check_draws, draw, scorer
from .rows import read
from .tasks import tasks

#: What a run may differ in from others of its bench.
ITS_OWN = ("method", "lam", "budget", "seed")
#: Budgets and seeds of a task that names none.
NFE, SEEDS = (320, 640), 3
#: Base draws of a task that names no number.
REFERENCE = 512


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
        # What would be wrong for every row is no method's failure.
        if base.steps < 1 or base.groups == 0:
            raise ValueError(f"--steps and --groups take whole numbers ≥ 1, not {base.steps if base.steps < 1 else base.groups}")
        check_draws(args.reference)
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
                (f".{safe(reward)}" if known.rewards else "") + ("" if lam is None else f".lam{exactly(lam)}"),
            )
            for nfe in budgets
            for seed in which
            for reward in rewards
            for lam in lams or (None,)
            for text, task in by.items()
        ]
        fits = base.model == known.model or known.portable
        asked = [name for name in args.judge if name != "none"] if args.judge else known.judges if fits else ()
        # A judge that steers is none.
        judges = [name for name in asked if name not in rewards]
        trace = known.trace
        if trace is not None and any(name.endswith(" pick") for name in trace):
            # Where the best are what counts they are so for every judge.
            trace = tuple(dict.fromkeys((*trace, *(f"{name} pick" for name in judges))))
        reading = Reading(tuple(judges), known.characters, front=known.front, trace=trace, probes=known.probes)
        kind = known.features if args.features is None and fits else None if args.features == "none" else args.features
        if kind is not None:
            n = known.reference or REFERENCE if args.reference is None else args.reference
            # Of the task's own model and features; another model has other modes.
            h, radius = (known.bandwidth if kind == known.features else None, known.radius) if fits else (None, None)
            reading = replace(reading, features=kind, reference=n, bandwidth=h or standard_bandwidth(kind), radius=radius)
            reading = replace(reading, untilted=known.untilted or None)
        elif args.reference and args.features == "none":
            raise ValueError("--features none is for no distances, and --reference for those to so many base draws: leave one of them out")
        elif args.reference:
            raise ValueError(f"{args.task} with the model {base.model} has no features in which answers could be compared with a reference")
        folder = Path(args.out) if args.out else Path("runs") / f"bench-{args.task}"
        own = (*ITS_OWN, "reward") if known.rewards else ITS_OWN
        return cls(args.task, folder, cells, reading, replace(base.by("base", told), lam=1.0, reward=rewards[0]), own)

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

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
            if row["task"] != self.name:
                raise ValueError(f"{self.rows / name} is of the task {row['task']}, not of {self.name}; give another --out")
            # The same run has another file where its strength was asked for by number.
            same = keys.get((row["method"], row["budget"], row["seed"], theirs.get("reward"), theirs.get("lam"))) or known.get(name)
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
        if self.reading.features is None:
            return None
        task, folder = self.plain, self.folder / "reference"
        start = replace(task, groups=(0,), particles=2, budget=None).prepare(model, scorer(task.reward)).problem.prior_rows([2])
        check(self.reading.features, model, start)
        if not self.reading.reference:
            return None
        return self.reading.references(draw(folder, task, model, self.reading.reference, _chain(task, model)), model)


def _chain(task: Task, model: Any) -> dict[str, Any]:
    """Model, method and steps of a run, for the record."""
    method = make(task.method, **task.settings)
    return {
        "model": {**describe(task.model, model), "name": task.model, "load": plain(task.loading)},
        "method": {"name": task.method, **plain(method.settings())},
        "steps": task.steps,
    }


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
    if len(set(found)) < len(found) or not all(math.isfinite(lam) for lam in found if not isinstance(lam, Strength)):
        raise ValueError(f"--lam takes different finite numbers between commas, for example 0.5,1,2, not {text!r}")
    return tuple(lam for lam in found if not isinstance(lam, Strength))


def exactly(lam: float) -> str:
    """As short as tells it from every other number."""
    return f"{lam:g}" if float(f"{lam:g}") == lam else repr(lam)


def seeds(text: str) -> tuple[int, ...]:
    """A count, `3` (0, 1 and 2), or a range, `3:6` (3, 4 and 5)."""
    first, colon, last = text.partition(":")
    if not (first or "0").isdecimal() or not (last if colon else first).isdecimal():
        raise ValueError(f"--seeds takes a count or a range such as 3:6, not {text!r}")
    found = tuple(range(int(first or 0), int(last))) if colon else tuple(range(int(first)))
    if not found:
        raise ValueError(f"--seeds {text} holds no seed; 3 means the seeds 0, 1 and 2, and 3:6 the seeds 3, 4 and 5")
    return found
