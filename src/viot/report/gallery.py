"""The samples on the page: pictures or points, by weight, and beside them those of highest reward. Texts have a file of their own."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..prompts import short
from .pictures import data_uri, order
from .svg import histogram, scatter
from .words import count, fixed, number, percent, places, plural

if TYPE_CHECKING:
    from ..population import Population

#: Shown per group when there is one group, a few, or many; and the most groups that are shown at all.
PER_GROUP, GROUPS, BEST, POINTS = {1: 64, 4: 32, 8: 16}, 8, 12, 2000
#: What the model's own checker said, on the picture that it said it of.
MARKED = '<span class="flag" title="flagged by the model\'s own safety checker">nsfw</span>'


def group_label(population: Population, i: int) -> str:
    """group 4, or with its prompt where the record knows it."""
    prompts = population.prompts
    return f"group {population.indices[i]}" + (f": {short(prompts[i])}" if prompts else "")


def heading(population: Population, i: int) -> str:
    """What a group is about: the prompt, or the group's number, or both where several groups follow one prompt."""
    prompts, group = population.prompts, f"group {population.indices[i]}"
    if not prompts:
        return group
    return prompts[i] if prompts.count(prompts[i]) == 1 else f"{prompts[i]} ({group})"


def gallery(population: Population) -> str:
    """The section's content, for any kind of samples."""
    if population.modality == "tensor":
        return _plots(population)
    if population.modality == "text":
        from .text import texts

        return texts(population)
    try:
        if population.modality in ("images", "video") and (population.prompts or population.unsteered is not None):
            from .cards import cards

            return cards(population)
        return _columns(population)
    except ImportError as error:
        return f'<p class="missing">The pictures are missing here: {escape(str(error))}</p>'


def uniform(population: Population) -> bool:
    """Are all the living particles of each group of the same weight?"""
    w = population.weights
    return bool(((w.amax(-1) - w.amin(-1)) < 1e-9).all())


def _columns(population: Population) -> str:
    g, k = population.shape
    per_group = next((n for most, n in PER_GROUP.items() if g <= most), 16)
    by_weight, w = order(population), population.weights
    blocks = []
    for i in range(min(g, GROUPS)):
        shown = by_weight[i, :per_group].tolist()
        head = f"<h3>{escape(group_label(population, i))}</h3>" if g > 1 else ""
        more = f'<p class="more">and {plural(k - len(shown), "more particle")} in population.samples</p>' if k > len(shown) else ""
        blocks.append(head + tiles(population, [(i, j) for j in shown], w) + more)
    if g > GROUPS:
        blocks.append(f'<p class="more">and {plural(g - GROUPS, "more group")}</p>')
    flat = uniform(population)
    if flat:
        return f'<p class="lede">Equally weighted, the highest reward first.</p>{"".join(blocks)}'
    best = population.rewards.nan_to_num(nan=-math.inf).flatten().argsort(descending=True, stable=True)[: min(BEST, g * k)].tolist()
    return (
        f'<div class="columns"><div class="by-weight"><h3>By weight</h3><p class="lede">The answer: read averages from these. The bar is the '
        f"weight, relative to the largest.</p>{''.join(blocks)}</div>"
        f'<aside class="by-reward"><h3>By reward</h3><p class="lede">The {count(len(best))} best: pick from these.</p>'
        f"{tiles(population, [divmod(b, k) for b in best], w, grouped=g > 1)}</aside></div>"
    )


def tiles(population: Population, which: list[tuple[int, int]], w: Tensor, grouped: bool = False, largest: int = 320) -> str:
    """The particles (group, position) as pictures of at most `largest` pixels, each with its reward and weight; w (G, K)."""
    tops = w.amax(-1).tolist()
    best = population.rewards.nan_to_num(nan=-math.inf).argmax(-1).tolist()
    flat = uniform(population)
    items = []
    decimals = places(population.rewards.flatten().tolist())
    flagged = population.flagged
    for i, j in which:
        reward, weight = float(population.rewards[i, j]), float(w[i, j])
        of = f" of {group_label(population, i)}" if population.shape[0] > 1 else ""
        tip = f"particle {j}{of}: reward {number(reward, 5)}, weight {percent(weight)}"
        share = weight / tops[i] if tops[i] else 0.0
        bar = "" if flat else f'<i style="--share:{share:.3f}"></i>'
        numbers = f"<b>{fixed(reward, decimals)}</b>" + ("" if flat else f"<span>{percent(weight)}</span>")
        numbers += f"<em>{escape(group_label(population, i).partition(':')[0])}</em>" if grouped else ""
        kind = "tile best" if j == best[i] else "tile"
        flag = MARKED if bool(flagged[i, j]) else ""
        items.append(
            f'<li class="{kind}" title="{escape(tip)}">{_content(population.samples[i][j], tip, largest)}{flag}<div>{numbers}{bar}</div></li>'
        )
    legend = "" if flat else " and weight"
    size = "" if max(population.samples.shape[-2:]) <= 96 else " large"
    return f'<ol class="tiles{size}" aria-label="samples with reward{legend}">{"".join(items)}</ol>'


def _content(sample: Any, tip: str, largest: int) -> str:
    size = ' class="pixels"' if max(sample.shape[-2:]) <= 128 else ""
    return f'<img{size} src="{data_uri(sample, largest)}" alt="{escape(tip)}">'


def _plots(population: Population) -> str:
    """Points in space: a weighted histogram for one dimension, else the first two coordinates."""
    g = population.shape[0]
    drawn = []
    for i in range(min(g, 4)):
        points = population.samples[i].flatten(1).double()
        w = population.weights[i]
        title = group_label(population, i).capitalize() if g > 1 else "Samples"
        if points.shape[1] == 1:
            note = "Filled: the weighted answer. Line: the same particles, unweighted."
            drawn.append(histogram(title, note, points[:, 0].tolist(), w.tolist()))
            continue
        best = int(population.rewards[i].nan_to_num(nan=-math.inf).argmax())
        kept = order(population)[i, :POINTS].tolist()
        kept = kept if best in kept else [*kept, best]
        top = float(w.max()) or 1.0
        rows = [
            (
                *points[j, :2].tolist(),
                float(w[j]) / top,
                f"particle {j}: reward {number(float(population.rewards[i, j]), 5)}, weight {percent(float(w[j]))}",
            )
            for j in kept
        ]
        note = f"Area is weight; the ring marks the highest reward, {number(float(population.rewards[i, best]))}."
        note += f" The first two of {points.shape[1]} coordinates." if points.shape[1] > 2 else ""
        note += f" The {count(len(kept))} heaviest of {count(len(points))}." if len(kept) < len(points) else ""
        drawn.append(scatter(title, note, rows, kept.index(best)))
    more = f'<p class="more">and {plural(g - 4, "more group")}</p>' if g > 4 else ""
    return f'<div class="plots">{"".join(drawn)}</div>{more}'
