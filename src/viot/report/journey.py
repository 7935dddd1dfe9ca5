"""What happened on the way: a chart of each statistic over the selections, and the genealogy."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import lineage
from .gallery import group_label
from .search import progress
from .svg import Line, chart
from .tree import tree
from .words import count

if TYPE_CHECKING:
    from ..population import Population

TREES = 4


def line(label: str, x: list[float], values: Tensor) -> Line:
    """The mean over the groups of (points, G) values, with the band from lowest to highest."""
    values = torch.where(values.isfinite(), values.double(), torch.nan)
    mean = values.nanmean(-1).tolist()
    if values.shape[1] == 1:
        return Line(label, x, mean)
    low, high = values.nan_to_num(nan=math.inf).amin(-1), values.nan_to_num(nan=-math.inf).amax(-1)
    return Line(label, x, mean, low.tolist(), high.tolist())


def charts(population: Population) -> str:
    """ESS, rewards, descent, offspring variance and, where the method has them, absorption and λ, selection by selection."""
    if population.tree is not None:
        return progress(population)
    trace, k = population.trace, population.ancestors.shape[-1]
    steps = trace.get("step", torch.zeros(0)).tolist()
    if not steps:
        return '<p class="lede">This method makes no selection: every particle goes its own way, and is scored at the end.</p>'
    total = float(population.config.get("steps") or steps[-1] + 1)
    span, end = (0.0, total), [*steps, total]

    def with_end(name: str, last: Tensor) -> Tensor:
        return torch.cat([trace[name], last[None]])

    def has(name: str) -> bool:
        return name in trace and bool(trace[name].isfinite().any())

    whole = population.exact and population.shape[1] == k
    drawn = []
    if has("ess"):
        note = "How many equal particles the masses of each selection are worth" + (", and the weights at the end." if whole else ".")
        values = with_end("ess", population.ess) if whole else trace["ess"]
        drawn.append(
            chart(
                "Effective sample size",
                note,
                [line("ESS", end if whole else steps, values)],
                y_label="particles",
                floor=0,
                ceiling=k,
                x_range=span,
            )
        )
    if has("reward_mean") and has("reward_max"):
        lines = [
            line("highest", end, with_end("reward_max", population.rewards.amax(-1))),
            line(
                "mean", end, with_end("reward_mean", torch.where(population.rewards.isfinite(), population.rewards, torch.nan).nanmean(-1))
            ),
        ]
        drawn.append(
            chart(
                "Reward",
                "Of the clean guesses at each selection, and of the finished samples at the end.",
                lines,
                y_label="reward",
                x_range=span,
            )
        )
    lines = [line("first ancestors still represented", [0.0, *steps], lineage.surviving(population.ancestors))]
    if has("distinct_parents"):
        lines.insert(0, line("particles that became parents", steps, trace["distinct_parents"]))
    drawn.append(
        chart(
            "Descent",
            "How many have children at each selection, and how many lineages go on.",
            lines,
            y_label="particles",
            floor=0,
            ceiling=k,
            x_range=span,
        )
    )
    if has("offspring_variance"):
        note = "Mean squared distance of the numbers of children from what the masses ask for: lower is better."
        drawn.append(
            chart(
                "Offspring variance",
                note,
                [line("variance", steps, trace["offspring_variance"])],
                y_label="children²",
                floor=0,
                x_range=span,
            )
        )
    if has("absorption"):
        lines = [line("absorption", steps, trace["absorption"])]
        drawn.append(
            chart(
                "Absorption",
                "The expected share of particles that die at each selection.",
                lines,
                y_label="share",
                floor=0,
                ceiling=1,
                x_range=span,
            )
        )
    if has("lam") and has("absorption"):
        drawn.append(
            chart(
                "Path strength λₖ",
                "The strength that each selection applied; it never changes the target.",
                [line("λₖ", steps, trace["lam"])],
                y_label="λₖ",
                x_range=span,
            )
        )
    bands = (
        '<p class="more">Lines are means over the groups, bands reach from the lowest to the highest.</p>'
        if population.shape[0] > 1
        else ""
    )
    return f'<div class="charts">{"".join(drawn)}</div>{bands}'


def trees(population: Population) -> str:
    """The genealogies of the first groups; all but one folded away."""
    s, g, k = population.ancestors.shape
    if not s or k < 2:
        return ""
    steps, total = population.trace["step"].tolist(), int(population.config.get("steps") or 0)
    final = lineage.roots(population.ancestors)[-1]
    # A population that was cut down by `best` or `draw` no longer says which of the last generation each weight belongs to.
    whole = final.shape == population.roots.shape and torch.equal(final, population.roots) and population.exact
    drawn = []
    for i in range(min(g, TREES)):
        weights = population.weights[i] if whole else None
        figure = tree(population.ancestors[:, i], steps, total, weights, group_label(population, i) if g > 1 else "")
        drawn.append(figure if i == 0 else f"<details><summary>{escape(group_label(population, i))}</summary>{figure}</details>")
    more = f'<p class="more">and {count(g - TREES)} more groups</p>' if g > TREES else ""
    return "".join(drawn) + more
