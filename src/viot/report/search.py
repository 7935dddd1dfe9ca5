"""A search tree, drawn: what was explored, how often and to what value, and with which probability each finished sample is drawn."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import lineage, weights
from ..particles import copies
from .gallery import group_label
from .svg import Line, Scale, chart, figure
from .words import count, number, percent, plural, table

if TYPE_CHECKING:
    from ..population import Population
    from ..tree import Tree

TREES = 4
#: Of larger trees so many leaves are drawn: the most probable ones, and an even sample of the others, to show where else the search went.
PROBABLE, OTHERS = 112, 48
#: Colours of the value scale (q1 … in style.css), and points of a curve.
COLOURS, POINTS = 8, 200
WIDTH, TOP, BOTTOM, LEFT = 1000, 14, 46, 34
#: Where the leaves stand, and from where to where the bars of their probabilities reach.
END, BAR, FULL = 772, 794, 916
THIN, THICK = 0.9, 5.4


# -- numbers --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What the draws of each group rest on, (G,) each.

    found      finished samples in the tree                      effective  1 / Σ p² over them by the tree's law; 0 where none is possible
    distinct   different samples among the K draws               noises     draws of x_T that the K draws descend from, of `tried`
    """

    found: Tensor
    effective: Tensor
    distinct: Tensor
    noises: Tensor
    tried: Tensor


def findings(population: Population) -> Findings:
    """Counted from the tree and the draws; needs a population with a tree."""
    tree = population.tree
    assert tree is not None
    group, leaves, g = tree.group, tree.leaves, tree.groups
    squares = torch.zeros(g, dtype=torch.float64).index_add(0, group[leaves], _law(tree)[leaves].square())
    return Findings(
        found=group[leaves].bincount(minlength=g),
        effective=torch.where(squares > 0, 1 / squares.clamp_min(1e-300), 0.0),
        distinct=torch.stack([(~copies(x0)).sum() for x0 in population.x0]),
        noises=lineage.distinct(population.roots),
        tried=group[tree.level == 1].bincount(minlength=g),
    )


def _law(tree: Tree) -> Tensor:
    """(N,) the probability that a draw passes through each node; 0 below nodes that lead nowhere."""
    return tree.log_law.exp().nan_to_num(nan=0.0)


def _values(tree: Tree) -> Tensor:
    """(N,) float64, −inf for what is not a number."""
    return torch.where(tree.value.isnan(), -math.inf, tree.value.double())


def _passed(tree: Tree) -> Tensor:
    """(N,) how many rollouts came through each node; inner nodes count one visit more, for their own birth."""
    return torch.where(tree.level < len(tree.steps) - 1, tree.visits - 1, tree.visits).clamp_min(1)


# -- the section ----------------------------------------------------------------------------------------------------------------------


def search(population: Population) -> str:
    """The trees of the first groups, each with its levels in a table; all but one folded away. Empty without a tree."""
    tree = population.tree
    if tree is None:
        return ""
    g, group, law = population.shape[0], tree.group, _law(tree)
    drawn = []
    for i in range(min(g, TREES)):
        label = group_label(population, i) if g > 1 else ""
        content = explored(tree, i, group, law, label) + levels(tree, i, group)
        drawn.append(content if i == 0 else f"<details><summary>{escape(label)}</summary>{content}</details>")
    more = f'<p class="more">and {count(g - TREES)} more groups in population.tree</p>' if g > TREES else ""
    return "".join(drawn) + more


