"""What the rows of a bench add up to: tables of means over seeds with their standard errors, and reward against likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..population import write_text
from ..report import terminal
from ..report.page import document
from ..report.svg import Line, chart
from ..report.words import count, fixed, number, plural, setting, table

Row = dict[str, Any]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and its standard error; NaN of a single one."""

    value: float
    error: float
    n: int

    def __str__(self) -> str:
        if not self.error > 0:
            return number(self.value)
        # As many decimals as the error has to tell, and no more than four digits in all.
        whole = math.floor(math.log10(abs(self.value))) if self.value else 0
        decimals = max(0, min(1 - math.floor(math.log10(self.error)), 3 - whole))
        error = fixed(self.error, decimals)
        return f"{fixed(self.value, decimals)} ± {error if float(error) else number(self.error, 1)}"


def over_seeds(values: list[float | None]) -> Mean | None:
    """Mean and standard error (standard deviation with n − 1, over √n) of what there is; None of nothing."""
    there = [v for v in values if v is not None and math.isfinite(v)]
    if not there:
        return None
    mean, n = sum(there) / len(there), len(there)
    return Mean(mean, math.sqrt(sum((v - mean) ** 2 for v in there) / (n - 1) / n) if n > 1 else math.nan, n)


@dataclass(frozen=True)
class Column:
    """A column: where its numbers are in a row, and what it says."""

    key: str
    title: str
    says: str

    def of(self, row: Row) -> float | None:
        if self.key in ("reward_rows", "grad_rows", "nfe"):
            return row.get(self.key)
        return row.get("seconds", {}).get("total") if self.key == "seconds" else row.get("metrics", {}).get(self.key)


def columns(rows: list[Row]) -> list[Column]:
    """The columns in which somebody has something."""
    config = rows[0]["config"]
    reading, units = config["reading"], "characters" if config["reading"]["characters"] else "words"
    model, reward = config["model"]["name"], config["reward"]
    known = [
        Column("reward", "reward", f"{reward}, weighted mean"),
        Column("pick", "best", f"{reward}, the best of each group"),
        Column("nll", "NLL", f"nats per text under {model}, an upper bound by {reading['draws']} network calls each, weighted mean"),
        Column("nll pick", "NLL of best", "the same, of the best of each group"),
        *[Column(name, name, "a reader that steered nobody, weighted mean") for name in reading["judges"]],
        *[
            Column(f"dist-{n}", f"dist-{n}", f"different {n}-grams of {units} per {n}-gram of a group: to be compared at the same K only")
            for n in (1, 2, 3)
        ],
        Column("different", "different", "share of a group's texts that differ"),
        Column(
            "vendi",
            "Vendi",
            f"effective number of different texts in a group, by cosines of {'3-gram' if units == 'characters' else 'word'} counts",
        ),
        Column("returned", "K", "particles that a group returns"),
        Column("ess", "ESS", "effective sample size at the end"),
        Column("lineages", "lineages", "initial particles with a descendant in the answer"),
        Column("log z", "log Z", "estimate of log E exp(λ r)"),
        Column("nfe", "network rows", "spent per group"),
        Column("reward_rows", "reward rows", "spent per group"),
        Column("grad_rows", "gradient rows", "spent per group"),
        Column("seconds", "seconds", "of a run, all its groups"),
    ]
    # Nobody's gradients are no column.
    return [c for c in known if any(c.of(row) is not None for row in rows) and (c.key != "grad_rows" or any(c.of(row) for row in rows))]


def body(rows: list[Row], shown: list[Column]) -> list[list[str]]:
    """A line per method, in the order of the rows' first appearance."""
    out = []
    for method in _methods(rows):
        mine = [row for row in rows if row["method"] == method]
        failed = sum("failed" in row for row in mine)
        name = method if not failed else f"{method} (failed{f' {failed} of {len(mine)}' if failed < len(mine) else ''})"
        out.append([name, *[str(m) if (m := over_seeds([c.of(row) for row in mine])) else "–" for c in shown]])
    return out


def _methods(rows: list[Row]) -> list[str]:
    """As they were run: plain sampling first, then by name."""
    return sorted({row["method"] for row in rows}, key=lambda name: (name != "base", name))


def _budgets(rows: list[Row]) -> list[int]:
    return sorted({row["budget"] for row in rows})


def _reasons(rows: list[Row]) -> list[tuple[str, str]]:
    """Which methods failed and why, each reason once."""
    return list(dict.fromkeys((row["method"], row["failed"]) for row in sorted(rows, key=lambda r: r["method"]) if "failed" in row))


