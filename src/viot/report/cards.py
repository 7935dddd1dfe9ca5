"""One card per prompt: the best by reward, what the model gives by itself, and good ones that differ, side by side."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .files import kept, name_of, ranked
from .gallery import MARKED, heading, tiles, uniform
from .picks import best, diverse
from .pictures import data_uri, order
from .words import count, fixed, number, places, plural

if TYPE_CHECKING:
    from ..population import Population

#: Prompts on a page, and pictures in all of the foldouts together: a page of many prompts must stay one that opens.
CARDS, FOLDED = 64, 384
#: Up to so many prompts the two main pictures of a card are large.
FEW = 6


def cards(population: Population) -> str:
    """The section's content for populations of pictures that follow prompts, or that have unsteered draws beside them."""
    g, k = population.shape
    shown = min(g, CARDS)
    folded = min(k, FOLDED // g)
    beside = "" if population.unsteered is None else " what the model gives by itself, unselected and from the same seed;"
    body = "".join(_card(population, i, folded if folded >= 8 else 0) for i in range(shown))
    more = f'<p class="more">and {plural(g - shown, "more prompt")} in images/ and population.samples</p>' if g > shown else ""
    lede = f"The best by reward;{beside} and good ones that differ: from other first ancestors where there are any, and far apart in their pixels."
    return f'<p class="lede">{lede}</p><div class="cards{" few" if g <= FEW else ""}">{body}</div>{more}'


def pick(population: Population, i: int, j: int, largest: int, decimals: int, file: str = "", name: str = "") -> str:
    """A picture with its reward, and a name where it has neighbours of other names."""
    reward = float(population.rewards[i, j])
    tip = f"particle {j}: reward {number(reward, 5)}" + (f", {file}" if file else "")
    sample = population.samples[i][j]
    pixels = ' class="pixels"' if max(sample.shape[-2:]) <= 128 else ""
    flag = MARKED if bool(population.flagged[i, j]) else ""
    return (
        f'<li class="tile" title="{escape(tip)}"><img{pixels} src="{data_uri(sample, largest)}" alt="{escape(tip)}">{flag}'
        f"<div><b>{fixed(reward, decimals)}</b>{f'<em>{escape(name)}</em>' if name else ''}</div></li>"
    )


def _card(population: Population, i: int, folded: int) -> str:
    large = population.shape[0] <= FEW
    decimals = places(population.rewards.flatten().tolist())
    rank = {j: n for n, j in enumerate(ranked(population)[i, : kept(population)].tolist())}

    def show(j: int, largest: int) -> str:
        return pick(population, i, j, largest, decimals, name_of(population, i, rank[j]) if j in rank else "")

    top, others, plain = best(population, i), diverse(population, i), population.unsteered
    columns = [_column("one best", "Best by reward", show(top, 400 if large else 208))]
    if plain is not None:
        said = "Unsteered" if plain.shape[1] == 1 else f"Unsteered, first of {plain.shape[1]}"
        columns.append(_column("one", said, pick(plain, i, 0, 400 if large else 208, decimals)))
    if others:
        columns.append(_column("some", "Good and different", "".join(show(j, 208) for j in others)))
    return (
        f'<article><h3>{escape(heading(population, i))}</h3><p class="lede">{story(population, i)}</p>'
        f'<div class="picks">{"".join(columns)}</div>{_foldout(population, i, folded)}</article>'
    )


def _column(kind: str, name: str, items: str) -> str:
    return f'<div class="pick {kind}"><p class="more">{escape(name)}</p><ol class="tiles">{items}</ol></div>'


def story(population: Population, i: int) -> str:
    """A group's rewards, and what became of its first ancestors, in a line."""
    rewards, plain = population.rewards[i], population.unsteered
    finite = rewards[rewards.isfinite()]
    if not len(finite):
        return "Every particle died."
    means = "weighted mean" if population.exact else "mean"
    said = [f"Reward {number(finite.max())} at best, {number(population.mean()[i])} {means}"]
    if plain is not None:
        n = plain.shape[1]
        said.append(f"{number(plain.mean()[i])} unsteered" + (f" (mean of {n})" if n > 1 else ""))
    line = ", ".join(said) + "."
    if len(population.ancestors):
        line += f" {plural(int(population.surviving_lineages[i]), 'lineage')} of {count(population.ancestors.shape[-1])} left."
    flagged = int(population.flagged[i].sum())
    return line + (f" {flagged} of {count(len(rewards))} flagged nsfw." if flagged else "")


def _foldout(population: Population, i: int, n: int) -> str:
    """More of the group, folded away; the heaviest where it has weights."""
    k = population.shape[1]
    if not n or k <= 6:
        return ""
    which = [(i, j) for j in order(population)[i, :n].tolist()]
    how, most = ("reward", "best") if uniform(population) else ("weight", "heaviest")
    name = f"All {count(k)} by {how}" if n >= k else f"The {n} {most} of {count(k)}"
    return f"<details><summary>{name}</summary>{tiles(population, which, population.weights, largest=144)}</details>"
