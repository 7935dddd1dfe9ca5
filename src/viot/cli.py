"""The command line: `viot sample`, `viot compare`, `viot list`, `viot cite`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .calibrate import Strength
from .methods import methods
from .models import models
from .problem import DeadPopulation, SteeringWarning
from .registry import Registry, unknown
from .rewards import rewards
from .sample import Run
from .task import Task, fresh, method_spec, safe, split_list, writable

#: What people get wrong, or what is missing on their machine: told in one sentence, without a traceback.
MISTAKES = (ValueError, TypeError, ImportError, DeadPopulation, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake in what was asked, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no ✓ shows a question mark instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with _notes():
            return args.run(args)
    except KeyboardInterrupt:
        folder = getattr(args, "checkpoint", None)
        resume = f" The same command goes on from {folder}." if folder else " With --checkpoint FOLDER it could be resumed."
        _complain(f"interrupted.{resume}")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MISTAKES as error:
        if args.traceback:
            raise
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        _complain(f"error: {' '.join(str(error).split()) or type(error).__name__}{notes}")
        return 2


def say(text: str = "") -> None:
    """The one place that writes to the terminal's standard output."""
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    # tqdm steps aside for the line if a bar is being drawn.
    tqdm.write(text, file=sys.stderr)


#: Warnings that have been shown as notes during this command.
_told: set[str] = set()


@contextmanager
def _notes() -> Iterator[None]:
    """Show warnings meant for the user as a line `note: …`, each once."""
    _told.clear()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if category not in (SteeringWarning, UserWarning):
                usual(message, category, *rest)
            elif str(message) not in _told:
                _told.add(str(message))
                _complain(f"note: {message}")

        warnings.showwarning = show
        warnings.filterwarnings("always", category=SteeringWarning)
        warnings.filterwarnings("always", category=UserWarning, module="viot")
        yield


# -- viot sample ----------------------------------------------------------------------------------------------------------------------


def _sample(args: argparse.Namespace) -> int:
    task = (Task.recorded(args.config) if args.config else Task()).changed(args)
    out = Path(args.out) if args.out else fresh(Path("runs") / task.slug)
    if args.dry_run:
        return _describe(task, task.prepare(task.load(args.device), lam=1.0 if isinstance(task.lam, Strength) else task.lam), out)
    if (out / "run.json").exists() and out != Path(args.checkpoint or os.devnull):
        _complain(f"note: {out} holds an earlier run; it is replaced when this one is done.")
    writable(out)
    if args.checkpoint:
        writable(Path(args.checkpoint))
    population = task.prepare(task.load(args.device)).finish(checkpoint=args.checkpoint)
    population.save(out)
    from .report.terminal import summary
    from .report.words import obstacle

    again = None if obstacle(population.config) else f"viot sample --config {out / 'run.json'}"
    say()
    say(summary(population, out, again, _colour(), frozenset(_told)))
    return 0


