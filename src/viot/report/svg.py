"""Charts as SVG written by hand: axes, labels, lines that differ by colour, dash and marker. Colours come from the page's variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .words import number

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 12, 40
DASHES = ("", "7 3.5", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Line:
    """A curve: one y per x (NaN where there is none), and the band between the groups where there are several."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that cover [low, high], 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / max(1, about - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(step, 1) if whole else step
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers in [low, high], both > 0: 1, 2 and 5 times powers of ten, or powers alone where those are too many."""
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = [f * 10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for f in factors]
        marks = [m for m in marks if low * (1 - 1e-9) <= m <= high * (1 + 1e-9)]
        if len(marks) <= about:
            break
    return marks[:: math.ceil(len(marks) / about)] if marks else [low]


class Scale:
    """Data to pixels along one axis, which may be logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.of = math.log10 if log else float
        self.low, self.start = self.of(low), start
        self.rate = (end - start) / (self.of(high) - self.low) if high > low else 0.0

    def __call__(self, value: float) -> float:
        return self.start + (self.of(value) - self.low) * self.rate


def chart(
    title: str, note: str, lines: list[Line], *, x_label: str = "step", y_label: str = "",
    floor: float | None = None, ceiling: float | None = None, x_range: tuple[float, float] | None = None, whole: bool = True, log: str = "",
) -> str:  # fmt: skip
    """A line chart with its title, a sentence on what it shows, and a legend where it has several lines. `whole`: x counts something.

    `log` names the axes that are logarithmic, "x", "y" or "xy": what is not > 0 there is left out.
    """
    lines = [_positive(line, log) for line in lines] if log else lines
    values = [v for line in lines for v in (*line.y, *(line.low or ()), *(line.high or ())) if math.isfinite(v)]
    if not values:
        return ""
    low, high = (min(values) if floor is None else floor), (max(values) if ceiling is None else max(ceiling, *values))
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (low - 0.5 * max(abs(low), 1e-6), high + 0.5 * max(abs(high), 1e-6)) if floor is None else (low, low + 1)
    marks = log_ticks(low, high) if "y" in log else ticks(low, high, 5)
    low, high = min(marks[0], low), max(marks[-1], high) if ceiling is None else high
    marks = [m for m in marks if low - 1e-9 <= m <= high + 1e-9 * max(1, abs(high))]
    if ceiling is not None and high - marks[-1] > 1e-9:
        # The most there can be is worth a mark of its own.
        marks = [*(m for m in marks if high - m > 0.09 * (high - low)), high]
    xs = [v for line in lines for v in line.x if math.isfinite(v)]
    if not xs:
        return ""
    x0, x1 = x_range or (min(xs), max(xs))
    x = Scale(x0, x1, LEFT, WIDTH - RIGHT, "x" in log)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP, "y" in log)
    x_marks = log_ticks(x0, x1) if "x" in log else ticks(x0, x1, 6, whole=whole)
    parts = [_axes(x, y, _told(x_marks, "x" in log), _told(marks, "y" in log), (x0, x1), x_label, y_label)]
    for i, line in enumerate(lines):
        if line.low is not None and line.high is not None:
            parts.append(_band(line, x, y, i))
    parts += [_curve(line, x, y, i) for i, line in enumerate(lines)]
    legend = _legend(lines) if len(lines) > 1 else ""
    return figure(title, note, legend, "".join(parts), WIDTH, HEIGHT)


def figure(title: str, note: str, legend: str, drawing: str, width: float, height: float, kind: str = "chart") -> str:
    """A drawing with its title and a sentence that explains it."""
    return (
        f'<figure class="{kind}"><figcaption><h3>{escape(title)}</h3><p>{escape(note)}</p>{legend}</figcaption>'
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}. {escape(note)}">{drawing}</svg></figure>'
    )


def _positive(line: Line, log: str) -> Line:
    """NaN in place of what has no logarithm along the named axes, and of what such a point says on the other."""
    there = [("x" not in log or a > 0) and ("y" not in log or b > 0) for a, b in zip(line.x, line.y, strict=True)]
    low, high = (band and [v if "y" not in log or v > 0 else math.nan for v in band] for band in (line.low, line.high))
    x, y = ([v if on else math.nan for v, on in zip(values, there, strict=True)] for values in (line.x, line.y))
    return Line(line.label, x, y, low, high)


def _told(marks: list[float], log: bool = False) -> list[tuple[float, str]]:
    """The marks with what stands at them."""
    if not log:
        return [(mark, _tick(mark, marks)) for mark in marks]
    return [(mark, f"{float(f'{mark:.1g}'):,g}".replace(",", "\u202f") if 1e-4 <= mark < 1e6 else number(mark, 1)) for mark in marks]


