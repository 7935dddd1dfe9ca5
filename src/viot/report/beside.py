"""What the methods found best side by side, pictures or texts, a line for each prompt."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from . import text
from .cards import pick
from .gallery import heading
from .picks import best
from .words import count, places, plural

if TYPE_CHECKING:
    from ..population import Population

#: Pictures on the page: a comparison of many prompts must stay one that opens.
PICTURES = 320


def side_by_side(populations: dict[str, Population]) -> str:
    """Unsteered first, then what each method found best; nothing where there are neither texts nor pictures of prompts."""
    first = next(iter(populations.values()), None)
    if first is not None and first.modality == "text":
        return text.side_by_side(populations)
    if first is None or first.modality not in ("images", "video") or not (first.prompts or _plain(populations)):
        return ""
    plain, g = _plain(populations), first.shape[0]
    columns = len(populations) + (plain is not None)
    shown, largest = min(g, max(4, PICTURES // columns)), 208 if columns * g > 48 else 320
    decimals = places([v for p in populations.values() for v in p.rewards.flatten().tolist()])
    lines = []
    for i in range(shown):
        items = [] if plain is None else [pick(plain, i, 0, largest, decimals, name="unsteered")]
        items += [pick(p, i, best(p, i), largest, decimals, name=name) for name, p in populations.items()]
        lines.append(f'<h3>{escape(heading(first, i))}</h3><ol class="tiles across">{"".join(items)}</ol>')
    more = f'<p class="more">and {plural(g - shown, "more prompt")}</p>' if g > shown else ""
    drawn = "The first unsteered draw, and of each method" if plain else "Of each method"
    each = {p.shape[1] for p in populations.values()}
    lede = f"{drawn} the best by reward" + (f" of {count(each.pop())}." if len(each) == 1 else ".")
    return f'<p class="lede">{lede}</p><div class="beside" style="--columns:{columns}">{"".join(lines)}</div>{more}'


def _plain(populations: dict[str, Population]) -> Population | None:
    return next((p.unsteered for p in populations.values() if p.unsteered is not None), None)
