"""Which rows stand in one table: those of one budget and strength, or those that took as long."""

from __future__ import annotations

from ..report.words import count, duration, setting
from .analysis import apart
from .columns import over_seeds
from .figures import SECONDS
from .rows import Row, budgets, methods, sweep


def sections(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """The tables: rows of the same budget, strength and noise of the reward, with what stands above them."""
    found = []
    for budget in budgets(rows):
        mine = [row for row in rows if row["budget"] == budget]
        title = f"{count(budget)} network rows per group"
        lams = sweep(rows)
        for lam in lams:
            found.append((f"{title}, λ = {setting(lam)}", [row for row in mine if row["config"]["lam"] == lam]))
        found += [] if lams else [(title, mine)]
    return [(title + more, part) for title, mine in found if mine for more, part in apart(mine)]


def timed(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """At each strength, of each method the rows at its largest budget that takes no longer than a time for which every method has a budget.

    Nothing where that is one budget for all: its table is there already.
    """
    found = []
    for lam in sweep(rows) or [None]:
        at = "" if lam is None else f", λ = {setting(lam)}"
        for more, mine in apart([row for row in rows if "failed" not in row and lam in (None, row["config"]["lam"])]):
            took = {method: _seconds([row for row in mine if row["method"] == method]) for method in methods(mine)}
            if len(took) < 2 or not all(took.values()):
                continue
            limit = min(max(seconds.values()) for seconds in took.values())
            # Of whom even the smallest budget takes longer, there is no line.
            chosen = {method: max(within) for method, by in took.items() if (within := [b for b, s in by.items() if s <= limit])}
            if len(set(chosen.values())) > 1:
                same = [row for row in mine if chosen.get(row["method"]) == row["budget"]]
                found.append((f"At equal time: the largest budget of each within {duration(limit)} a run{at}{more}", same))
    return found


def _seconds(rows: list[Row]) -> dict[int, float]:
    """Mean seconds of a run, by budget."""
    means = {budget: over_seeds([SECONDS.of(row) for row in rows if row["budget"] == budget]) for budget in budgets(rows)}
    return {budget: mean.value for budget, mean in means.items() if mean is not None}
