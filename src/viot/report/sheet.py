"""All samples on one sheet: groups from top to bottom, with their prompts where they follow some."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..optional import need
from .files import ranked
from .gallery import heading
from .pictures import fitted, frame, order, to_pil
from .words import fixed, number, places, plural

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..population import Population

PAPER, RULE, MARK, INK, SOFT = (250, 250, 249), (203, 203, 200), (213, 94, 0), (28, 29, 31), (93, 96, 102)
_LETTERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−–", "-0123456789--", "") | {ord("∞"): "inf"}
#: More prompts than this make a sheet that no viewer shows.
PROMPTS = 64


def contact_sheet(population: Population, max_per_group: int = 64) -> Image:
    """The samples of every group on one sheet, the best of each framed.

    Groups without prompts lie between thin rules, the heaviest sample first. Prompts are titles, and below them are their samples by
    falling reward, each over its reward.
    """
    if population.modality not in ("images", "video"):
        raise TypeError(f"these samples are {population.modality}; a contact sheet is made of images")
    return _titled(population, max_per_group) if population.prompts else _bare(population, max_per_group)


def _bare(population: Population, max_per_group: int) -> Image:
    pil, draw = need("PIL.Image", "report"), need("PIL.ImageDraw", "report")
    g, k = population.shape
    n = min(k, max_per_group)
    chosen = order(population)[:, :n].tolist()
    first = fitted(to_pil(frame(population.samples[0, 0])), 96, 256)
    (width, height), gap, between = first.size, 5, 17
    columns = min(n, 16 if g > 1 else math.ceil(math.sqrt(1.6 * n * height / width)))
    rows = math.ceil(n / columns)
    band = rows * (height + gap) - gap
    sheet = pil.new("RGB", (columns * (width + gap) - gap + 2 * between, g * (band + between) + between), PAPER)
    pen = draw.Draw(sheet)
    for i in range(g):
        top = between + i * (band + between)
        if i:
            pen.line((between, top - between // 2 - 1, sheet.width - between - 1, top - between // 2 - 1), fill=RULE)
        best = population.rewards[i].nan_to_num(nan=-math.inf).argmax().item()
        for j, particle in enumerate(chosen[i]):
            x, y = between + j % columns * (width + gap), top + j // columns * (height + gap)
            picture = fitted(to_pil(frame(population.samples[i, particle])), 96, 256)
            sheet.paste(picture, (x, y), picture if picture.mode == "RGBA" else None)
            if particle == best:
                pen.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), outline=MARK, width=2)
    return sheet


def _titled(population: Population, max_per_group: int) -> Image:
    pil, draw, fonts = need("PIL.Image", "report"), need("PIL.ImageDraw", "report"), need("PIL.ImageFont", "report")
    g, k = population.shape
    shown, largest = min(g, PROMPTS), 256 if g <= 8 else 176
    first = fitted(to_pil(frame(population.samples[0, 0])), 96, largest)
    (width, height), gap, margin = first.size, 10, 28
    width = max(width, 64)
    # Letters keep pace with the pictures: a sheet of large ones is looked at from farther away.
    big, little = (27, 19) if width > 200 else (20, 15)
    title, small, line_height, caption = fonts.load_default(big), fonts.load_default(little), big + 8, little + 9
    columns = min(k, max_per_group, 8 if g > 1 else max(4, math.ceil(math.sqrt(1.6 * min(k, max_per_group) * height / width))))
    n = min(k, max_per_group, columns * (2 if 1 < g <= 4 else 1) if g > 1 else max_per_group)
    rows, across = math.ceil(n / columns), max(columns * (width + gap) - gap, 420)
    ruler = draw.Draw(pil.new("RGB", (1, 1)))
    titles = [wrapped(heading(population, i), across, lambda t: ruler.textlength(t, font=title)) for i in range(shown)]
    bands = [line_height * len(lines) + caption + rows * (height + caption + gap) + 18 for lines in titles]
    foot = 30 if g > shown else 0
    sheet = pil.new("RGB", (across + 2 * margin, 2 * margin - 18 + sum(bands) + foot), PAPER)
    pen, by_reward = draw.Draw(sheet), ranked(population)[:, :n].tolist()
    decimals = places(population.rewards.flatten().tolist())
    top = margin
    for i, lines in enumerate(titles):
        y = top
        for line in lines:
            pen.text((margin, y), line, font=title, fill=INK)
            y += line_height
        pen.text((margin, y), _story(population, i), font=small, fill=SOFT)
        y += caption + 4
        for at, j in enumerate(by_reward[i]):
            x, line = margin + at % columns * (width + gap), y + at // columns * (height + caption + gap)
            picture = fitted(to_pil(frame(population.samples[i, j])), 96, largest)
            sheet.paste(picture, (x, line), picture if picture.mode == "RGBA" else None)
            if at == 0:
                pen.rectangle((x - 4, line - 4, x + picture.width + 3, line + picture.height + 3), outline=MARK, width=2)
            pen.text((x, line + height + 5), plain_letters(fixed(float(population.rewards[i, j]), decimals)), font=small, fill=INK)
            if bool(population.flagged[i, j]):
                pen.text((x + width, line + height + 5), "nsfw", font=small, fill=MARK, anchor="ra")
        top += bands[i]
    if foot:
        pen.text((margin, top), f"and {plural(g - shown, 'more prompt')} in images/", font=small, fill=SOFT)
    return sheet


def _story(population: Population, i: int) -> str:
    """A group's rewards in a line."""
    rewards = population.rewards[i]
    finite = rewards[rewards.isfinite()]
    if not len(finite):
        return "every particle died"
    said = [f"best {number(finite.max())}", f"mean {number(population.mean()[i])}"]
    if population.unsteered is not None:
        said.append(f"unsteered {number(population.unsteered.mean()[i])}")
    return plain_letters("reward: " + ", ".join(said))


def plain_letters(text: str) -> str:
    """With what Pillow's own font has letters for: 6.4·10⁻⁵ becomes 6.4e-5."""
    return text.translate(_LETTERS).replace("·10", "e")


def wrapped(text: str, room: float, width: Any, most: int = 3) -> list[str]:
    """Lines that fit, the last one cut where there would be more of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if width(longer) <= room or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} …"
            break
    # A single word may be wider than the sheet.
    return [line if width(line) <= room else line[: max(1, int(len(line) * room / width(line)) - 2)] + "…" for line in lines]
