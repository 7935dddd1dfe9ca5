"""The genealogy of a run, drawn: every particle a line from its parent, those that lead to the answer bold, coloured by their root."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import lineage
from .svg import figure
from .words import count, listed, plural

#: More leaves than this are not told apart on a page; the drawing then takes an even sample of them.
LIVING, ENDED = 128, 640
WIDTH, TOP, BOTTOM, LEFT, RIGHT = 1000, 14, 44, 46, 60


def layout(ancestors: Tensor) -> Tensor:
    """(S+1, K) the place of every particle in its generation, such that no two lines cross: children stand in the order of their parents.

    ancestors (S, K) of one group.
    """
    k = ancestors.shape[-1]
    places = [torch.arange(k)]
    for parents in ancestors.long():
        place = torch.empty(k, dtype=torch.long)
        place[places[-1][parents].argsort(stable=True)] = torch.arange(k)
        places.append(place)
    return torch.stack(places)


def tree(ancestors: Tensor, steps: list[int], total: int, weights: Tensor | None = None, label: str = "") -> str:
    """The genealogy of one group as a figure.

    ancestors (S, K), the step of each of the S selections, T in all; weights (K,) of the final particles where the answer holds them all.
    """
    s, k = ancestors.shape
    place, parents = layout(ancestors), ancestors.long()
    living, ended = _leaves(parents)
    shown_living, shown_ended = _thin(living, place, LIVING), _thin(ended, place, ENDED)
    bold = _marked(parents, shown_living)
    faint = _marked(parents, shown_ended)
    roots = lineage.roots(ancestors[:, None])[:, 0]
    height = min(640, max(220, 9 * min(k, LIVING)))
    x = [LEFT + (WIDTH - LEFT - RIGHT) * i / (s + 1) for i in range(s + 2)]
    y = (TOP + (place.double() + 0.5) * (height - TOP - BOTTOM) / k).tolist()
    out = [_axis(x, steps, total, height)]
    # Generation i + 1 stands at selection i; the last stretch leads to the answer.
    grey = [_edge(x[i], y[i][p], x[i + 1], y[i + 1][c]) for i, c, p in _edges(parents, faint) if not bold[i + 1, c]]
    out.append(f'<path class="faint" d="{"".join(grey)}"/>')
    ends = "".join(f"M{x[i]:.1f} {y[i][c]:.1f}h0" for i, c in shown_ended)
    out.append(f'<path class="ends" d="{ends}"/>')
    survivors = roots[-1][torch.tensor([c for _, c in shown_living])].unique().tolist()
    survivors.sort(key=lambda root: y[0][root])
    paths: dict[int, list[str]] = {root: [] for root in survivors}
    for i, c, p in _edges(parents, bold):
        paths[int(roots[i + 1, c])].append(_edge(x[i], y[i][p], x[i + 1], y[i + 1][c]))
    for _, c in shown_living:
        paths[int(roots[-1, c])].append(f"M{x[s]:.1f} {y[s][c]:.1f}H{x[s + 1]:.1f}")
    family = {root: int((roots[-1] == root).sum()) for root in survivors}
    for n, root in enumerate(survivors):
        tip = f"<title>from particle {root}: {family[root]} of {k} in the answer</title>"
        out.append(f'<path class="kin s{n % 6 + 1}" d="{"".join(paths[root])}">{tip}</path>')
        out.append(f'<circle class="mark f{n % 6 + 1}" cx="{x[0]:.1f}" cy="{y[0][root]:.1f}" r="4">{tip}</circle>')
    if weights is not None:
        out.append(_weights(weights, shown_living, roots, survivors, x[-1], y[s]))
    out.append(_names(survivors, y[0], x[0]))
    title = "Lineages" + (f", {label}" if label else "")
    return figure(
        title,
        _note(k, int(lineage.distinct(roots[-1])), weights is not None, (shown_living, living), (shown_ended, ended)),
        "",
        "".join(out),
        WIDTH,
        height,
        "tree",
    )


def _leaves(parents: Tensor) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(generation, particle) of the final particles, and of those that left no child."""
    s, k = parents.shape
    ended = []
    for i in range(s):
        childless = torch.ones(k, dtype=torch.bool)
        childless[parents[i]] = False
        ended += [(i, c) for c in torch.nonzero(childless)[:, 0].tolist()]
    return [(s, c) for c in range(k)], ended


