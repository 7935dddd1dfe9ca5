"""Fronts between two rewards as tables and figures: a point for each weight, a curve and a hypervolume for each method."""

from __future__ import annotations

import torch

from ..metrics.front import hypervolume
from ..report.svg import Line, chart
from ..report.words import count, fixed, setting
from ..rewards.combine import spelled
from .columns import Mean, over_seeds
from .front import Front
from .rows import Row, budgets, methods

Point = tuple[float, float]


def front_of(rows: list[Row]) -> Front | None:
    """The front that these rows draw; None of a bench that has none."""
    told = rows[0]["config"]["reading"].get("front") if rows else None
    steered = {row["config"]["reward"] for row in rows}
    if told is None or len(steered) < 2 or not all(reward.startswith("sum:") for reward in steered):
        return None
    return Front((told["rewards"][0], told["rewards"][1]), (told["point"][0], told["point"][1]))


def apart(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of one weight each, with what stands above them; nothing of a bench without a front."""
    front = front_of(rows)
    if front is None:
        return []
    every = sorted({weight(row, front) for row in rows})
    return [(f", w = {setting(w)}", [row for row in rows if weight(row, front) == w]) for w in every]


def weight(row: Row, front: Front) -> float:
    """What the first of the two rewards counts in the sum that steered."""
    return {name: w for w, name in spelled(row["config"]["reward"].partition(":")[2])}.get(front.rewards[0], 0.0)


def points(rows: list[Row], front: Front, pick: bool = False) -> dict[int, dict[float, Point]]:
    """Of one method at one budget: seed -> weight -> both rewards of its answer."""
    found: dict[int, dict[float, Point]] = {}
    for row in sorted(rows, key=lambda row: weight(row, front)):
        told = [row.get("metrics", {}).get(front.key(name, pick)) for name in front.rewards]
        if told[0] is not None and told[1] is not None:
            found.setdefault(row["seed"], {})[weight(row, front)] = (told[0], told[1])
    return found


def volume(rows: list[Row], front: Front, whole: int, pick: bool = False) -> Mean | None:
    """The hypervolume of one method at one budget, over the seeds that have all (`whole`) weights: a front of fewer points has less of it."""
    fronts = [list(by.values()) for by in points(rows, front, pick).values() if len(by) == whole]
    return over_seeds([hypervolume(torch.tensor(each), front.point) for each in fronts])


def tables(rows: list[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """For each budget its title, head and lines: hypervolumes, and both rewards at each weight."""
    front = front_of(rows)
    if front is None:
        return []
    a, b = front.rewards
    every = sorted({weight(row, front) for row in rows})
    head = ["method", "hypervolume", "of the best", *[f"w = {setting(w)}" for w in every]]
    found = []
    for budget in budgets(rows):
        body = []
        for method in methods(rows):
            mine = [row for row in rows if row["budget"] == budget and row["method"] == method]
            seeds = points(mine, front).values()
            cells = [_pair([by[w] for by in seeds if w in by]) for w in every]
            body.append([method, *[_said(volume(mine, front, len(every), pick)) for pick in (False, True)], *cells])
        found.append((f"Front, {count(budget)} network rows per group: {a} / {b} by weight", head, body))
    return found


def _said(mean: Mean | None) -> str:
    return "–" if mean is None else str(mean)


def _pair(told: list[Point]) -> str:
    """Means over seeds; their errors stand in the tables of each weight."""
    means = [over_seeds([point[i] for point in told]) for i in (0, 1)]
    return " / ".join("–" if mean is None else fixed(mean.value, 2) for mean in means)


def says(rows: list[Row]) -> list[tuple[str, str]]:
    """What the columns of `tables` say."""
    front = front_of(rows)
    if front is None:
        return []
    (a, b), (x, y) = front.rewards, front.point
    volume = (
        f"the area that the front's points, weighted means of {a} and {b} at each weight, dominate above ({setting(x)}, {setting(y)}): the more the "
        f"better, to be compared at the same weights only. Weighted sums find the convex part of a front"
    )
    return [
        ("hypervolume", volume),
        ("w = …", f"weighted means of {a} and {b} where the first weighs w and the second 1 − w"),
        ("of the best", "the same of each group's best by the sum"),
    ]


def figures(rows: list[Row]) -> list[tuple[str, str]]:
    """One reward against the other, a curve for each method through its weights; for each budget."""
    front = front_of(rows)
    if front is None:
        return []
    (a, b), found = front.rewards, []
    for budget in budgets(rows):
        lines = []
        for method in methods(rows):
            seeds = points([row for row in rows if row["budget"] == budget and row["method"] == method], front).values()
            every = sorted({w for by in seeds for w in by})
            means = [[over_seeds([by[w][i] for by in seeds if w in by]) for i in (0, 1)] for w in every]
            at = [(x.value, y.value) for x, y in means if x and y]
            lines += [Line(method, [x for x, _ in at], [y for _, y in at])] if at else []
        note = f"Up and to the right is better. A curve goes through a method's weights, from all on {b} to all on {a}. Means over seeds."
        drawing = chart(f"{b} against {a}", note, lines, x_label=f"{a}, weighted mean", y_label=f"{b}, weighted mean", whole=False)
        found.append((f"Front at {count(budget)} network rows per group", drawing))
    return found
