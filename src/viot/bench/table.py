"""What the rows of a bench add up to: tables of means over seeds with their standard errors, as Markdown, as a page and for a terminal."""

from __future__ import annotations

import os
import warnings
from html import escape
from pathlib import Path

from ..population import write_text
from ..report import terminal
from ..report.page import document
from ..report.words import count, listed, plural, setting, table
from . import front_report
from .analysis import apart, beside, drawings
from .columns import Column, columns, over_seeds
from .figures import costs, figure
from .front_report import front_of
from .published_numbers import lines as printed
from .published_numbers import remark
from .rows import Row, methods, reasons, rewards_of, sweep
from .samples import Kept
from .sections import sections, timed
from .sheet import Sheet, html, picture, sheets


def body(rows: list[Row], shown: list[Column], budget: bool = False) -> list[list[str]]:
    """A line per method; with `budget` it says at which."""
    out = []
    for method in methods(rows):
        mine = [row for row in rows if row["method"] == method]
        failed = sum("failed" in row for row in mine)
        name = f"{method}, {count(mine[0]['budget'])} rows" if budget else method
        every = {(row["config"]["reward"], row["seed"]) for row in rows}
        if not budget and len(mine) < len(every):
            # A mean over other rewards and seeds than the others' does not compare with them.
            name += f" ({len(mine)} of {len(every)} rows)"
        name += f" (failed{f' {failed} of {len(mine)}' if failed < len(mine) else ''})" if failed else ""
        out.append([name, *[str(m) if (m := over_seeds([c.of(row) for row in mine])) else "–" for c in shown]])
    return out


def tables(rows: list[Row], shown: list[Column]) -> list[tuple[str, list[list[str]]]]:
    """The lines of every table, with what stands above them: printed numbers where they compare, and at last equal time."""
    keys = [c.key if c.other is None else "" for c in shown]
    found = [(title, body(mine, shown) + printed(mine, keys)) for title, mine in sections(rows)]
    return found + [(title, body(mine, shown, budget=True)) for title, mine in timed(rows)]


def sentence(rows: list[Row]) -> str:
    """What was run, in words."""
    config, several = rows[0]["config"], sweep(rows)
    lams = {row["method"]: row["config"]["lam"] for row in rows}
    same = len(set(lams.values())) == 1
    strength = f"λ = {setting(next(iter(lams.values())))}" if same else ", ".join(f"λ = {setting(v)} for {k}" for k, v in lams.items())
    strength = f"λ = {listed([setting(lam) for lam in several])}" if several else strength
    groups = config["groups"]
    g = len(config["model"].get("prompts") or [0]) if groups is None else groups if isinstance(groups, int) else len(groups)
    n, rewards = len({row["seed"] for row in rows}), max(len({row["config"]["reward"] for row in part}) for _, part in apart(rows))
    over = plural(n, "seed") if rewards == 1 else f"{plural(rewards, 'reward')} and {plural(n, 'seed')}"
    return (
        f"{config['model']['name']} toward {rewards_of(rows)}, {strength}, {config['steps']} steps, {plural(g, 'group')} per seed; means over "
        f"{over}" + (" ± their standard errors." if n * rewards > 1 else ".")
    )