def _describe(task: Task, run: Run, out: Path) -> int:
    """What would be run, and its cost in rows."""
    from .report.terminal import facts
    from .report.words import count, plural

    problem, steps = run.problem, run.problem.T
    scoring = len(run.method.scoring(steps)) if hasattr(run.method, "scoring") else 0
    rows = problem.G * problem.K * run.method.cost(steps)
    settings = {k: v for k, v in run.config["method"].items() if k != "name"}
    shown = [
        ("model", f"{task.model}, samples of shape {tuple(problem.evaluate.model.event_shape)}"),
        ("reward", task.reward),
        ("method", task.method + (f" ({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else "")),
        ("particles", f"{count(problem.K)} in each of {plural(problem.G, 'group')}"),
        ("steps", str(steps)),
        ("λ", f"{task.lam}, to be solved by a pilot run" if isinstance(task.lam, Strength) else f"{task.lam:g}"),
        ("seed", str(task.seed)),
        ("network rows", count(rows)),
        ("reward rows", count(problem.G * problem.K * (scoring + 1))),
    ]
    if isinstance(task.lam, Strength):
        shown.append(("pilot", f"{count(problem.G * task.particles * steps)} network rows more"))
    say("Nothing was run. This would be:\n")
    say(facts([*shown, ("out", str(out))]))
    return 0


# -- viot compare ---------------------------------------------------------------------------------------------------------------------


def _compare(args: argparse.Namespace) -> int:
    from .population import write_text
    from .report.compare import cells, comparison, judge_of, row
    from .report.terminal import BOLD, PLAIN, columns
    from .report.words import setting as shown

    base = Task().changed(args)
    budget = base.budget or base.particles * base.steps
    base = replace(base, budget=budget, particles=max(1, budget // base.steps))
    tasks = {
        text: replace(base, method=name, settings=settings) for text in split_list(args.methods) for name, settings in [method_spec(text)]
    }
    out = Path(args.out) if args.out else fresh(Path("runs") / safe(f"compare-{base.model}-{base.reward}"))
    model = base.load(args.device)
    wish = isinstance(base.lam, Strength)
    # Every mistake in any of the methods is found before the first network call.
    for task in tasks.values():
        task.prepare(model, **({"lam": 1.0} if wish else {}))
    writable(out)
    # λ is solved once, so that all methods have the same target.
    lam = float(replace(base, method="base", settings={}).prepare(model).config["lam"] if isinstance(base.lam, Strength) else base.lam)
    judge = judge_of(base.model, base.reward)
    rows, populations, folders, failures = [], {}, {}, {}
    for name, task in tasks.items():
        try:
            population = task.prepare(model, lam=lam).finish()
        except DeadPopulation as error:
            failures[name] = str(error)
            _complain(f"note: {name}: {error}")
            continue
        folders[name] = safe(name)
        population.save(out / folders[name])
        populations[name] = population
        rows.append(row(name, population, judge(population) if judge else None))
    indices = next((p.config["groups"] for p in populations.values()), [0])
    task_record = {
        "model": base.model,
        "reward": base.reward,
        "steps": base.steps,
        "lam": lam,
        "seed": base.seed,
        "budget": budget,
        "groups": indices,
    }
    write_text(out / "compare.json", json.dumps({"task": task_record, "rows": rows, "died": failures}, indent=1, ensure_ascii=False))
    write_text(out / "compare.html", comparison(task_record, rows, populations, folders, failures))
    bold, plain = (BOLD, PLAIN) if _colour() else ("", "")
    say(
        f"\n{bold}{base.model}, steered toward {base.reward}{plain}: λ = {shown(lam)}, {base.steps} steps, {budget} network rows per group\n"
    )
    say(columns(*cells(rows, failures), numbers=True))
    say(f"\n{out}: compare.html, compare.json, and a report for each method")
    return 0 if rows else 2


# -- viot list, viot cite -------------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    import shutil

    from .report.terminal import BOLD, PLAIN, columns
    from .resample import schemes

    tables: dict[str, Registry] = {"models": models, "rewards": rewards, "methods": methods, "resampling": schemes}
    bold, plain = (BOLD, PLAIN) if _colour() else ("", "")
    width = shutil.get_terminal_size((120, 24)).columns
    for i, kind in enumerate([args.kind] if args.kind else tables):
        entries = tables[kind].entries
        rows = [[e.example if kind == "rewards" else name, e.cost, e.licence, e.summary] for name, e in entries.items()]
        head = ["name", "cost", "licence", "what it is"]
        used = [c for c in range(4) if any(row[c] for row in rows)]
        say(("\n" if i else "") + f"{bold}{kind}{plain}\n")
        say(columns([head[c] for c in used], [[row[c] for c in used] for row in rows], width=width))
    return 0


def _cite(args: argparse.Namespace) -> int:
    from .methods.references import REFERENCES

    name = method_spec(args.method)[0]
    if name not in methods and name not in REFERENCES:
        raise unknown("method", name, methods)
    if name not in REFERENCES:
        raise ValueError(f"{name} is a baseline without a paper of its own. Papers: {', '.join(sorted(REFERENCES))}.")
    say(REFERENCES[name])
    return 0


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


# -- the grammar ----------------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="viot", description="Steer a frozen diffusion model toward any reward while it samples.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"viot {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--traceback", action="store_true", help="show where an error came from")
        sub.set_defaults(run=run)
        return sub

    sample = command("sample", _sample, "Draw one population and write it, with a report, into a folder.")
    _task(sample)
    sample.add_argument("--method", metavar="NAME", help="e.g. vasr, fvd, or with settings 'fkd(potential=max)' (default vasr)")
    sample.add_argument("--set", metavar="KEY=VALUE", action="append", help="a setting of the method; may be repeated")
    sample.add_argument("--checkpoint", metavar="FOLDER", help="keep the run's state there; the same command resumes it")
    sample.add_argument("--config", metavar="RUN.JSON", help="repeat an earlier run; other flags override what it says")
    sample.add_argument("--dry-run", action="store_true", help="say what would be run and what it would cost")

    compare = command("compare", _compare, "Run several methods on the same task at the same budget.")
    compare.add_argument("--methods", metavar="A,B,…", required=True, help="names, each with settings if wanted: vasr,fkd(potential=max)")
    _task(compare)

    listing = command("list", _list, "Show the models, rewards, methods and resampling schemes that have names.")
    listing.add_argument("kind", nargs="?", choices=["models", "rewards", "methods", "resampling"])
    cite = command("cite", _cite, "Print the BibTeX of a method's paper.")
    cite.add_argument("method")
    return parser


def _task(sub: argparse.ArgumentParser) -> None:
    """The flags that say what to run. No defaults here: what is not given comes from the record, or from `Task`."""
    sub.add_argument("--model", metavar="NAME", help="a name of `viot list models`, org/checkpoint, or a folder (default digits)")
    sub.add_argument("--reward", metavar="NAME", help="a name of `viot list rewards`, e.g. digit:7 (default)")
    sub.add_argument("--particles", metavar="K", type=int, help="particles per group (default 64)")
    sub.add_argument(
        "--groups", metavar="G", help="independent groups: a count, or a range of indices such as 4:8 (default one per prompt)"
    )
    sub.add_argument("--steps", metavar="T", type=int, help="network calls per particle (default 50)")
    sub.add_argument("--lam", metavar="λ", help="strength of the reward: a number, ess:0.3 or kl:2 (default 1)")
    sub.add_argument("--seed", type=int, help="(default 0)")
    sub.add_argument("--budget", metavar="ROWS", type=int, help="network rows per group (default K·T)")
    sub.add_argument("--batch-size", metavar="ROWS", type=int, help="rows at a time; changes memory, never the draws")
    sub.add_argument("--device", help="cpu, cuda, mps, … (default cpu)")
    sub.add_argument("--out", metavar="FOLDER", help="where to write (default: a fresh folder below runs/)")


if __name__ == "__main__":
    sys.exit(main())
