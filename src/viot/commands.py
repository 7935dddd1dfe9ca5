"""What the commands do. Each takes the parsed flags and returns the exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bench, console
from .calibrate import Strength
from .console import colour, complain, say
from .methods import make, methods
from .models import models
from .population import COUNTS
from .problem import DeadPopulation
from .record import plain as plain_settings
from .registry import Registry, unknown
from .resample import schemes
from .rewards import rewards
from .sample import Run
from .spelling import method_spec, split_list
from .task import Task, fresh, safe, writable

if TYPE_CHECKING:
    from .cost import Estimate, Rows
    from .population import Population

TABLES: dict[str, Registry] = {
    "models": models,
    "rewards": rewards,
    "methods": methods,
    "tasks": bench.tasks,
    "resampling": schemes,
}


# -- viot sample ----------------------------------------------------------------------------------------------------------------------


def sample(args: argparse.Namespace) -> int:
    task = Task.asked(args)
    out = Path(args.out) if args.out else fresh(Path("runs") / task.slug)
    if args.dry_run:
        return _describe(task, args.device, out)
    if (out / "run.json").exists() and out != Path(args.checkpoint or os.devnull):
        complain(f"note: {out} holds an earlier run; it is replaced when this one is done.")
    writable(out)
    if args.checkpoint:
        writable(Path(args.checkpoint))
    model = task.load(args.device)
    run = task.prepare(model)
    # First, because what is wrong with model or reward shows in the small run.
    plain = _drawn(task.beside(model, run))
    population = replace(run.finish(checkpoint=args.checkpoint), unsteered=plain)
    population.save(out)
    from .report.terminal import summary
    from .report.words import obstacle

    again = None if obstacle(population.config) else f"viot sample --config {out / 'run.json'}"
    say()
    say(summary(population, out, again, colour(), frozenset(console.told)))
    return 0


def _drawn(run: Run | None) -> Population | None:
    """The unsteered draws; without them where every one is dead, which is no reason not to steer."""
    if run is None:
        return None
    try:
        return run.finish()
    except DeadPopulation as error:
        complain(f"note: no unsteered draws to show: {error}")
        return None


def _first_of(base: Population, n: int) -> Population:
    """The first n unsteered draws of a base run per group, at no cost of their own."""
    config = {**base.config, "particles": n, "budget": n * base.config["steps"]}
    free: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    return replace(base.first(n), **free, seconds={}, config=config)


def _checked(task: Task, model: Any) -> Run:
    """The run, with every mistake found, but without the pilot that a wished strength asks for."""
    return task.prepare(model, None, **({"lam": 1.0} if isinstance(task.lam, Strength) else {}))


def _apart(task: Task, model: Any, run: Run) -> dict[str, Rows]:
    """The rows that are counted apart from the run's own."""
    from .cost import plain, planned

    pilot = {"pilot": plain(run, run.problem.K)} if isinstance(task.lam, Strength) else {}
    beside = task.beside(model, run)
    return pilot if beside is None else {**pilot, "unsteered": planned(beside)}


def _describe(task: Task, device: str | None, out: Path) -> int:
    """What would be run, and its cost in rows."""
    from .cost import planned
    from .report.terminal import facts
    from .report.words import count

    model = task.load(device)
    run = _checked(task, model)
    rows, apart = planned(run), _apart(task, model, run)
    shown = [*_settings(task, run), ("network rows", count(rows.network)), ("reward rows", count(rows.reward))]
    shown += [("gradient rows", count(rows.gradient))] if rows.gradient else []
    shown += [(name, f"{count(more.network)} network rows more") for name, more in apart.items()]
    say("Nothing was run. This would be:\n")
    say(facts([*shown, ("out", str(out))]))
    return 0


def _settings(task: Task, run: Run) -> list[tuple[str, str]]:
    """A prepared run in words."""
    from .prompts import short
    from .report.words import count, plural

    problem, prompts = run.problem, task.prompts
    usual = plain_settings(make(task.method).settings())
    settings = {k: v for k, v in run.config["method"].items() if k != "name" and v != usual.get(k)}
    told = {k: v for k, v in task.loading.items() if k != "prompt"}
    rows = [("model", f"{task.model}, states of shape {tuple(problem.evaluate.model.event_shape)}" + (f", {_spelled(told)}" * bool(told)))]
    if prompts:
        few = ", ".join(short(prompt, 40) for prompt in prompts[:3])
        rows.append(("prompts" if len(prompts) > 1 else "prompt", few if len(prompts) <= 3 else f"{len(prompts)}: {few}, …"))
    return [
        *rows,
        ("reward", task.reward),
        ("method", task.method + (f" ({_spelled(settings)})" if settings else "")),
        ("particles", f"{count(problem.K)} in each of {plural(problem.G, 'group')}"),
        ("steps", str(problem.T)),
        ("λ", f"{task.lam}, to be solved by a pilot run" if isinstance(task.lam, Strength) else f"{task.lam:g}"),
        ("seed", str(task.seed)),
    ]


def _spelled(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in settings.items())


# -- viot cost ------------------------------------------------------------------------------------------------------------------------


def cost(args: argparse.Namespace) -> int:
    from . import cost as costs
    from .report.terminal import costed, facts

    before = costs.resident()
    task = Task.asked(args)
    model = task.load(args.device)
    run = _checked(task, model)
    found: Estimate = costs.measure(run, _apart(task, model, run), before)
    say(facts(_settings(task, run)))
    say()
    say(costed(found, run.problem.G * run.problem.K, task.batch_size))
    return 0


