"""Texts on the page, in a terminal and in samples.txt: the best of each group, the order in which their tokens appeared, and all of them by weight."""

from __future__ import annotations

import math
import unicodedata
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from ..prompts import short
from .cards import story
from .gallery import group_label, heading
from .words import count, fixed, number, percent, places, plural

if TYPE_CHECKING:
    from ..population import Population

#: Texts shown of a group when there is one group, a few, or many; the groups on a page; and the lines of all its tables together.
PER_GROUP, GROUPS, LINES = {1: 6, 4: 4, 8: 3}, 64, 512
#: The number of texts at the end of a run in a terminal, over all groups.
GLIMPSES = 6
#: What turns a line of text around, or ends it, for those who only look at it.
_HIDDEN = {"Cc", "Zl", "Zp"}
_BIDI = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


class Reading(NamedTuple):
    """One of the different texts of a group: at which particle it is found, how many particles have it, and what they weigh together."""

    text: str
    particle: int
    copies: int
    reward: float
    weight: float

    @property
    def log_weight(self) -> float:
        return math.log(self.weight) if self.weight > 0 else -math.inf


def readings(population: Population, i: int, by_reward: bool = False) -> list[Reading]:
    """The different texts of the group at position i: the heaviest first, or those of highest reward.

    Of candidates that are no draws the weights say nothing: their texts always come by reward.
    """
    rewards, weights = [-math.inf if math.isnan(r) else r for r in population.rewards[i].tolist()], population.weights[i].tolist()
    found: dict[str, list[int]] = {}
    for j, text in enumerate(population.samples[i]):
        found.setdefault(str(text), []).append(j)
    out = []
    for text, which in found.items():
        top = max(which, key=lambda j: rewards[j])
        out.append(Reading(text, top, len(which), rewards[top], sum(weights[j] for j in which)))
    if by_reward or not population.exact:
        return sorted(out, key=lambda r: -r.reward)
    # Equal weights that differ in the last bit are equal.
    return sorted(out, key=lambda r: (-round(r.weight, 9), -r.reward))


def visible(text: str) -> str:
    """A text on one line of a terminal: line breaks and what else would act on it are spelled out."""
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in _HIDDEN or c in _BIDI or c == "\\" else c for c in text
    )


# -- samples.txt and the terminal -----------------------------------------------------------------------------------------------------


def samples_text(population: Population) -> str:
    """One line per particle: reward, weight and text between tabs, line breaks spelled \\n; lines that say more begin with #.

    The heaviest first, and of equal ones those of highest reward.
    """
    from .pictures import order

    decimals = places(population.rewards.flatten().tolist())
    rewards = [[fixed(r, decimals) for r in row] for row in population.rewards.tolist()]
    wide = max(len("# reward"), *(len(r) for row in rewards for r in row))
    lines = [f"{'# reward'.rjust(wide)}\t{'weight'.rjust(8)}\ttext"]
    for i, positions in enumerate(order(population).tolist()):
        if population.shape[0] > 1 or population.prompts:
            lines += ["#", f"# {visible(heading(population, i))}"]
        lines += [
            f"{rewards[i][j].rjust(wide)}\t{population.weights[i, j]:.6f}\t{visible(str(population.samples[i][j]))}" for j in positions
        ]
    return "\n".join(lines) + "\n"