def _axes(
    x: Scale,
    y: Scale,
    x_marks: list[tuple[float, str]],
    y_marks: list[tuple[float, str]],
    x_range: tuple[float, float],
    x_label: str,
    y_label: str,
) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    out = []
    for mark, told in y_marks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 7}" y="{y(mark) + 3.5:.1f}" text-anchor="end">{told}</text>')
    for mark, told in x_marks:
        if x_range[0] - 1e-9 <= mark <= x_range[1] + 1e-9:
            out.append(f'<line class="axis" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            out.append(f'<text class="tick" x="{x(mark):.1f}" y="{bottom + 16}" text-anchor="middle">{told}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    out.append(f'<text class="label" x="{right}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_label)} →</text>')
    if y_label:
        middle = (TOP + bottom) / 2
        out.append(
            f'<text class="label" x="11" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 11 {middle:.0f})">{escape(y_label)}</text>'
        )
    return "".join(out)


def axes(x: Scale, marks: list[float], top: float, bottom: float, label: str) -> str:
    """A horizontal axis alone, its grid lines reaching from `top` to `bottom`."""
    out = [f'<line class="axis" x1="{x(marks[0]):.1f}" x2="{x(marks[-1]):.1f}" y1="{bottom}" y2="{bottom}"/>']
    for m in marks:
        out.append(f'<line class="grid" x1="{x(m):.1f}" x2="{x(m):.1f}" y1="{top}" y2="{bottom}"/>')
        out.append(f'<text class="tick" x="{x(m):.1f}" y="{bottom + 16}" text-anchor="middle">{_tick(m, marks)}</text>')
    out.append(f'<text class="label" x="{x(marks[-1]):.1f}" y="{bottom + 34}" text-anchor="end">{escape(label)} →</text>')
    return "".join(out)


def _tick(value: float, marks: list[float]) -> str:
    """As many decimals as neighbouring ticks need to differ."""
    gap = abs(marks[1] - marks[0]) if len(marks) > 1 else abs(value) or 1.0
    places = max(0, -math.floor(math.log10(gap) + 1e-9))
    return number(value) if places > 4 or abs(value) >= 1e6 else f"{value + 0.0:.{places}f}".replace("-", "−")


def _runs(*columns: Sequence[float]) -> list[list[tuple[float, ...]]]:
    """The stretches of rows without a gap."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for row in zip(*columns, strict=True):
        if all(map(math.isfinite, row)):
            runs[-1].append(row)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _dash(i: int) -> str:
    """The attribute of the i-th curve; six colours and four markers come round together after twelve, the dashes one later."""
    dash = DASHES[(i + i // 12) % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _curve(line: Line, x: Scale, y: Scale, i: int) -> str:
    dash = _dash(i)
    out = []
    for run in _runs(line.x, line.y):
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in run)
        if len(run) > 1:
            out.append(f'<polyline class="line s{i % 6 + 1}" points="{points}"{dash}/>')
        # Markers crowd when every step is scored; the tooltip stays.
        every = max(1, len(run) // 26)
        for j, (a, b) in enumerate(run):
            if j % every == 0 or j == len(run) - 1:
                tip = f"<title>{escape(line.label)}: {number(b)} at {number(a)}</title>"
                out.append(marker(x(a), y(b), i, tip))
    return "".join(out)


def _band(line: Line, x: Scale, y: Scale, i: int) -> str:
    out = []
    for run in _runs(line.x, line.low or (), line.high or ()):
        points = [f"{x(a):.1f},{y(h):.1f}" for a, _, h in run] + [f"{x(a):.1f},{y(low):.1f}" for a, low, _ in reversed(run)]
        out.append(f'<polygon class="band f{i % 6 + 1}" points="{" ".join(points)}"/>')
    return "".join(out)


def marker(cx: float, cy: float, i: int, inside: str = "", size: float = 3.2) -> str:
    """The i-th marker: circle, square, triangle, diamond."""
    kind, style = i % 4, f'class="mark f{i % 6 + 1}"'
    if kind == 0:
        return f'<circle {style} cx="{cx:.1f}" cy="{cy:.1f}" r="{size}">{inside}</circle>'
    a, b = size * 0.9, size * 1.25
    path = {
        1: f"M{cx - a:.1f} {cy - a:.1f}h{2 * a:.1f}v{2 * a:.1f}h{-2 * a:.1f}z",
        2: f"M{cx:.1f} {cy - b:.1f}L{cx + b:.1f} {cy + a:.1f}H{cx - b:.1f}z",
        3: f"M{cx:.1f} {cy - b:.1f}L{cx + b:.1f} {cy:.1f}L{cx:.1f} {cy + b:.1f}L{cx - b:.1f} {cy:.1f}z",
    }[kind]
    return f'<path {style} d="{path}">{inside}</path>'


def _legend(lines: list[Line]) -> str:
    items = []
    for i, line in enumerate(lines):
        dash = _dash(i)
        swatch = f'<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true"><polyline class="line s{i % 6 + 1}" points="0,5 28,5"{dash}/>{marker(14, 5, i)}</svg>'
        items.append(f"<li>{swatch}{escape(line.label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


# -- points ---------------------------------------------------------------------------------------------------------------------------


def scatter(title: str, note: str, points: list[tuple[float, float, float, str]], best: int) -> str:
    """Points (x, y, weight relative to the largest, tooltip) in a square frame with equal units; the one at index `best` is ringed."""
    size, left, bottom = 360, 40, 34
    finite = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    if not finite:
        return ""
    ends = [(min(values), max(values)) for values in ([p[0] for p in finite], [p[1] for p in finite])]
    middle = [(low + high) / 2 for low, high in ends]
    half = max(high - low for low, high in ends) / 2 * 1.08 or 1.0
    x = Scale(middle[0] - half, middle[0] + half, left, size - 8)
    y = Scale(middle[1] - half, middle[1] + half, size - bottom, 8)
    out = []
    for scale, centre, flat in ((x, middle[0], True), (y, middle[1], False)):
        marks = [m for m in ticks(centre - half, centre + half, 7) if abs(m - centre) <= half]
        for m in marks:
            at = scale(m)
            ends = (
                f'x1="{at:.1f}" x2="{at:.1f}" y1="8" y2="{size - bottom}"'
                if flat
                else f'x1="{left}" x2="{size - 8}" y1="{at:.1f}" y2="{at:.1f}"'
            )
            place = (
                f'x="{at:.1f}" y="{size - bottom + 16}" text-anchor="middle"'
                if flat
                else f'x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end"'
            )
            out.append(f'<line class="grid" {ends}/><text class="tick" {place}>{_tick(m, marks)}</text>')
    out.append(f'<text class="label" x="{size - 8}" y="{size - 4}" text-anchor="end">first coordinate →</text>')
    out.append('<text class="label" x="10" y="8" text-anchor="end" transform="rotate(-90 10 8)">second coordinate →</text>')
    for a, b, share, tip in finite:
        radius = 0.8 + 5.2 * math.sqrt(share)
        out.append(f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius:.1f}"><title>{escape(tip)}</title></circle>')
    a, b, _, _ = points[best]
    if math.isfinite(a) and math.isfinite(b):
        out.append(f'<circle class="ring" cx="{x(a):.1f}" cy="{y(b):.1f}" r="9"><title>highest reward</title></circle>')
    return figure(title, note, "", "".join(out), size, size, "chart square")


def histogram(title: str, note: str, values: list[float], shares: list[float], x_label: str = "value", bins: int = 32) -> str:
    """The weighted histogram of numbers (filled), over the unweighted one (outlined)."""
    pairs = [(v, s) for v, s in zip(values, shares, strict=True) if math.isfinite(v)]
    if not pairs:
        return ""
    low, high = min(v for v, _ in pairs), max(v for v, _ in pairs)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    marks = ticks(low, high, 6)
    low, high = marks[0], marks[-1]
    heavy, plain = [0.0] * bins, [0.0] * bins
    for v, s in pairs:
        i = min(bins - 1, int((v - low) / (high - low) * bins))
        heavy[i] += s
        plain[i] += 1 / len(pairs)
    top = ticks(0, max(*heavy, *plain), 4)
    x, y = Scale(low, high, LEFT, WIDTH - RIGHT), Scale(0, top[-1], HEIGHT - BOTTOM, TOP)
    out = [_axes(x, y, _told(marks), _told(top), (low, high), x_label, "share of the mass")]
    width = (WIDTH - RIGHT - LEFT) / bins
    for i, share in enumerate(heavy):
        if share:
            tip = f"<title>{number(low + (high - low) * i / bins)} … {number(low + (high - low) * (i + 1) / bins)}: {number(share)}</title>"
            out.append(
                f'<rect class="bar" x="{LEFT + i * width + 0.5:.1f}" y="{y(share):.1f}" width="{width - 1:.1f}" height="{HEIGHT - BOTTOM - y(share):.1f}">{tip}</rect>'
            )
    outline = " ".join(f"{LEFT + i * width:.1f},{y(p):.1f} {LEFT + (i + 1) * width:.1f},{y(p):.1f}" for i, p in enumerate(plain))
    out.append(f'<polyline class="line outline" points="{outline}"/>')
    return figure(title, note, "", "".join(out), WIDTH, HEIGHT)