def progress(population: Population) -> str:
    """How the search went on: the best reward over the samples found, and how the law spreads over them."""
    tree = population.tree
    assert tree is not None
    g, group, law, leaves = population.shape[0], tree.group, _law(tree), tree.leaves
    best, held = [], []
    for i in range(min(g, TREES)):
        mine = leaves[group[leaves] == i]
        if not len(mine):
            continue
        label = group_label(population, i)
        # Who follows the best child always comes to the same sample.
        if math.isfinite(tree.lam):
            held.append(_held(label, law[mine]))
        best.append(_records(label, _values(tree)[mine]))
    ends = [max((line.x[-1] for line in lines), default=1.0) for lines in (best, held)]
    drawn = [
        chart(
            "Best reward so far",
            "Of the finished samples, in the order in which the search found them.",
            best,
            x_label="finished samples",
            y_label="reward",
            x_range=(0.0, ends[0]),
        ),
        chart(
            "How the draws spread",
            "The probability that the most probable samples of the tree hold together: the slower it rises, the more samples share the draws.",
            held,
            x_label="most probable samples",
            y_label="probability",
            floor=0,
            ceiling=1,
            x_range=(0.0, ends[1]),
        ),
    ]
    more = f'<p class="more">The first {TREES} of {count(g)} groups.</p>' if g > TREES else ""
    # One chart alone would be stretched over the page.
    kind = "charts" if all(drawn) else "plots"
    return f'<div class="{kind}">{"".join(drawn)}</div>{more}'


def _records(label: str, reward: Tensor) -> Line:
    """The running maximum as stairs, whose corners are the records."""
    high = reward.cummax(0).values
    corners = [0, *(torch.nonzero(high.diff())[:, 0] + 1).tolist()]
    corners = [corners[i] for i in torch.linspace(0, len(corners) - 1, min(len(corners), POINTS)).round().long().tolist()]
    x, y = [], []
    for n, i in enumerate(corners):
        x += [i + 1.0, i + 1.0][: 2 if n else 1]
        y += [*([y[-1]] if n else []), float(high[i])]
    x.append(float(len(reward)))
    y.append(y[-1])
    # Before the first possible sample there is no best.
    return Line(label, x, [v if math.isfinite(v) else math.nan for v in y])


def _held(label: str, law: Tensor) -> Line:
    """The cumulative law, the most probable leaf first, up to where next to nothing is missing."""
    total = torch.cat([torch.zeros(1, dtype=torch.float64), law.sort(descending=True).values.cumsum(0)])
    last = max(1, int(torch.searchsorted(total, 0.999 * float(total[-1]))))
    at = torch.linspace(0, last, min(last + 1, POINTS)).round().long().unique()
    return Line(label, at.double().tolist(), total[at].tolist())


def levels(tree: Tree, g: int, group: Tensor) -> str:
    """A row for every level of one group's tree; folded where they are many."""

    children = tree.parent[tree.parent >= 0].bincount(minlength=len(tree))
    mine, rows, dead, values, passed = group == g, [], False, _values(tree), _passed(tree)
    for depth, steps in enumerate(tree.steps.tolist()):
        here = mine & (tree.level == depth)
        below, value = children[here], values[here]
        if not len(value):
            continue
        finite = value[value.isfinite()]
        dead |= len(finite) < len(value)
        with_any = below[below > 0].double()
        rows.append(
            [
                "noise" if not depth else f"step {steps}",
                count(len(value)),
                number(with_any.mean()) if len(with_any) else "–",
                number(passed[here].double().mean()),
                number(value.min()),
                number(finite.mean()) if len(finite) else "–",
                number(value.max()),
            ]
        )
    head = ["level", "nodes", "children each", "visits each", "lowest value", "mean value", "highest value"]
    why = "Children are counted where there are any. The value of a finished sample is its reward."
    why += " Values of −∞ are left out of the means." if dead else ""
    content = f'<p class="lede levels">{why}</p>{table(head, rows)}'
    return content if len(rows) <= 8 else f"<details><summary>Level by level</summary>{content}</details>"


# -- the drawing ----------------------------------------------------------------------------------------------------------------------