def _thin(leaves: list[tuple[int, int]], place: Tensor, most: int) -> list[tuple[int, int]]:
    """At most so many of the leaves, evenly spread over the drawing."""
    if len(leaves) <= most:
        return leaves
    at = place.tolist()
    ordered = sorted(leaves, key=lambda leaf: (leaf[0], at[leaf[0]][leaf[1]]))
    return [ordered[i] for i in torch.linspace(0, len(ordered) - 1, most).round().long().unique().tolist()]


def _marked(parents: Tensor, leaves: list[tuple[int, int]]) -> Tensor:
    """(S+1, K) bool: the leaves and all of their ancestors."""
    s, k = parents.shape
    marked = torch.zeros(s + 1, k, dtype=torch.bool)
    for i, c in leaves:
        marked[i, c] = True
    for i in range(s - 1, -1, -1):
        marked[i, parents[i][marked[i + 1]]] = True
    return marked


def _edges(parents: Tensor, marked: Tensor) -> list[tuple[int, int, int]]:
    """(generation of the parent, child, parent) of every line into a marked particle."""
    return [(i, c, int(parents[i, c])) for i in range(len(parents)) for c in torch.nonzero(marked[i + 1])[:, 0].tolist()]


def _edge(x0: float, y0: float, x1: float, y1: float) -> str:
    if abs(y1 - y0) < 0.05:
        return f"M{x0:.1f} {y0:.1f}H{x1:.1f}"
    bend = (x0 + x1) / 2
    return f"M{x0:.1f} {y0:.1f}C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"


def _axis(x: list[float], steps: list[int], total: int, height: float) -> str:
    """A rule at every selection, with its step; only as many labels as have room."""
    bottom = height - BOTTOM + 6
    every = max(1, -(-len(steps) // 24))
    marks = [(x[0], "start"), *((x[i + 1], str(step)) for i, step in enumerate(steps) if i % every == 0), (x[-1], f"{total}")]
    rules = "".join(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 4}" y2="{bottom}"/>' for at, _ in marks)
    names = "".join(f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{name}</text>' for at, name in marks)
    return rules + names + f'<text class="label" x="{x[-1]:.1f}" y="{height - 4:.0f}" text-anchor="end">selections, by step →</text>'


def _weights(weights: Tensor, living: list[tuple[int, int]], roots: Tensor, survivors: list[int], x: float, y: list[float]) -> str:
    """A bar at the end of every final particle, as long as its weight is large."""
    top = max(float(weights.nan_to_num(nan=0.0).max()), 1e-300)
    out = []
    for _, c in living:
        w = float(weights[c].nan_to_num(nan=0.0))
        style = survivors.index(int(roots[-1, c])) % 6 + 1
        out.append(f'<path class="weight s{style}" d="M{x + 4:.1f} {y[c]:.1f}h{1 + 46 * w / top:.1f}"><title>weight {w:.3g}</title></path>')
    return "".join(out)


def _names(survivors: list[int], y: list[float], x: float) -> str:
    """The root's number at its beginning, where there is room for it."""
    out, last = [], -100.0
    for root in survivors:
        if y[root] - last >= 13:
            out.append(f'<text class="tick" x="{x - 9:.1f}" y="{y[root] + 4:.1f}" text-anchor="end">{root}</text>')
            last = y[root]
    return "".join(out)


def _note(k: int, survivors: int, weighted: bool, living: tuple[list, list], ended: tuple[list, list]) -> str:
    text = (
        f"Each line is a particle, from its birth at one selection to its end at another. Bold lines lead to the answer, one colour per "
        f"first ancestor (numbered at the left): {plural(survivors, 'lineage')} of {count(k)}."
    )
    text += " Bars at the right are the final weights." if weighted else ""
    cut = ((living, "final particles"), (ended, "lines that ended"))
    parts = [f"{count(len(drawn))} of {count(len(every))} {what}" for (drawn, every), what in cut if len(drawn) < len(every)]
    text += f" Only an even sample is drawn: {listed(parts)}." if parts else ""
    return text