# -- viot compare ---------------------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> int:
    from .bench import compared
    from .population import write_text
    from .report.compare import cells, comparison, row, strength
    from .report.terminal import BOLD, PLAIN, columns

    base = Task.asked(args)
    budget = base.budget or base.particles * base.steps
    base = replace(base, budget=budget, particles=max(1, budget // base.steps))
    tasks = {text: base.by(text, args) for text in split_list(args.methods)}
    how = compared.reading(base, args.judge, args.features, args.reference)
    judges = how.ready()
    out = Path(args.out) if args.out else fresh(Path("runs") / safe(f"compare-{base.preset or f'{base.model}-{base.reward}'}"))
    model = base.load(args.device)
    # Every mistake in any of the methods is found before the first network call.
    runs = {name: _checked(task, model) for name, task in tasks.items()}
    writable(out)
    lams = {name: float(task.lam) for name, task in tasks.items() if not isinstance(task.lam, Strength)}
    if not lams:
        # λ is solved once, so that all methods have the same target.
        lams = dict.fromkeys(tasks, float(replace(base, method="base", settings={}).prepare(model).config["lam"]))
    populations, folders, failures = {}, {}, {}
    draws = base.draws(model, base.particles)
    plain = None
    if not any(task.method == "base" for task in tasks.values()):
        plain = _drawn(base.beside(model, next(iter(runs.values()))))
    # The plain model comes first: its first draws are what the others are looked at beside.
    for name in sorted(tasks, key=lambda name: tasks[name].method != "base"):
        try:
            population = tasks[name].prepare(model, lam=lams[name]).finish()
        except DeadPopulation as error:
            failures[name] = str(error)
            complain(f"note: {name}: {error}")
            continue
        if tasks[name].method != "base":
            population = replace(population, unsteered=plain)
        elif plain is None and draws:
            plain = _first_of(population, min(draws, population.shape[1]))
        folders[name] = safe(name)
        population.save(out / folders[name])
        populations[name] = population
    populations = {name: populations[name] for name in tasks if name in populations}
    told = next((p.config for p in populations.values()), {"groups": [0]})
    own = next((p for name, p in populations.items() if tasks[name].method == "base"), None)
    held = compared.held(how, base.by("base", args), model, own, told["groups"], base.particles) if populations else None
    rows = {
        name: {**row(name, population, compared.told(how, held, population, model, judges)), "lam": lams[name]}
        for name, population in populations.items()
    }
    same = len(set(lams.values())) == 1
    record = {
        "model": base.model,
        "reward": base.reward,
        "steps": base.steps,
        "lam": next(iter(lams.values())) if same else lams,
        "seed": base.seed,
        "budget": budget,
        "groups": told["groups"],
        **({"load": base.loading} if base.loading else {}),
        **({"task": base.preset} if base.preset else {}),
        **({} if held is None else {"base": held.record(base.particles)}),
    }
    table = list(rows.values())
    write_text(out / "compare.json", json.dumps({"task": record, "rows": table, "died": failures}, indent=1, ensure_ascii=False))
    write_text(out / "compare.html", comparison(record, table, populations, folders, failures))
    bold, end = (BOLD, PLAIN) if colour() else ("", "")
    setting = f"{strength(record['lam'])}, {base.steps} steps, {budget} network rows per group"
    say(f"\n{bold}{base.model}, steered toward {base.reward}{end}: {setting}\n")
    say(columns(*cells(table, failures), numbers=True))
    if any("best_text" in row for row in table):
        from .report.text import visible

        where = " of the first group" if len(told["groups"]) > 1 else ""
        found = [[row["method"], visible(row["best_text"] or "–")] for row in table]
        say("\n" + columns(["method", f"best text{where}"], found, width=shutil.get_terminal_size((120, 24)).columns))
    say(f"\n{out}: compare.html, compare.json, and a report for each method")
    return 0 if rows else 2


# -- viot bench -----------------------------------------------------------------------------------------------------------------------


def benchmark(args: argparse.Namespace) -> int:
    from .bench.run import run

    return run(args)


# -- viot list, viot cite -------------------------------------------------------------------------------------------------------------


def listing(args: argparse.Namespace) -> int:
    from .report.terminal import BOLD, PLAIN, columns

    bold, plain = (BOLD, PLAIN) if colour() else ("", "")
    width = shutil.get_terminal_size((120, 24)).columns
    for i, kind in enumerate([args.kind] if args.kind else TABLES):
        entries = TABLES[kind].entries
        rows = [[e.example if kind == "rewards" else name, e.cost, e.licence, e.summary] for name, e in entries.items()]
        if kind == "tasks":
            rows = [[*row[:3], f"{row[3]}: {', '.join(bench.tasks[row[0]].make().papers)}"] for row in rows]
        head = ["name", "cost", "licence", "what it is"]
        used = [c for c in range(4) if any(row[c] for row in rows)]
        say(("\n" if i else "") + f"{bold}{kind}{plain}\n")
        say(columns([head[c] for c in used], [[row[c] for c in used] for row in rows], width=width))
    return 0


def cite(args: argparse.Namespace) -> int:
    from .methods.references import REFERENCES

    name = method_spec(args.method)[0]
    if name not in methods and name not in REFERENCES:
        raise unknown("method", name, methods)
    if name not in REFERENCES:
        raise ValueError(f"{name} is a baseline without a paper of its own. Papers: {', '.join(sorted(REFERENCES))}.")
    say(REFERENCES[name])
    return 0