def markdown(rows: list[Row]) -> str:
    """A table for each budget and strength, and what its columns say."""
    shown, made = columns(rows), ", ".join(sorted({row["viot"] for row in rows}))
    lines = [f"# viot bench {rows[0]['task']}", "", sentence(rows), ""]
    for title, head, cells in front_report.tables(rows):
        lines += [f"## {title}", "", _line(head), "|" + "---|" * len(head), *map(_line, cells), ""]
    for title, cells in tables(rows, shown):
        lines += [f"## {title}", "", _line(["method", *[c.title for c in shown]])]
        lines += ["|" + "---|" * (len(shown) + 1), *map(_line, cells), ""]
    lines += [said, ""] if (said := remark(rows)) else []
    for title, head, cells in beside(rows):
        lines += [f"## {title}", "", _line(head), "|" + "---|" * len(head), *map(_line, cells), ""]
    lines += [f"- **{_cell(title)}**: {says}" for title, says in front_report.says(rows)]
    lines += [f"- **{_cell(c.title)}**: {c.says}" for c in shown]
    lines += [f"- **{_cell(method)}** failed: {why}" for method, why in reasons(rows)]
    return "\n".join([*lines, "", f"Made by viot {made}.", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def page(rows: list[Row], found: list[Sheet] | None = None) -> str:
    """The same as one HTML document, with reward against quality, quality against what it cost, and sheets of samples."""
    shown, task = columns(rows), rows[0]["task"]
    parts = [f'<header><p class="eyebrow">viot bench</p><h1>{escape(task)}</h1><p class="sub">{escape(sentence(rows))}</p></header>']
    own = front_report.figures(rows)
    parts += [f'<section><h2>{title}</h2><div class="wide">{drawing}</div></section>' for title, drawing in own if drawing]
    usual = [
        ("Analysis", "".join(drawings(rows))),
        # Of several noises or sums of rewards a mean says nothing.
        *([figure(rows)] if len(apart(rows)) == 1 and not front_of(rows) else []),
        ("What it costs", "".join(drawing for _, drawing in costs(rows))),
    ]
    parts += [f'<section><h2>{title}</h2><div class="charts">{drawing}</div></section>' for title, drawing in usual if drawing]
    for title, head, cells in front_report.tables(rows):
        parts.append(f'<section class="bench"><h2>{escape(title)}</h2>{table(head, cells)}</section>')
    for title, lines in tables(rows, shown):
        parts.append(f'<section class="bench"><h2>{escape(title)}</h2>{table(["method", *[c.title for c in shown]], lines)}</section>')
    parts.append(f'<p class="more">{escape(said)}</p>' if (said := remark(rows)) else "")
    for title, head, cells in beside(rows):
        parts.append(f'<section class="bench"><h2>{escape(title)}</h2>{table(head, cells)}</section>')
    parts.append(html(found or []))
    explained = [*front_report.says(rows), *((c.title, c.says) for c in shown)]
    said = "".join(f"<dt>{escape(title)}</dt><dd>{escape(says)}</dd>" for title, says in explained)
    failed = "".join(f'<p class="missing"><b>{escape(method)}</b> failed: {escape(why)}</p>' for method, why in reasons(rows))
    made = ", ".join(sorted({row["viot"] for row in rows}))
    parts.append(
        f'<section><h2>Columns</h2><dl class="columns-said">{said}</dl>{failed}<p class="more">Made by viot {escape(made)}.</p></section>'
    )
    return document(f"bench {task}", "".join(parts))


def write(rows: list[Row], folder: Path, kept: list[Kept | None]) -> None:
    """Write table.md and report.html, and sheet.png where there are pictures; `kept` are the samples of each row."""
    found = sheets(rows, kept)
    write_text(folder / "table.md", markdown(rows))
    write_text(folder / "report.html", page(rows, found))
    try:
        drawn = picture(found)
    except ImportError as error:
        warnings.warn(f"sheet.png was not drawn: {error}", UserWarning, stacklevel=2)
        return
    if drawn is not None:
        partial = folder / "sheet.png.part"
        drawn.save(partial, format="PNG")
        os.replace(partial, folder / "sheet.png")


def glimpse(rows: list[Row]) -> str:
    """The tables for a terminal: what fits into its width."""
    few = {
        "reward",
        "pick",
        "judge",
        "nll",
        "frechet",
        "mmd",
        "mmd exact",
        "mmd base",
        "precision base",
        "modes",
        "cmmd",
        "vendi",
        "lineages",
        "reward_rows",
        "seconds",
    }
    few |= set(rows[0]["config"]["reading"]["judges"])
    shown = [c for c in columns(rows) if c.key in few and c.other is None]
    out = [sentence(rows)]
    out += [f"\n{title}\n\n{terminal.columns(head, cells, numbers=True)}" for title, head, cells in front_report.tables(rows)]
    for title, mine in sections(rows):
        head = ["method", *[c.title for c in shown]]
        out += [f"\n{title}\n", terminal.columns(head, body(mine, shown), numbers=True)]
    return "\n".join([*out, *(f"\n{method} failed: {why}" for method, why in reasons(rows))])