def glimpse(population: Population, room: int = 84) -> list[tuple[str, str]]:
    """The best texts of a run for the end of a terminal's summary, as names and lines: a few of one group, or the best of each."""
    g = population.shape[0]
    each, decimals = max(1, GLIMPSES // g), places(population.rewards.flatten().tolist())
    rows: list[tuple[str, str]] = []
    for i in range(min(g, GLIMPSES)):
        best = [r for r in readings(population, i, by_reward=True) if math.isfinite(r.reward)][:each]
        name = "best texts" if g == 1 else short(group_label(population, i), 28)
        wide = max((len(fixed(r.reward, decimals)) for r in best), default=0)
        for n, r in enumerate(best):
            copies = f"  ×{r.copies}" if r.copies > 1 else ""
            rows.append(("" if n else name, f"{fixed(r.reward, decimals).rjust(wide)}  {short(visible(r.text), room)}{copies}"))
    if g > GLIMPSES:
        rows.append(("", f"and {plural(g - GLIMPSES, 'more group')} in samples.txt"))
    if population.unsteered is not None:
        plain = population.unsteered
        drawn = f"{fixed(float(plain.rewards[0, 0]), decimals)}  {short(visible(str(plain.samples[0][0])), room)}"
        rows.append(("unsteered", drawn))
    return rows


# -- the page -------------------------------------------------------------------------------------------------------------------------


def texts(population: Population) -> str:
    """The section's content for populations of texts: each group's best beside what the model writes by itself, and all of them by weight."""
    g, k = population.shape
    shown = min(g, GROUPS)
    few = next((n for most, n in PER_GROUP.items() if g <= most), 2)
    rows = min(64, max(8, LINES // shown))
    blocks = "".join(_group(population, i, few, rows) for i in range(shown))
    more = f'<p class="more">and {plural(g - shown, "more group")} in samples.txt</p>' if g > shown else ""
    beside = "" if population.unsteered is None else " beside what the model writes by itself, unselected and from the same seed"
    lede = f'<p class="lede">The best by reward of {plural(k, "text")}{" each" if g > 1 else ""}{beside}.{_legend(population)}</p>'
    return f'{lede}<div class="readings">{blocks}</div>{more}'


def body(population: Population, i: int, j: int) -> str:
    """A text as HTML, each token tinted by the step at which it appeared where that is known; what was given is underlined."""
    text = str(population.samples[i][j])
    pieces = population.pieces(i, j)
    if pieces is None:
        return f'<p dir="auto">{_html(text)}</p>'
    steps = _steps(population)
    spans = []
    for piece, step in pieces:
        if step == 0:
            spans.append(f'<u title="given">{_html(piece)}</u>')
        else:
            late = (step - 1) / max(1, steps - 1)
            spans.append(f'<span style="--late:{late:.2f}" title="step {step}">{_html(piece)}</span>')
    return f'<p dir="auto" class="tokens">{"".join(spans)}</p>'


def item(population: Population, reading: Reading, i: int, best: bool = False, name: str = "", weighed: bool = True) -> str:
    """A text with its reward, parts and weight."""
    j = reading.particle
    decimals = places(population.rewards.flatten().tolist())
    said = [f"<em>{escape(name)}</em>"] if name else []
    said.append(f"<b>{fixed(reading.reward, decimals)}</b>")
    parts = {part: float(v[i, j]) for part, v in population.parts.items() if part != "nsfw"}
    said += [f"<span>{escape(part)} {number(value)}</span>" for part, value in parts.items()]
    if weighed and population.exact:
        said.append(f"<span>weight {percent(reading.weight)}, log {number(reading.log_weight)}</span>")
    if reading.copies > 1:
        said.append(f"<span>{plural(reading.copies, 'copy').replace('copys', 'copies')}</span>")
    kind = "tile best" if best else "tile"
    return f'<li class="{kind}">{body(population, i, j)}<div>{"".join(said)}</div></li>'


def _group(population: Population, i: int, few: int, rows: int) -> str:
    named = population.shape[0] > 1 or bool(population.prompts)
    # A prompt with its free places may be in any script.
    head = f'<h3 dir="auto">{escape(heading(population, i))}</h3>' if named else ""
    best = [r for r in readings(population, i, by_reward=True) if math.isfinite(r.reward)][:few]
    items = "".join(item(population, r, i, best=n == 0) for n, r in enumerate(best))
    columns = _column("Best by reward", items or '<li class="tile"><p>Every particle died.</p></li>')
    if (plain := population.unsteered) is not None:
        n = min(few, plain.shape[1])
        drawn = [_drawn(plain, i, j) for j in range(n)]
        said = "Unsteered" + (
            "" if n == plain.shape[1] else f", first {n} of {plain.shape[1]}" if n > 1 else f", first of {plain.shape[1]}"
        )
        columns += _column(said, "".join(item(plain, r, i, weighed=False) for r in drawn))
    return (
        f'<article>{head}<p class="lede">{story(population, i)}</p><div class="pair">{columns}</div>{_table(population, i, rows)}</article>'
    )


def _drawn(population: Population, i: int, j: int) -> Reading:
    return Reading(str(population.samples[i][j]), j, 1, float(population.rewards[i, j]), 0.0)


def _column(name: str, items: str) -> str:
    return f'<div><p class="more">{escape(name)}</p><ol class="texts">{items}</ol></div>'


def _table(population: Population, i: int, most: int) -> str:
    """All different texts of a group with reward, weight and log-weight, folded away where there are several groups."""
    k, all_ = population.shape[1], readings(population, i)
    found, decimals = all_[:most], places(population.rewards[i].tolist())
    top = max(r.weight for r in all_) or 1.0
    parts = [name for name in population.parts if name != "nsfw"]
    repeated = any(r.copies > 1 for r in all_)
    head = ["text", *["copies"] * repeated, "reward", *parts, *["weight", "log weight"] * population.exact]
    lines = []
    for r in found:
        cells = [count(r.copies)] * repeated + [fixed(r.reward, decimals)]
        cells += [number(float(population.parts[name][i, r.particle])) for name in parts]
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        if population.exact:
            bar = f'<i style="--share:{r.weight / top:.3f}"></i>'
            row += f'<td class="share"><div><span>{percent(r.weight)}</span>{bar}</div></td><td>{number(r.log_weight)}</td>'
        lines.append(f'<tr><td dir="auto">{_html(r.text)}</td>{row}</tr>')
    different = (
        f"{count(len(all_))} different texts of {count(k)}" if repeated else f"All {count(k)}" if len(found) == k else f"{count(k)} texts"
    )
    how = "weight" if population.exact else "reward"
    name = f"{different} by {how}" + (f", the first {count(len(found))}" if len(found) < len(all_) else "")
    columns = "".join(f"<th>{escape(h)}</th>" for h in head)
    state = " open" if population.shape[0] == 1 else ""
    return (
        f'<details{state}><summary>{name}</summary><div class="scroll"><table class="lines"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _legend(population: Population) -> str:
    """What the tints mean, where there are any."""
    if population.appeared is None or population.letters is None or not bool((population.letters >= 0).any()):
        return ""
    steps = _steps(population)
    tints = "".join(f'<span style="--late:{n / 7:.2f}"></span>' for n in range(8))
    given = ", <u>underlined</u> where it was given" if bool((population.appeared == 0).any()) else ""
    return (
        f" Each token is tinted by the step at which it appeared{given}: "
        f'<span class="ramp"><span>1</span><span class="tokens" aria-hidden="true">{tints}</span><span>{steps}</span></span>'
    )


def _steps(population: Population) -> int:
    """The latest at which a token appeared: levels of a beam are not steps of the grid, and few tokens may be there long before its end."""
    return 1 if population.appeared is None else max(1, int(population.appeared.max()))


def _html(text: str) -> str:
    """Escaped; line breaks stay, other control characters become visible, and what turns text around goes."""
    plain = "".join(
        c
        if c in "\n\t"
        else ""
        if c in _BIDI or c in "\u2028\u2029"
        else chr(0x2400 + ord(c))
        if ord(c) < 32
        else "\u2421"
        if "\x7f" <= c <= "\x9f"
        else c
        for c in text
    )
    return escape(plain)


# -- methods side by side -------------------------------------------------------------------------------------------------------------


def side_by_side(populations: dict[str, Population], most: int = 160) -> str:
    """For each group the first unsteered text, and of each method the best by reward."""
    first = next(iter(populations.values()))
    plain = next((p.unsteered for p in populations.values() if p.unsteered is not None), None)
    g = first.shape[0]
    shown = min(g, max(4, most // (len(populations) + 1)))
    lines = []
    for i in range(shown):
        items = [] if plain is None else [item(plain, _drawn(plain, i, 0), i, name="unsteered", weighed=False)]
        tops = {name: best for name, p in populations.items() if (best := best_text(p, i)) is not None}
        highest = max((r.reward for r in tops.values()), default=math.nan)
        items += [item(populations[name], r, i, best=r.reward == highest, name=name, weighed=False) for name, r in tops.items()]
        head = f'<h3 dir="auto">{escape(heading(first, i))}</h3>' if g > 1 or first.prompts else ""
        lines.append(f'{head}<ol class="texts named">{"".join(items)}</ol>')
    more = f'<p class="more">and {plural(g - shown, "more group")}</p>' if g > shown else ""
    drawn = "The first unsteered text, and of each method" if plain is not None else "Of each method"
    return f'<p class="lede">{drawn} the best by reward.{_legend(first)}</p><div class="readings">{"".join(lines)}</div>{more}'


def best_text(population: Population, i: int) -> Reading | None:
    """The text of highest reward in the group at position i; None where every particle died."""
    found = readings(population, i, by_reward=True)
    return found[0] if found and math.isfinite(found[0].reward) else None