def sentence(rows: list[Row]) -> str:
    """What was run, in words."""
    config = rows[0]["config"]
    lams = {row["method"]: row["config"]["lam"] for row in rows}
    same = len(set(lams.values())) == 1
    strength = f"λ = {setting(next(iter(lams.values())))}" if same else ", ".join(f"λ = {setting(v)} for {k}" for k, v in lams.items())
    groups = config["groups"]
    g = len(config["model"].get("prompts") or [0]) if groups is None else groups if isinstance(groups, int) else len(groups)
    n = len({row["seed"] for row in rows})
    return (
        f"{config['model']['name']} toward {config['reward']}, {strength}, {config['steps']} steps, {plural(g, 'group')} per seed; means over "
        f"{plural(n, 'seed')}" + (" ± their standard errors." if n > 1 else ".")
    )


def markdown(rows: list[Row]) -> str:
    """A table for each budget, and what its columns say."""
    shown, made = columns(rows), ", ".join(sorted({row["viot"] for row in rows}))
    lines = [f"# viot bench {rows[0]['task']}", "", sentence(rows), ""]
    for budget in _budgets(rows):
        mine = [row for row in rows if row["budget"] == budget]
        lines += [f"## {count(budget)} network rows per group", "", _line(["method", *[c.title for c in shown]])]
        lines += ["|" + "---|" * (len(shown) + 1), *[_line(cells) for cells in body(mine, shown)], ""]
    lines += [f"- **{_cell(c.title)}**: {c.says}" for c in shown]
    lines += [f"- **{_cell(method)}** failed: {why}" for method, why in _reasons(rows)]
    return "\n".join([*lines, "", f"Made by viot {made}.", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def page(rows: list[Row]) -> str:
    """The same as one HTML document, with reward against likelihood."""
    shown, task = columns(rows), rows[0]["task"]
    parts = [f'<header><p class="eyebrow">viot bench</p><h1>{escape(task)}</h1><p class="sub">{escape(sentence(rows))}</p></header>']
    title, drawing = figure(rows)
    parts.append(f'<section><h2>{title}</h2><div class="wide">{drawing}</div></section>')
    for budget in _budgets(rows):
        mine = [row for row in rows if row["budget"] == budget]
        parts.append(
            f'<section class="bench"><h2>{count(budget)} network rows per group</h2>'
            f"{table(['method', *[c.title for c in shown]], body(mine, shown))}</section>"
        )
    said = "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.says)}</dd>" for c in shown)
    failed = "".join(f'<p class="missing"><b>{escape(method)}</b> failed: {escape(why)}</p>' for method, why in _reasons(rows))
    made = ", ".join(sorted({row["viot"] for row in rows}))
    parts.append(
        f'<section><h2>Columns</h2><dl class="columns-said">{said}</dl>{failed}<p class="more">Made by viot {escape(made)}.</p></section>'
    )
    return document(f"bench {task}", "".join(parts))


def figure(rows: list[Row]) -> tuple[str, str]:
    """Reward against the bound on −log p, a curve of budgets for each method; against the budget where the model has no bound."""
    bounded = any((row.get("metrics") or {}).get("nll") is not None for row in rows)
    lines = []
    for method in _methods(rows):
        points = []
        for budget in _budgets(rows):
            mine = [row["metrics"] for row in rows if row["method"] == method and row["budget"] == budget and "metrics" in row]
            y = over_seeds([m["reward"] for m in mine])
            x = over_seeds([m.get("nll") for m in mine]) if bounded else Mean(float(budget), math.nan, 1)
            points += [(x.value, y.value)] if x and y else []
        if points:
            lines.append(Line(method, [x for x, _ in points], [y for _, y in points]))
    config = rows[0]["config"]
    if not lines:
        return "Rewards", '<p class="missing">No method has an answer.</p>'
    if not bounded:
        note = "Weighted mean reward, means over seeds."
        return "Reward over budget", chart("Reward", note, lines, x_label="network rows per group", y_label="reward", whole=False)
    name = config["model"]["name"]
    note = f"Up is what was asked for, left is what {name} finds likely. A curve goes through a method's budgets, from small to large."
    label = f"NLL under {name}, nats per text"
    return "Reward against likelihood", chart(f"{config['reward']} against NLL", note, lines, x_label=label, y_label="reward", whole=False)


def write(rows: list[Row], folder: Path) -> None:
    """Write table.md and report.html."""
    write_text(folder / "table.md", markdown(rows))
    write_text(folder / "report.html", page(rows))


def glimpse(rows: list[Row]) -> str:
    """The tables for a terminal: what fits into its width."""
    few = {"reward", "pick", "nll", "vendi", "lineages", "reward_rows", "seconds", *rows[0]["config"]["reading"]["judges"]}
    shown = [c for c in columns(rows) if c.key in few]
    out = [sentence(rows)]
    for budget in _budgets(rows):
        mine = [row for row in rows if row["budget"] == budget]
        head = ["method", *[c.title for c in shown]]
        out += [f"\n{count(budget)} network rows per group\n", terminal.columns(head, body(mine, shown), numbers=True)]
    return "\n".join([*out, *(f"\n{method} failed: {why}" for method, why in _reasons(rows))])
