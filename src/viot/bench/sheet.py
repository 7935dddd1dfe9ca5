"""The samples themselves: methods as rows, the same prompt or group and seed as columns. One sheet for each reward and strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch

from ..optional import need
from ..prompts import short
from ..report.pictures import data_uri, fitted, to_pil
from ..report.sheet import INK, PAPER, SOFT, plain_letters, wrapped
from ..report.svg import Scale
from ..report.words import count, fixed, listed, number, places, plural, setting
from . import features
from .rows import Row, budgets, methods, sweep
from .samples import Kept

if TYPE_CHECKING:
    from PIL.Image import Image

#: Columns of pictures and points, and of texts; sheets on a page.
COLUMNS, TEXTS, SHEETS = 12, 3, 12
SAID = {"best": "the best of each group by reward", "drawn": "one sample of each group, drawn by weight"}


@dataclass(frozen=True)
class Sheet:
    """What every method found at the largest budget, by method and column: the row's samples and which of its groups.

    columns   seed and position of the group in the row; of points the groups of a seed share one
    """

    title: str
    kind: str
    methods: list[str]
    columns: list[tuple[int, int]]
    cells: dict[tuple[str, int], Kept]
    left_out: int

    def at(self, method: str, column: tuple[int, int]) -> tuple[Kept, int] | None:
        kept = self.cells.get((method, column[0]))
        return None if kept is None or column[1] >= max(1, len(kept.groups)) else (kept, column[1])

    def heading(self, column: tuple[int, int]) -> str:
        """What the samples of a column have in common."""
        seed, i = column
        if self.kind == "points":
            return f"seed {seed}"
        kept = next(kept for kept in self.cells.values() if i < len(kept.groups))
        return f"{short(kept.prompts[i], 40) if kept.prompts else f'group {kept.groups[i]}'}, seed {seed}"


def sheets(rows: list[Row], kept: list[Kept | None]) -> list[Sheet]:
    """A sheet for each reward, and each strength where there are several, of the rows that have kept something."""
    found, strengths = [], sweep(rows)
    for reward in sorted({row["config"]["reward"] for row in rows}):
        for lam in strengths or [None]:
            pairs = [
                (row, k)
                for row, k in zip(rows, kept, strict=True)
                if k is not None
                and "failed" not in row
                and row["config"]["reward"] == reward
                and (lam is None or row["config"]["lam"] == lam)
            ]
            if not pairs:
                continue
            most = max(budgets([row for row, _ in pairs]))
            pairs = [(row, k) for row, k in pairs if row["budget"] == most]
            kind = pairs[0][1].kind
            columns = sorted({(row["seed"], i) for row, k in pairs for i in range(1 if kind == "points" else len(k.groups))})
            shown = columns[: TEXTS if kind == "texts" else COLUMNS]
            at = f" at λ = {setting(lam)}" if lam is not None else ""
            found.append(
                Sheet(
                    f"{reward}{at}, {count(most)} network rows per group",
                    kind,
                    methods([row for row, _ in pairs]),
                    shown,
                    {(row["method"], row["seed"]): k for row, k in pairs},
                    len(columns) - len(shown),
                )
            )
    return found


# -- on the page ----------------------------------------------------------------------------------------------------------------------


def html(found: list[Sheet]) -> str:
    """The section of the page; nothing where rows have kept nothing."""
    if not found:
        return ""
    parts = [f"<h3>{escape(sheet.title)}</h3>{_drawn(sheet)}" for sheet in found[:SHEETS]]
    more = f'<p class="more">and {plural(len(found) - SHEETS, "more sheet")}</p>' if len(found) > SHEETS else ""
    return f'<section class="sheets"><h2>Samples</h2>{"".join(parts)}{more}</section>'


def _drawn(sheet: Sheet) -> str:
    rest = f'<p class="more">and {plural(sheet.left_out, "more column")}</p>' if sheet.left_out else ""
    if sheet.kind == "points":
        behind = " In grey draws of the target." if any(k.target is not None for k in sheet.cells.values()) else ""
        return f'<p class="lede">Every particle of all groups of a seed, its area the weight.{behind}</p>{_scatter(sheet)}{rest}'
    try:
        best = _table(sheet, "best")
        drawn = f"<details><summary>{SAID['drawn'].capitalize()}</summary>{_table(sheet, 'drawn')}</details>"
    except ImportError as error:
        return f'<p class="missing">The pictures are missing here: {escape(str(error))}</p>'
    return f'<p class="lede">{escape(caption(sheet))}</p>{best}{rest}{drawn}'


def caption(sheet: Sheet) -> str:
    """What is seen, and what the numbers beneath are."""
    kinds = sorted({k.features for k in sheet.cells.values() if k.features})
    text = f"{SAID['best'].capitalize()}; beneath it the reward"
    if not kinds:
        return f"{text}."
    return f"{text}, and its distance to the nearest draw of the plain model, in {listed([features.summary(kind) for kind in kinds])}."


def _table(sheet: Sheet, which: str) -> str:
    show = _written if sheet.kind == "texts" else _pictured
    decimals = places([v for k in sheet.cells.values() for v in k.rewards[which] if v is not None])
    head = "".join(f"<th>{escape(sheet.heading(column))}</th>" for column in sheet.columns)
    lines = []
    for method in sheet.methods:
        found = [sheet.at(method, column) for column in sheet.columns]
        cells = "".join("<td>–</td>" if at is None else f"<td>{show(*at, which, decimals)}</td>" for at in found)
        lines.append(f"<tr><th>{escape(method)}</th>{cells}</tr>")
    return f'<div class="scroll"><table class="sheet {sheet.kind}"><thead><tr><th>method</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _numbers(kept: Kept, i: int, which: str, decimals: int) -> list[str]:
    """The reward, and the distance to the nearest base draw."""
    reward, near = kept.rewards[which][i], kept.nearest.get(which)
    numbers = ["–" if reward is None else fixed(reward, decimals)]
    return numbers if near is None else [*numbers, "–" if (gap := near[i]) is None else number(gap)]


def _pictured(kept: Kept, i: int, which: str, decimals: int) -> str:
    sample = kept.pictures[which][i].float() / 255
    reward, *near = _numbers(kept, i, which, decimals)
    size = ' class="pixels"' if max(sample.shape[-2:]) <= 128 else ""
    under = "".join(f"<span>{escape(text)}</span>" for text in near)
    return f'<img{size} src="{data_uri(sample, 256)}" alt="reward {escape(reward)}"><b>{escape(reward)}</b>{under}'


def _written(kept: Kept, i: int, which: str, decimals: int) -> str:
    return f"<p>{escape(kept.texts[which][i])}</p><b>{escape(_numbers(kept, i, which, decimals)[0])}</b>"


#: Sides of a panel, of many and of few, and of the space for names, and classes of area that weights are put into: a panel of a thousand dots is four paths.
PANELS, GAP, NAMES, SIZES = (128, 188), 10, 240, (1.6, 2.6, 4.0, 6.5)


def _scatter(sheet: Sheet) -> str:
    """Panels of points in one frame for all, which holds the target and nearly all of the particles."""
    every = [k for k in sheet.cells.values() if k.points is not None]
    points = torch.cat([v for k in every for v in (k.points, k.target) if v is not None])
    low, high = points.double().quantile(0.01, dim=0), points.double().quantile(0.99, dim=0)
    # What lies far out must not make a dot of everything else.
    far = (high - low).max() / 5
    low, high = points.amin(0).double().maximum(low - far), points.amax(0).double().minimum(high + far)
    middle, half = ((low + high) / 2).tolist(), max(float((high - low).max()) / 2 * 1.06, 1e-6)
    left, panel = max(60, min(NAMES, 12 + 6.6 * max(map(len, sheet.methods)))), PANELS[len(sheet.columns) <= 4]
    width, height = left + len(sheet.columns) * (panel + GAP), 22 + len(sheet.methods) * (panel + GAP)
    out = [
        f'<text class="label" x="{left + n * (panel + GAP) + panel / 2:.0f}" y="13" text-anchor="middle">{escape(sheet.heading(column))}</text>'
        for n, column in enumerate(sheet.columns)
    ]
    for row, method in enumerate(sheet.methods):
        top = 22 + row * (panel + GAP)
        out.append(f'<text class="name" x="{left - 10:.0f}" y="{top + panel / 2 + 4:.0f}" text-anchor="end">{escape(method)}</text>')
        for n, column in enumerate(sheet.columns):
            at, start = sheet.at(method, column), left + n * (panel + GAP)
            x = Scale(middle[0] - half, middle[0] + half, start, start + panel)
            y = Scale(middle[1] - half, middle[1] + half, top + panel, top)
            out.append(f'<rect class="panel" x="{start:.0f}" y="{top}" width="{panel}" height="{panel}"/>')
            out.append("" if at is None else _panel(at[0], x, y, half, middle))
    name = f"Points of {plural(len(sheet.methods), 'method')} by seed"
    return (
        f'<div class="scroll"><figure class="sheet"><svg viewBox="0 0 {width:.0f} {height}" style="width:{width:.0f}px" role="img" '
        f'aria-label="{escape(name)}">{"".join(out)}</svg></figure></div>'
    )


def _panel(kept: Kept, x: Scale, y: Scale, half: float, middle: list[float]) -> str:
    assert kept.points is not None
    assert kept.weights is not None

    def path(points: torch.Tensor, kind: str, size: float) -> str:
        inside = points[((points - torch.tensor(middle)).abs() <= half).all(1)].tolist()
        dots = "".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in inside)
        return f'<path class="{kind}" stroke-width="{size}" d="{dots}"/>' if dots else ""

    out = [] if kept.target is None else [path(kept.target, "cloud", 1.6)]
    # A dot's diameter goes with the square root of its weight, relative to the largest that one sees often.
    share = (kept.weights / kept.weights.max().clamp_min(1e-12)).sqrt()
    bins = (share * len(SIZES)).ceil().long().clamp(1, len(SIZES)) - 1
    even = bool((bins == bins[:1]).all())
    for i, size in enumerate(SIZES):
        out.append(path(kept.points[bins == i], "points", SIZES[1] if even else size))
    return "".join(out)


# -- as one picture -------------------------------------------------------------------------------------------------------------------


def picture(found: list[Sheet]) -> Image | None:
    """The sheets of pictures below each other; None where there are none. ImportError without Pillow."""
    found = [sheet for sheet in found if sheet.kind == "pictures"][:SHEETS]
    if not found:
        return None
    pil = need("PIL.Image", "report")
    blocks = [_block(sheet) for sheet in found]
    page = pil.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), PAPER)
    top = 0
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height
    return page


def _block(sheet: Sheet) -> Image:
    pil, draw, fonts = need("PIL.Image", "report"), need("PIL.ImageDraw", "report"), need("PIL.ImageFont", "report")
    title, small = fonts.load_default(18), fonts.load_default(13)
    pen = draw.Draw(pil.new("RGB", (1, 1)))
    width_of: Callable[[str], float] = lambda text: pen.textlength(text, font=small)
    first = next(iter(sheet.cells.values()))
    side = max(96, max(fitted(to_pil(first.pictures["best"][0].float() / 255), 80, 192).size))
    left, margin, gap, caption_height = int(max(map(width_of, sheet.methods))) + 44, 24, 10, 38
    decimals = places([v for k in sheet.cells.values() for v in k.rewards["best"] if v is not None])
    lines = wrapped(plain_letters(caption(sheet)), max(len(sheet.columns) * (side + gap), 480), width_of)
    top = margin + 28 + 18 * len(lines) + 28
    block = pil.new(
        "RGB",
        (left + max(len(sheet.columns) * (side + gap), 480) + margin, top + len(sheet.methods) * (side + caption_height + gap) + margin), PAPER,
    )  # fmt: skip
    pen = draw.Draw(block)
    pen.text((margin, margin), plain_letters(sheet.title), font=title, fill=INK)
    for n, line in enumerate(lines):
        pen.text((margin, margin + 28 + 18 * n), line, font=small, fill=SOFT)
    for n, column in enumerate(sheet.columns):
        pen.text(
            (left + n * (side + gap), top - 20),
            wrapped(plain_letters(sheet.heading(column)), side, width_of, most=1)[0],
            font=small,
            fill=SOFT,
        )
    for row, method in enumerate(sheet.methods):
        y = top + row * (side + caption_height + gap)
        pen.text((margin, y + side / 2 - 8), plain_letters(method), font=small, fill=INK)
        for n, column in enumerate(sheet.columns):
            if (at := sheet.at(method, column)) is None:
                continue
            x, drawn = left + n * (side + gap), fitted(to_pil(at[0].pictures["best"][at[1]].float() / 255), side, side)
            block.paste(drawn, (x, y), drawn if drawn.mode == "RGBA" else None)
            reward, *near = map(plain_letters, _numbers(*at, "best", decimals))
            pen.text((x, y + drawn.height + 3), reward, font=small, fill=INK)
            pen.text((x, y + drawn.height + 19), "".join(near), font=small, fill=SOFT)
    return block
