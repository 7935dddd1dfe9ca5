"""The figures and tables that a task asks for beside those of every bench: a number of the rows against a setting, a size or the steps of a run."""

from __future__ import annotations

import math

from ..report.svg import Line, chart
from ..report.words import setting
from ..spelling import method_spec
from . import front_report
from .columns import over_seeds
from .preset import Figure
from .rows import Row, budgets, methods, sweep


def figures(rows: list[Row]) -> tuple[Figure, ...]:
    """What the task of these rows wants drawn."""
    from .tasks import tasks

    name = rows[0]["task"]
    return tasks[name].make().figures if name in tasks else ()


def noise_of(row: Row) -> float | None:
    """σ of a reward `noisy:σ:…`; None of others."""
    kind, _, rest = row["config"]["reward"].partition(":")
    return float(rest.partition(":")[0]) if kind == "noisy" else None


def apart(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of one noise or one sum of rewards each, with what stands above them; a mean over noises would say nothing. One part where there are none."""
    if fronts := front_report.apart(rows):
        return fronts
    noises = sorted({noise for row in rows if (noise := noise_of(row)) is not None})
    if len(noises) < 2:
        return [("", rows)]
    return [(f", noise σ = {setting(noise)}", [row for row in rows if noise_of(row) == noise]) for noise in noises]


# -- figures --------------------------------------------------------------------------------------------------------------------------


def drawings(rows: list[Row]) -> list[str]:
    """The figures of the rows' task, those for which there are numbers."""
    found = []
    for figure in figures(rows):
        if shown := lines(rows, figure):
            x_label, whole = figure.x_label or figure.x, figure.x == "step"
            found.append(chart(figure.title, figure.note, shown, x_label=x_label, y_label=figure.y_label, whole=whole, log=figure.log))
    return found


def lines(rows: list[Row], figure: Figure) -> list[Line]:
    """The curves: one for each member of a family, or for each method and setting that is not the axis; means over all else."""
    made = [row for row in rows if "metrics" in row]
    if figure.x != "particles":
        made = [row for row in made if row["budget"] == max(budgets(rows))]
    if figure.x == "step":
        return _over_steps(made, figure.y)
    by: dict[str, dict[float | None, list[Row]]] = {}
    for method in methods(made):
        for row in (row for row in made if row["method"] == method):
            by.setdefault(_label(row, figure.x, made), {}).setdefault(_at(row, figure.x), []).append(row)
    places = sorted({at for found in by.values() for at in found if at is not None})
    out = []
    for label, found in by.items():
        means = {at: m.value for at, some in found.items() if (m := over_seeds([row["metrics"].get(figure.y) for row in some]))}
        if None in means and places:
            # What has no such setting is the same wherever it stands.
            means = {places[0]: means[None], places[-1]: means[None]}
        points = sorted((at, value) for at, value in means.items() if at is not None)
        if points:
            out.append(Line(label, [a for a, _ in points], [b for _, b in points]))
    return out


def _over_steps(rows: list[Row], y: str) -> list[Line]:
    """Curves over the steps of the chain, of a number that was recorded at every selection; `y/` stands for all members of a family."""
    by: dict[str, dict[float, list[float | None]]] = {}
    for method in methods(rows):
        for row in (row for row in rows if row["method"] == method):
            told = row.get("curves") or {}
            for name, values in told.items():
                if name == y or (y.endswith("/") and name.startswith(y)):
                    curve = by.setdefault(_label(row, "step", rows) if name == y else name.removeprefix(y), {})
                    for step, value in zip(told["step"], values, strict=True):
                        curve.setdefault(step, []).append(value)
    out = []
    for label, curve in by.items():
        means = [(step, over_seeds(values)) for step, values in sorted(curve.items())]
        if any(mean for _, mean in means):
            out.append(Line(label, [step for step, _ in means], [mean.value if mean else math.nan for _, mean in means]))
    return out


def _at(row: Row, x: str) -> float | None:
    """Where a row stands on an axis; None of a method without that setting."""
    if x == "particles":
        return row["budget"] / row["config"]["steps"]
    if x == "noise":
        return noise_of(row)
    if x == "lam":
        return row["config"]["lam"]
    found = row["config"]["method"].get(x)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _label(row: Row, x: str, rows: list[Row]) -> str:
    """The method as it was written, without the setting that is an axis of the figure, and its strength where there are several."""
    name, settings = method_spec(row["method"])
    kept = {key: value for key, value in settings.items() if key != x}
    label = row["method"] if kept == settings else name + (f"({', '.join(f'{k}={v}' for k, v in kept.items())})" if kept else "")
    return f"{label}, λ = {setting(row['config']['lam'])}" if x != "lam" and sweep(rows) else label


# -- tables ---------------------------------------------------------------------------------------------------------------------------


def beside(rows: list[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """What was measured at the selections of all runs alike: title, head and lines of a table for each list of members, a column per family.

    Means over the selections of a row and over the rows of a seed, whose probes share their random numbers; then over seeds ± standard errors.
    """
    by: dict[str, dict[str, dict[int, list[float | None]]]] = {}
    for row in rows:
        for name, values in (row.get("curves") or {}).items():
            family, slash, member = name.partition("/")
            if slash:
                by.setdefault(family, {}).setdefault(member, {}).setdefault(row["seed"], []).append(_mean(values))
    alike: dict[tuple[str, ...], list[str]] = {}
    for family, members in by.items():
        alike.setdefault(tuple(members), []).append(family)
    return [
        (
            f"At every selection: {', '.join(families)}",
            ["", *families],
            [[member, *[str(over_seeds([*map(_mean, by[f][member].values())]) or "–") for f in families]] for member in members],
        )
        for members, families in alike.items()
    ]


def _mean(values: list[float | None]) -> float | None:
    found = over_seeds(values)
    return None if found is None else found.value
