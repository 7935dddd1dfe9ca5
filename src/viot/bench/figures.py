"""What the rows of a bench look like: reward against quality, and quality against what it cost, a curve for each method."""

from __future__ import annotations

from collections.abc import Callable

from ..report.compare import AWAY
from ..report.svg import Line, chart
from ..report.words import count, setting
from .columns import Column, over_seeds
from .rows import Row, budgets, methods, sweep

#: What an answer's quality is, by the first that rows have: key, title, what stands at its axis.
QUALITY = (
    ("frechet", "distance", "Fréchet distance to the target"),
    ("mmd", "distance", "MMD to the target"),
    ("nll", "likelihood", "NLL under {model}, nats per text"),
)
SECONDS = Column("seconds", "seconds", "")


def _quality(rows: list[Row]) -> tuple[str, str, str] | None:
    there = (q for q in QUALITY if any((row.get("metrics") or {}).get(q[0]) is not None for row in rows))
    return next(there, None)


def curves(rows: list[Row], x: Callable[[Row], float | None], y: Callable[[Row], float | None]) -> list[Line]:
    """A curve for each method: means over seeds, through its strengths at the largest budget where there are several, else through its budgets."""
    strong, lines = bool(sweep(rows)), []
    for method in methods(rows):
        mine = [row for row in rows if row["method"] == method and "metrics" in row]
        if strong:
            mine = [row for row in mine if row["budget"] == max(budgets(rows))]
        by: dict[float, list[Row]] = {}
        for row in mine:
            by.setdefault(row["config"]["lam"] if strong else row["budget"], []).append(row)
        means = [(over_seeds([x(row) for row in by[at]]), over_seeds([y(row) for row in by[at]])) for at in sorted(by)]
        points = [(a.value, b.value) for a, b in means if a and b]
        if points:
            lines.append(Line(method, [a for a, _ in points], [b for _, b in points]))
    return lines


def figure(rows: list[Row]) -> tuple[str, str]:
    """Reward against the distance to the target or the bound on −log p, a curve for each method; against the budget where there is neither.

    Beside it, where it is measured, reward against the distance to the plain model.
    """
    quality, config, model = _quality(rows), rows[0]["config"], rows[0]["config"]["model"]["name"]

    def reward(row: Row) -> float | None:
        return row["metrics"]["reward"]

    if quality is None:
        lines = curves(rows, lambda row: float(row["budget"]), reward)
    else:
        lines = curves(rows, lambda row: row["metrics"].get(quality[0]), reward)
    if not lines:
        return "Rewards", '<p class="missing">No method has an answer.</p>'
    if quality is None:
        note = "Weighted mean reward, means over seeds."
        return "Reward over budget", chart("Reward", note, lines, x_label="network rows per group", y_label="reward", whole=False)
    left = f"what {model} finds likely" if quality[0] == "nll" else "the target"
    through = (
        f"its strengths at {count(max(budgets(rows)))} rows, from weak to strong"
        if sweep(rows)
        else "a method's budgets, from small to large"
    )
    note = f"Up is what was asked for, left is {left}. A curve goes through {through}."
    name = "NLL" if quality[0] == "nll" else quality[2].split(" to ")[0]
    asked = config["reward"] if len({row["config"]["reward"] for row in rows}) == 1 else "Reward"
    drawn = chart(f"{asked} against {name}", note, lines, x_label=quality[2].format(model=model), y_label="reward", whole=False)
    if moved := curves(rows, lambda row: row["metrics"].get("mmd base"), reward):
        drawn += chart(f"{asked} against how far it went", AWAY, moved, x_label="MMD to the plain model", y_label="reward", whole=False)
    return f"Reward against {quality[1]}", drawn


def costs(rows: list[Row]) -> list[tuple[str, str]]:
    """Quality against budget and against wall clock, at each strength; nothing where there is one budget or no quality.

    Of texts it is the reward: how likely the plain model finds them is no aim of itself.
    """
    quality = _quality(rows)
    if quality is None or len(budgets(rows)) < 2:
        return []
    key, _, label = quality
    aim = "lower is better"
    if key == "nll":
        key, label, aim = "reward", "reward, weighted mean", "higher is what was asked for"
    found = []
    # Budgets are multiples of each other; so are distances, once they fall by as much.
    wide = "" if max(budgets(rows)) < 8 * min(budgets(rows)) else "xy" if key in ("mmd", "frechet") else "x"
    for lam in sweep(rows) or [None]:
        mine = [row for row in rows if lam is None or row["config"]["lam"] == lam]
        at = "" if lam is None else f", λ = {setting(lam)}"
        for title, x, x_label in (
            ("budget", lambda row: float(row["budget"]), "network rows per group"),
            ("wall clock", SECONDS.of, "seconds of a run, all its groups"),
        ):
            lines = curves(mine, x, lambda row: row["metrics"].get(key))
            label = label.format(model=rows[0]["config"]["model"]["name"])
            note = f"{label[0].upper()}{label[1:]}{at}: {aim}. Means over seeds."
            short = label.split(",")[0]
            name = f"{short[0].upper()}{short[1:]} over {title}{at}"
            found.append((name, chart(name, note, lines, x_label=x_label, whole=False, log=wide)))
    return found
