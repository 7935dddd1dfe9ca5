"""`viot bench`: one task by several methods, budgets and seeds. A row is a file, so that what was done once is never done again."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from pathlib import Path

from tqdm.auto import tqdm

from ..console import complain, say
from ..report.words import count, duration, plural
from ..task import writable
from . import forecast
from .desk import Desk, make_row
from .plan import Bench, Cell
from .pool import spread
from .rows import read
from .samples import Kept
from .table import glimpse, write


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
    spent = {cell.file: forecast.spending(cell, desk.model) for cell in todo}
    network = sum(rows.network for rows, _ in spent.values())
    kinds = [len({getattr(cell, name) for cell in bench.cells}) for name in ("method", "nfe", "seed")]
    kinds += [len({getattr(cell.task, name) for cell in bench.cells if cell.method == bench.cells[0].method}) for name in ("reward", "lam")]
    names = ("method", "budget", "seed", "reward", "strength")
    # One reward and one strength go without saying.
    what = " × ".join(plural(n, name) for n, name in zip(kinds, names, strict=True) if n > 1 or name in names[:3])
    there = f", {count(len(bench.cells) - len(todo))} of them there already" if len(todo) < len(bench.cells) else ""
    say(f"{bench.name}: {what}, {plural(len(bench.cells), 'row')}{there}; {plural(network, 'network row')} to spend")
    jobs = min(args.jobs or 1, len(todo))
    at_once = forecast.at_once(jobs)
    left = forecast.seconds(todo, spent, desk.model, jobs) if todo else {}
    if left:
        complain(
            f"about {duration(sum(left.values()) / at_once)} by two small steps of the model; drawing a reference, what methods do beside, and "
            f"reading the answers come on top"
        )
    if todo:
        desk.references = bench.references(desk.model)
    made = spread(args, todo, jobs) if jobs > 1 else _in_turn(bench, todo, desk)
    bar = tqdm(total=len(todo), disable=None, desc=bench.name)
    try:
        known: list[tuple[float, float]] = []
        for file, took in made:
            bar.set_postfix_str(file.removesuffix(".json"), refresh=True)
            bar.update()
            if thought := left.pop(file, 0.0):
                known.append((took / thought, took))
            # The very first row also makes what the others share.
            if len(known) == 2 and thought and left:
                complain(f"after two rows: the others take about {duration(forecast.after(*min(known), left.values()) / at_once)}")
    finally:
        made.close()
        bar.close()
    return report(bench.folder)


def _in_turn(bench: Bench, todo: list[Cell], desk: Desk) -> Generator[tuple[str, float], None, None]:
    """Make the rows one by one; yields file and seconds of every row that is done."""
    for cell in todo:
        yield cell.file, make_row(bench, cell, desk)


def report(folder: Path) -> int:
    """Tables and figure of the rows in a bench's folder."""
    found = list(read(folder))
    rows = [row for _, row in found]
    if not rows:
        raise FileNotFoundError(f"{folder} holds no rows of a bench; viot bench TASK --out {folder} makes them")
    write(rows, folder, [Kept.read(folder / "samples" / path.stem) for path, _ in found])
    say(f"\n{glimpse(rows)}")
    failed = sum("failed" in row for row in rows)
    if failed:
        say(f"\nRows of failed runs are kept like others: remove their files in {folder / 'rows'} to have them tried again.")
    sheet = ", sheet.png" if (folder / "sheet.png").exists() else ""
    say(f"\n{folder}: table.md, report.html{sheet}, and a file per row in rows/")
    return 0 if failed < len(rows) else 2
