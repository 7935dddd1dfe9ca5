"""How a method that learns its proposal learned it, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .journey import line
from .svg import chart
from .words import number, percent, plural, table

if TYPE_CHECKING:
    from ..population import Population


def training(population: Population) -> str:
    """What the rounds were worth: two charts and a table; nothing where a method does not learn."""
    known = population.training
    if not known or not len(known.get("ess", ())):
        return ""
    rounds, groups = known["ess"].shape
    at = [float(i + 1) for i in range(rounds)]
    several = f", mean over {plural(groups, 'group')} and range" if groups > 1 else ""
    drawn = [
        chart(
            "Evenness of the paths",
            f"Effective share of a round's independent paths; 1 is a sampler of the target itself{several}.",
            [line("effective share", at, known["ess"])],
            x_label="round",
            y_label="share",
            floor=0,
            ceiling=1,
        ),
        chart(
            "Distance left",
            f"KL of the weighted paths from the unweighted ones, in nats{several}. A round goes as far as its budget allows.",
            [line("KL", at, known["kl"])],
            x_label="round",
            y_label="nats",
            floor=0,
        ),
    ]

    def mean(name: str, i: int) -> float:
        values = known[name][i]
        return float(values[values.isfinite()].mean()) if bool(values.isfinite().any()) else float("nan")

    rows = [
        [
            f"{i + 1}",
            percent(mean("ess", i)),
            number(mean("kl", i)),
            number(mean("tau", i)),
            number(mean("moved", i)),
            number(mean("log_z", i)),
        ]
        for i in range(rounds)
    ]
    head = ["round", "effective share", "KL left, nats", "tempered to τ", "sampler moved, nats", "log Z"]
    return f'<div class="charts">{"".join(drawn)}</div>' + table(head, rows)