def chosen(leaves: Tensor, p: Tensor, value: Tensor, best: int) -> list[int]:
    """The leaves that are drawn, in the order in which they were found: all of a small tree; `p` and `value` are those of the leaves."""
    if len(leaves) <= PROBABLE + OTHERS:
        return leaves.tolist()
    # The two keys one after the other: by value where the probabilities are equal.
    ranked = value.argsort(descending=True, stable=True)
    ranked = ranked[p[ranked].argsort(descending=True, stable=True)]
    rest = ranked[PROBABLE:].sort().values
    even = rest[torch.linspace(0, len(rest) - 1, OTHERS).round().long()]
    kept = leaves[torch.cat([ranked[:PROBABLE], even])].tolist()
    return sorted({*kept, best})


def layout(parent: list[int], value: list[float], leaves: list[int]) -> tuple[dict[int, float], dict[int, list[int]]]:
    """The row of every leaf and of all that they descend from, and the children of each, such that no two lines cross.

    Leaves stand one row apart, a parent in the middle of its children, and siblings by falling value: so the likelier draw is above.
    """
    children: dict[int, list[int]] = {}
    top, seen = -1, set(leaves)
    for leaf in leaves:
        node = leaf
        while (above := parent[node]) >= 0:
            children.setdefault(above, []).append(node)
            if above in seen:
                break
            seen.add(above)
            node = above
        else:
            top = node
    for below in children.values():
        below.sort(key=lambda child: (-value[child], child))
    row: dict[int, float] = {}
    order, stack = [], [top]
    while stack:
        node = stack.pop()
        order.append(node)
        if node in children:
            stack += reversed(children[node])
        else:
            row[node] = float(len(row))
    for node in reversed(order):
        if node in children:
            row[node] = (row[children[node][0]] + row[children[node][-1]]) / 2
    return row, children


def explored(tree: Tree, g: int, group: Tensor, law: Tensor, label: str = "") -> str:
    """The tree of one group as a figure; `group` and `law` are those of all nodes."""
    leaves = tree.leaves
    leaves = leaves[group[leaves] == g]
    if not len(leaves):
        return ""
    path = tree.best_path(g)
    value = _values(tree)
    drawn = chosen(leaves, law[leaves], value[leaves], path[-1])
    parent, visits, values, p = tree.parent.tolist(), _passed(tree).tolist(), value.tolist(), law.tolist()
    row, children = layout(parent, weights.tilt(value, -1.0 if tree.lam < 0 else 1.0).tolist(), drawn)
    alive = values[path[-1]] > -math.inf
    bold = set(path) if alive else set()

    shade = _Shade(value[drawn])
    most = max(visits[node] for node in row if parent[node] >= 0)
    # Of a few visits even the most are no highway.
    busy = math.log(max(most, 32))
    tall = min(720.0, max(110.0, 16.0 * len(drawn)))
    height, gap = TOP + tall + BOTTOM, tall / len(drawn)
    steps = tree.steps.tolist()
    x = [LEFT + (END - LEFT) * step / steps[-1] for step in steps]
    at = {node: (x[depth], TOP + (row[node] + 0.5) * gap) for node, depth in zip(row, tree.level[list(row)].tolist(), strict=True)}

    def thickness(visits: int) -> float:
        return THIN + (THICK - THIN) * min(1.0, math.log(visits) / busy)

    # Lines of the same look make one path: a page of four large trees must stay small.
    looks: dict[tuple[float, str], list[str]] = {}
    for above, below in children.items():
        for node in below:
            if not (above in bold and node in bold):
                looks.setdefault((round(2 * thickness(visits[node])) / 2, shade(values[node])), []).append(_edge(*at[above], *at[node]))
    out = [_axis(x, steps, height)]
    out += [f'<path class="twig {look}" stroke-width="{wide:g}" d="{"".join(lines)}"/>' for (wide, look), lines in sorted(looks.items())]
    knots = []
    total = tree.parent[tree.parent >= 0].bincount(minlength=len(tree))
    for node, below in children.items():
        if int(total[node]) > 1:
            tip = _node_tip(node, parent[node] < 0, steps[int(tree.level[node])], values, visits, p, int(total[node]), len(below))
            look = "best" if node in bold else shade(values[node])
            knots.append(_knot(*at[node], look, 1.2 + 0.55 * thickness(visits[node]), tip))
    if alive:
        lines = "".join(_edge(*at[a], *at[b]) for a, b in itertools.pairwise(path))
        out.append(f'<path class="twig best" stroke-width="{max(2.8, thickness(visits[path[1]])):.1f}" d="{lines}"/>')
    out += knots
    out.append(_bars(drawn, leaves, at, values, p, gap, shade, path[-1] if alive else -1, height))
    note = _note(tree.lam, len(leaves), len(drawn), sum(p[leaf] for leaf in drawn), alive)
    legend = _legend(shade, most, thickness(most), any(values[node] == -math.inf for node in row), alive)
    title = "What the search explored" + (f", {label}" if label else "")
    return figure(title, note, legend, "".join(out), WIDTH, height, "tree search")


