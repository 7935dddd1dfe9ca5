"""The command line: `viot sample`, `viot compare`, `viot bench`, `viot cost`, `viot list`, `viot cite`. Its grammar, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from . import commands
from .console import complain, notes
from .problem import DeadPopulation

#: What people get wrong, or what is missing on their machine: told in one sentence, without a traceback.
MISTAKES = (ValueError, TypeError, ImportError, DeadPopulation, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake in what was asked, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no ✓ shows a question mark instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with notes():
            return args.run(args)
    except KeyboardInterrupt:
        folder = getattr(args, "checkpoint", None)
        resume = f" The same command goes on from {folder}." if folder else " With --checkpoint FOLDER it could be resumed."
        complain(f"interrupted.{resume}")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MISTAKES as error:
        if args.traceback:
            raise
        more = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        complain(f"error: {' '.join(str(error).split()) or type(error).__name__}{more}")
        return 2


# -- the grammar ----------------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="viot", description="Steer a frozen diffusion model toward any reward while it samples.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"viot {__version__}")
    subs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = subs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--traceback", action="store_true", help="show where an error came from")
        sub.set_defaults(run=run)
        return sub

    for name, run, text in (
        ("sample", commands.sample, "Draw one population and write it, with a report, into a folder."),
        ("cost", commands.cost, "Estimate what `viot sample` with the same flags would cost, from two measured steps; writes nothing."),
    ):
        sub = command(name, run, text)
        _what(sub)
        sub.add_argument("--method", metavar="NAME", help="e.g. vasr, fvd, or with settings 'fkd(potential=max)' (default vasr)")
        sub.add_argument("--set", metavar="KEY=VALUE", action="append", help="a setting of the method; may be repeated")
        sub.add_argument("--checkpoint", metavar="FOLDER", help="keep the run's state there; the same command resumes it")
        sub.add_argument("--config", metavar="RUN.JSON", help="repeat an earlier run; other flags override what it says")
        if name == "sample":
            sub.add_argument("--dry-run", action="store_true", help="say what would be run and what it would cost in rows")

    compare = command("compare", commands.compare, "Run several methods on the same task at the same budget.")
    compare.add_argument("--methods", metavar="A,B,…", required=True, help="names, each with settings if wanted: vasr,fkd(potential=max)")
    _readers(
        compare, "of the model, if the package has one", "of the model",
        "draws of the plain model to compare with, for each group (default: those of base where it is among the methods, else as many as "
        "particles, 32 to 256, where the model comes with the package); 0: no comparison with it",
    )  # fmt: skip
    _what(compare)

    bench = command(
        "bench", commands.benchmark, "Run a task by several methods, budgets and seeds into tables; goes on where it was stopped."
    )
    bench.add_argument("task", metavar="TASK", help="a name of `viot list tasks`; or: viot bench report FOLDER makes the tables anew")
    bench.add_argument("folder", nargs="?", metavar="FOLDER", help=argparse.SUPPRESS)
    bench.add_argument("--methods", metavar="A,B,…", help="names, each with settings if wanted (default: those of the task)")
    bench.add_argument("--nfe", metavar="ROWS,ROWS,…", help="budgets, network rows per group (default: those of the task)")
    bench.add_argument("--seeds", metavar="N", help="a count, or a range such as 3:6 (default 3)")
    _readers(bench, "of the task", "of the task", "base draws behind the reference of points and pictures (default: of the task); 0: none")
    bench.add_argument("--jobs", metavar="N", type=int, help="processes of one thread each that make rows side by side (default 1)")
    _model(bench)
    _run(bench, "strength of the reward: a number, or several between commas, each a row (default: of the task)")

    kinds = list(commands.TABLES)
    listing = command("list", commands.listing, f"Show the {', '.join(kinds[:-1])} and {kinds[-1]} that have names.")
    listing.add_argument("kind", nargs="?", choices=kinds)
    cite = command("cite", commands.cite, "Print the BibTeX of a method's paper.")
    cite.add_argument("method")
    return parser


def _readers(sub: argparse.ArgumentParser, judge: str, features: str, reference: str) -> None:
    """The flags that say how answers are read."""
    sub.add_argument(
        "--judge", metavar="NAME", action="append",
        help=f"a reward to read answers by that steers nobody; may be repeated (default: {judge}); none: no judge",
    )  # fmt: skip
    sub.add_argument(
        "--features", metavar="NAME",
        help=f"what points and pictures are compared in: pixels, clip, inception, module:function, … (default: {features}); none: no distances",
    )  # fmt: skip
    sub.add_argument("--reference", metavar="N", type=int, help=reference)


def _what(sub: argparse.ArgumentParser) -> None:
    """The flags that say what to run. No defaults here: what is not given comes from the record, the preset, or `Task`."""
    _model(sub)
    run = _run(sub)
    run.add_argument("--task", metavar="NAME", help="a published task of `viot list tasks`; other flags override what it says")
    run.add_argument("--particles", metavar="K", type=int, help="particles per group (default 64)")
    run.add_argument("--seed", type=int, help="(default 0)")
    run.add_argument("--budget", metavar="ROWS", type=int, help="network rows per group (default K·T)")
    run.add_argument(
        "--unsteered", metavar="N", type=int, help="draws of the plain model per group to look at beside, counted apart; 0 for none "
        "(default: for prompts an eighth of the particles, at most 4)",
    )  # fmt: skip


class Once(argparse.Action):
    """A flag that is given once: of two the first would be lost without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if (before := getattr(namespace, self.dest)) is not None:
            raise argparse.ArgumentError(
                self, f"given twice, {before} and {values}; several rewards are one in Python: viot.rewards.Sum([…])"
            )
        setattr(namespace, self.dest, values)


def _model(sub: argparse.ArgumentParser) -> None:
    """The flags that say which model."""
    model = sub.add_argument_group("the model")
    model.add_argument("--model", metavar="NAME", help="a name of `viot list models`, org/checkpoint, or a folder (default digits)")
    model.add_argument("--prompt", metavar="TEXT", action="append", help="one per group; may be repeated")
    model.add_argument("--prompts", metavar="FILE", help="prompts from a .txt, .csv, .tsv, .json or .jsonl file")
    model.add_argument("--negative-prompt", metavar="TEXT", help="what the pictures should not show")
    model.add_argument(
        "--call", metavar="KEY=VALUE", action="append", help="another keyword of the pipeline, e.g. guidance_scale=5; may be repeated"
    )
    model.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="precision of the network (states are float32)")
    model.add_argument("--device", help="cpu, cuda, mps, … (default cpu)")


def _run(
    sub: argparse.ArgumentParser, lam: str = "strength of the reward: a number, ess:0.3 or kl:2 (default 1)"
) -> argparse._ArgumentGroup:
    """The flags that say what to do with it, whether once or many times."""
    run = sub.add_argument_group("the run")
    run.add_argument("--reward", metavar="NAME", action=Once, help="a name of `viot list rewards`, e.g. digit:7 (default)")
    run.add_argument(
        "--groups", metavar="G", help="independent groups: a count, or a range of indices such as 4:8 (default one per prompt)"
    )
    run.add_argument("--steps", metavar="T", type=int, help="network calls per particle (default 50)")
    run.add_argument("--lam", metavar="λ", help=lam)
    run.add_argument("--batch-size", metavar="ROWS", type=int, help="rows at a time; changes memory, never the draws")
    run.add_argument("--out", metavar="FOLDER", help="where to write (default: a folder below runs/)")
    return run


if __name__ == "__main__":
    sys.exit(main())