class _Shade:
    """Values to classes of the sequential scale, each for an equal share of the leaves that are drawn: rewards often have a long tail."""

    def __init__(self, drawn: Tensor) -> None:
        self.ordered = drawn[drawn.isfinite()].sort().values
        self.edges = [float(self.ordered[len(self.ordered) * i // COLOURS]) for i in range(1, COLOURS)] if len(self.ordered) else []

    def __call__(self, value: float) -> str:
        return f"q{1 + bisect_right(self.edges, value)}" if math.isfinite(value) else "never"

    def legend(self) -> str:
        """The scale with the lowest value, the middle one and the highest."""
        if not len(self.ordered):
            return ""
        low, middle, high = (number(float(self.ordered[i])) for i in (0, len(self.ordered) // 2, -1))
        if low == high:
            return f"value {low}"
        halves = [range(1, COLOURS // 2 + 1), range(COLOURS // 2 + 1, COLOURS + 1)]
        strips = [
            _swatch("".join(f'<path class="odds q{c}" stroke-width="8" d="M{9 * i} 5h9"/>' for i, c in enumerate(half)), 9 * COLOURS // 2)
            for half in halves
        ]
        return f"value {low} {strips[0]} {middle} {strips[1]} {high}"


def _edge(x0: float, y0: float, x1: float, y1: float) -> str:
    if abs(y1 - y0) < 0.05:
        return f"M{x0:.1f} {y0:.1f}H{x1:.1f}"
    bend = (x0 + x1) / 2
    return f"M{x0:.1f} {y0:.1f}C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"


def _knot(x: float, y: float, look: str, radius: float, tip: str) -> str:
    return f'<circle class="knot {look}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(tip)}</title></circle>'


def _node_tip(node: int, root: bool, step: int, values: list[float], visits: list[int], p: list[float], total: int, drawn: int) -> str:
    where = "the root, from which noise is drawn" if root else f"after step {step}"
    cut = f", {count(drawn)} of them drawn here" if drawn < total else ""
    share = "" if root else f", probability {percent(p[node])}"
    children = "1 child" if total == 1 else f"{count(total)} children"
    return f"{where}: value {number(values[node])}, {plural(visits[node], 'visit')}, {children}{cut}{share}"


def _bars(
    drawn: list[int], leaves: Tensor, at: dict[int, tuple[float, float]], values: list[float], p: list[float], gap: float, shade: _Shade,
    best: int, height: float,
) -> str:  # fmt: skip
    """A bar for every leaf that a draw can reach, with an axis of its own; beside the best its reward."""
    top = max(p[leaf] for leaf in drawn)
    scale, wide, size = Scale(0.0, top or 1.0, BAR, FULL), min(8.0, 0.72 * gap), min(2.6, 0.42 * gap)
    found = dict(zip(leaves.tolist(), range(1, len(leaves) + 1), strict=True))
    bottom, out = height - BOTTOM + 6, []
    marks = [(0.0, "")] + ([(top, percent(top))] if top > 0 else [])
    for share, name in marks:
        out.append(f'<line class="grid" x1="{scale(share):.1f}" x2="{scale(share):.1f}" y1="{TOP - 4}" y2="{bottom:.1f}"/>')
        out.append(f'<text class="tick" x="{scale(share):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{name}</text>')
    out.append(f'<text class="label" x="{FULL}" y="{height - 3:.1f}" text-anchor="end">probability →</text>')
    # The best one last, over all lines: everybody looks for it.
    for leaf in sorted(drawn, key=lambda leaf: leaf == best):
        (x, y), look = at[leaf], "best" if leaf == best else shade(values[leaf])
        tip = f"reward {number(values[leaf], 5)}, probability {percent(p[leaf])}, finished sample {count(found[leaf])} of {count(len(leaves))}"
        length = scale(p[leaf]) - BAR
        bar = f'<path class="odds {look}" stroke-width="{wide:.1f}" d="M{BAR} {y:.1f}h{length:.2f}"/>' if length > 0.3 else ""
        radius = 5.0 if leaf == best else size
        out.append(f'<g>{bar}<circle class="knot {look}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/><title>{escape(tip)}</title></g>')
    if best >= 0:
        out.append(f'<text class="name" x="{FULL + 10}" y="{at[best][1] + 4.2:.1f}">{number(values[best])}</text>')
    return "".join(out)


def _axis(x: list[float], steps: list[int], height: float) -> str:
    """A rule at every level, with the steps done there; only as many labels as have room."""
    bottom, every = height - BOTTOM + 6, max(1, -(-len(steps) // 20))
    last = len(steps) - 1
    shown = [i for i in range(len(steps)) if (i % every == 0 and last - i >= every) or i == last]
    out = []
    for i in shown:
        out.append(f'<line class="grid" x1="{x[i]:.1f}" x2="{x[i]:.1f}" y1="{TOP - 4}" y2="{bottom:.1f}"/>')
        out.append(f'<text class="tick" x="{x[i]:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{steps[i] if i else "noise"}</text>')
    return "".join(out) + f'<text class="label" x="{END}" y="{height - 3:.1f}" text-anchor="end">steps done →</text>'


def _legend(shade: _Shade, most: int, thick: float, never: bool, alive: bool) -> str:
    items = [shade.legend()]
    if never:
        dashes = '<path class="twig never" stroke-width="1.4" d="M1 5H27"/>'
        items.append(f"{_swatch(dashes)}value −∞, never drawn")
    if most > 1:
        wedge = f'<path class="wedge" d="M0 4.5L36 {5 - thick / 2:.1f}V{5 + thick / 2:.1f}L0 5.5z"/>'
        items.append(f"1 {_swatch(wedge, 36)} {plural(most, 'visit')}")
    if alive:
        best = '<path class="twig best" stroke-width="2.8" d="M1 5H27"/><circle class="knot best" cx="23" cy="5" r="4.2"/>'
        items.append(f"{_swatch(best)}the best, with its reward")
    return f'<ul class="legend">{"".join(f"<li>{item}</li>" for item in items if item)}</ul>'


def _swatch(content: str, wide: int = 28) -> str:
    return f'<svg class="swatch" style="width:{wide}px" viewBox="0 0 {wide} 10" aria-hidden="true">{content}</svg>'


def _note(lam: float, found: int, drawn: int, held: float, alive: bool) -> str:
    text = (
        f"From noise to {plural(found, 'finished sample')}: each line is a stretch of the chain, the thicker the more often the search came "
        f"through, coloured by its value (each colour for an equal share of the samples); siblings stand in the order of their values. "
    )
    if not alive:
        text += "No finished sample is possible: all have a reward of −∞."
    elif math.isinf(lam):
        text += "The bar is where one comes to by always following the best child."
    else:
        text += "Bars at the right are the probabilities with which the tree draws each sample."
    if drawn < found:
        which = "of highest reward" if math.isinf(lam) else "most probable"
        text += f" Only {count(drawn)} of {count(found)} finished samples are shown: the {PROBABLE} {which}, the best, and an even sample of the others."
        text += "" if math.isinf(lam) else f" They hold {percent(held)} of the probability."
    return text
