"""What the rows of a bench add up to: tables of means over seeds with their standard errors, and reward against quality."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..population import write_text
from ..report import terminal
from ..report.page import document
from ..report.svg import Line, chart
from ..report.words import count, fixed, listed, number, plural, setting, table
from .reference import features

Row = dict[str, Any]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and its standard error; NaN of a single one."""

    value: float
    error: float
    n: int

    def __str__(self) -> str:
        # Equal numbers whose mean was rounded have no error to speak of.
        if not self.error > 1e-12 * abs(self.value):
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
    """A column: where its numbers are in a row, and what it says. With `other` it is the smaller of two of them."""

    key: str
    title: str
    says: str
    other: str | None = None

    def of(self, row: Row) -> float | None:
        if self.key in ("reward_rows", "grad_rows", "nfe"):
            return row.get(self.key)
        if self.key == "seconds":
            return row.get("seconds", {}).get("total")
        found = row.get("metrics", {}).get(self.key)
        beside = None if self.other is None else row.get("metrics", {}).get(self.other)
        return found if found is None or beside is None else min(found, beside)


def columns(rows: list[Row]) -> list[Column]:
    """The columns in which somebody has something."""
    config = rows[0]["config"]
    reading, units = config["reading"], "characters" if config["reading"]["characters"] else "words"
    model, reward = config["model"]["name"], _rewards(rows)
    # What it is that is said to be diverse.
    measured = reading.get("features") is not None
    alike = "a Gaussian kernel of the points" if reading.get("features") == "points" else "cosines of the features"
    vendi = f"by {alike}" if measured else f"by cosines of {'3-gram' if units == 'characters' else 'word'} counts"
    known = [
        Column("reward", "reward", f"{reward}, weighted mean"),
        Column("uniform", "reward, uniform", "the same, all particles alike"),
        Column("pick", "best", f"{reward}, the best of each group"),
        Column("judge", "judge", "weighted share that a classifier which steered nobody reads as wanted"),
        Column("nll", "NLL", f"nats per text under {model}, an upper bound by {reading['draws']} network calls each, weighted mean"),
        Column("nll pick", "NLL of best", "the same, of the best of each group"),
        *[Column(name, name, "a reader that steered nobody, weighted mean") for name in reading["judges"]],
        *(_distances(reading) if measured else []),
        *[
            Column(f"dist-{n}", f"dist-{n}", f"different {n}-grams of {units} per {n}-gram of a group: to be compared at the same K only")
            for n in (1, 2, 3)
        ],
        Column("different", "different", "share of a group's texts that differ"),
        Column("vendi", "Vendi", f"effective number of different {'samples' if measured else 'texts'} in a group, {vendi}"),
        Column("returned", "K", "particles that a group returns"),
        Column("ess", "ESS", "effective sample size at the end"),
        Column("lineages", "lineages", "initial particles with a descendant in the answer"),
        Column("log z", "log Z", "estimate of log E exp(λ r)"),
        Column("log z error", "error of log Z", "distance of a group's estimate to that of all base draws"),
        Column("nfe", "network rows", "spent per group"),
        Column("reward_rows", "reward rows", "spent per group"),
        Column("grad_rows", "gradient rows", "spent per group"),
        Column("seconds", "seconds", "of a run, all its groups"),
    ]
    # Nobody's gradients are no column.
    return [c for c in known if any(c.of(row) is not None for row in rows) and (c.key != "grad_rows" or any(c.of(row) for row in rows))]


def _distances(reading: dict[str, Any]) -> list[Column]:
    """The columns of points and pictures."""
    of, n = features[reading["features"]].summary, count(reading["reference"] or 0)
    target = f"the target: {n} base draws weighed by exp(λ r)"
    two = "the smaller of the weighted and the uniform one, row by row"
    return [
        Column(
            "frechet",
            "Fréchet",
            f"squared, between all groups' particles together, weighted, and {target}; in {of}, biased upwards for few",
        ),
        Column("frechet", "Fréchet, best of the two", two, "frechet uniform"),
        Column("mmd", "MMD", f"of a group's weighted particles to {target}; a Gaussian kernel in {of}, not squared"),
        Column("mmd uniform", "MMD, uniform", "the same, all particles alike"),
        Column("mmd", "MMD, best of the two", two, "mmd uniform"),
        Column("mmd exact", "MMD of exact draws", "what as many independent draws of the target get"),
        Column("mmd data", "MMD to data", "to the tilted law of the data itself, by quadrature, weighted"),
        Column("mmd base", "MMD to base", "to the plain model: how far it was steered"),
        Column("swd", "SWD", "sliced Wasserstein-2 distance to the target, weighted"),
        Column("swd", "SWD, best of the two", two, "swd uniform"),
        Column("swd exact", "SWD of exact draws", "what as many independent draws of the target get"),
        Column("swd data", "SWD to data", "to the tilted law of the data itself, weighted"),
        Column("modes", "modes", "total variation between the masses of the modes and those of the target"),
        Column("missed", "missed modes", "modes of a hundredth of the target or more without a particle"),
        Column("precision", "precision", f"share of equally weighted draws inside the target's support (third neighbours, in {of})"),
        Column("recall", "recall", "share of the target inside their support: to be compared at the same K only"),
        Column("euclidean", "diversity", f"mean distance between two particles of a group, in {of}, weighted"),
        Column("cosine", "diversity, cosine", "mean of 1 − cosine between two of them"),
    ]


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


def _sweep(rows: list[Row]) -> list[float]:
    """The strengths, where methods were run at several; else nothing: published ones may differ between methods."""
    by: dict[str, set[float]] = {}
    for row in rows:
        by.setdefault(row["method"], set()).add(row["config"]["lam"])
    return sorted(set().union(*by.values())) if any(len(lams) > 1 for lams in by.values()) else []


def _rewards(rows: list[Row]) -> str:
    return listed(sorted({row["config"]["reward"] for row in rows}))


def sections(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """The tables: rows of the same budget and strength, with what stands above them."""
    found = []
    for budget in _budgets(rows):
        mine = [row for row in rows if row["budget"] == budget]
        title = f"{count(budget)} network rows per group"
        sweep = _sweep(rows)
        for lam in sweep:
            found.append((f"{title}, λ = {setting(lam)}", [row for row in mine if row["config"]["lam"] == lam]))
        found += [] if sweep else [(title, mine)]
    return [(title, mine) for title, mine in found if mine]


def _reasons(rows: list[Row]) -> list[tuple[str, str]]:
    """Which methods failed and why, each reason once."""
    return list(dict.fromkeys((row["method"], row["failed"]) for row in sorted(rows, key=lambda r: r["method"]) if "failed" in row))


def sentence(rows: list[Row]) -> str:
    """What was run, in words."""
    config, sweep = rows[0]["config"], _sweep(rows)
    lams = {row["method"]: row["config"]["lam"] for row in rows}
    same = len(set(lams.values())) == 1
    strength = f"λ = {setting(next(iter(lams.values())))}" if same else ", ".join(f"λ = {setting(v)} for {k}" for k, v in lams.items())
    strength = f"λ = {listed([setting(lam) for lam in sweep])}" if sweep else strength
    groups = config["groups"]
    g = len(config["model"].get("prompts") or [0]) if groups is None else groups if isinstance(groups, int) else len(groups)
    n, rewards = len({row["seed"] for row in rows}), len({row["config"]["reward"] for row in rows})
    over = plural(n, "seed") if rewards == 1 else f"{plural(rewards, 'reward')} and {plural(n, 'seed')}"
    return (
        f"{config['model']['name']} toward {_rewards(rows)}, {strength}, {config['steps']} steps, {plural(g, 'group')} per seed; means over "
        f"{over}" + (" ± their standard errors." if n * rewards > 1 else ".")
    )


def markdown(rows: list[Row]) -> str:
    """A table for each budget and strength, and what its columns say."""
    shown, made = columns(rows), ", ".join(sorted({row["viot"] for row in rows}))
    lines = [f"# viot bench {rows[0]['task']}", "", sentence(rows), ""]
    for title, mine in sections(rows):
        lines += [f"## {title}", "", _line(["method", *[c.title for c in shown]])]
        lines += ["|" + "---|" * (len(shown) + 1), *[_line(cells) for cells in body(mine, shown)], ""]
    lines += [f"- **{_cell(c.title)}**: {c.says}" for c in shown]
    lines += [f"- **{_cell(method)}** failed: {why}" for method, why in _reasons(rows)]
    return "\n".join([*lines, "", f"Made by viot {made}.", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def page(rows: list[Row]) -> str:
    """The same as one HTML document, with reward against quality, and quality against what it cost."""
    shown, task = columns(rows), rows[0]["task"]
    parts = [f'<header><p class="eyebrow">viot bench</p><h1>{escape(task)}</h1><p class="sub">{escape(sentence(rows))}</p></header>']
    parts += [
        f'<section><h2>{title}</h2><div class="wide">{drawing}</div></section>'
        for title, drawing in (figure(rows), *costs(rows))
        if drawing
    ]
    for title, mine in sections(rows):
        parts.append(
            f'<section class="bench"><h2>{escape(title)}</h2>{table(["method", *[c.title for c in shown]], body(mine, shown))}</section>'
        )
    said = "".join(f"<dt>{escape(c.title)}</dt><dd>{escape(c.says)}</dd>" for c in shown)
    failed = "".join(f'<p class="missing"><b>{escape(method)}</b> failed: {escape(why)}</p>' for method, why in _reasons(rows))
    made = ", ".join(sorted({row["viot"] for row in rows}))
    parts.append(
        f'<section><h2>Columns</h2><dl class="columns-said">{said}</dl>{failed}<p class="more">Made by viot {escape(made)}.</p></section>'
    )
    return document(f"bench {task}", "".join(parts))


#: What an answer's quality is, by the first that rows have: key, title, what stands at its axis.
QUALITY = (
    ("frechet", "distance", "Fréchet distance to the target"),
    ("mmd", "distance", "MMD to the target"),
    ("nll", "likelihood", "NLL under {model}, nats per text"),
)
SECONDS = Column("seconds", "seconds", "")


def _quality(rows: list[Row]) -> tuple[str, str, str] | None:
    there = (q for q in QUALITY if any((row.get("metrics") or {}).get(q[0]) is not None for row in rows))
    return next(there, None)


def _curves(rows: list[Row], x: Callable[[Row], float | None], y: Callable[[Row], float | None]) -> list[Line]:
    """A curve for each method: means over seeds, through its strengths at the largest budget where there are several, else through its budgets."""
    strong, lines = bool(_sweep(rows)), []
    for method in _methods(rows):
        mine = [row for row in rows if row["method"] == method and "metrics" in row]
        if strong:
            mine = [row for row in mine if row["budget"] == max(_budgets(rows))]
        by: dict[float, list[Row]] = {}
        for row in mine:
            by.setdefault(row["config"]["lam"] if strong else row["budget"], []).append(row)
        means = [(over_seeds([x(row) for row in by[at]]), over_seeds([y(row) for row in by[at]])) for at in sorted(by)]
        points = [(a.value, b.value) for a, b in means if a and b]
        if points:
            lines.append(Line(method, [a for a, _ in points], [b for _, b in points]))
    return lines


def figure(rows: list[Row]) -> tuple[str, str]:
    """Reward against the distance to the target or the bound on −log p, a curve for each method; against the budget where there is neither."""
    quality, config, model = _quality(rows), rows[0]["config"], rows[0]["config"]["model"]["name"]

    def reward(row: Row) -> float | None:
        return row["metrics"]["reward"]

    if quality is None:
        lines = _curves(rows, lambda row: float(row["budget"]), reward)
    else:
        lines = _curves(rows, lambda row: row["metrics"].get(quality[0]), reward)
    if not lines:
        return "Rewards", '<p class="missing">No method has an answer.</p>'
    if quality is None:
        note = "Weighted mean reward, means over seeds."
        return "Reward over budget", chart("Reward", note, lines, x_label="network rows per group", y_label="reward", whole=False)
    left = f"what {model} finds likely" if quality[0] == "nll" else "the target"
    through = (
        f"its strengths at {count(max(_budgets(rows)))} rows, from weak to strong"
        if _sweep(rows)
        else "a method's budgets, from small to large"
    )
    note = f"Up is what was asked for, left is {left}. A curve goes through {through}."
    name = "NLL" if quality[0] == "nll" else quality[2].split(" to ")[0]
    return f"Reward against {quality[1]}", chart(
        f"{config['reward'] if len({row['config']['reward'] for row in rows}) == 1 else 'Reward'} against {name}", note, lines,
        x_label=quality[2].format(model=model), y_label="reward", whole=False,
    )  # fmt: skip


def costs(rows: list[Row]) -> list[tuple[str, str]]:
    """Quality against budget and against wall clock, at each strength; nothing where there is one budget or no quality.

    Of texts it is the reward: how likely the plain model finds them is no aim of itself.
    """
    quality = _quality(rows)
    if quality is None or len(_budgets(rows)) < 2:
        return []
    key, _, label = quality
    aim = "lower is better"
    if key == "nll":
        key, label, aim = "reward", "reward, weighted mean", "higher is what was asked for"
    found = []
    for lam in _sweep(rows) or [None]:
        mine = [row for row in rows if lam is None or row["config"]["lam"] == lam]
        at = "" if lam is None else f", λ = {setting(lam)}"
        for title, x, x_label in (
            ("budget", lambda row: float(row["budget"]), "network rows per group"),
            ("wall clock", SECONDS.of, "seconds of a run, all its groups"),
        ):
            lines = _curves(mine, x, lambda row: row["metrics"].get(key))
            label = label.format(model=rows[0]["config"]["model"]["name"])
            note = f"{label[0].upper()}{label[1:]}{at}: {aim}. Means over seeds."
            short = label.split(",")[0]
            found.append((f"{short[0].upper()}{short[1:]} over {title}{at}", chart(label, note, lines, x_label=x_label, whole=False)))
    return found


def write(rows: list[Row], folder: Path) -> None:
    """Write table.md and report.html."""
    write_text(folder / "table.md", markdown(rows))
    write_text(folder / "report.html", page(rows))


def glimpse(rows: list[Row]) -> str:
    """The tables for a terminal: what fits into its width."""
    few = {"reward", "pick", "judge", "nll", "frechet", "mmd", "mmd exact", "modes", "vendi", "lineages", "reward_rows", "seconds"}
    few |= set(rows[0]["config"]["reading"]["judges"])
    shown = [c for c in columns(rows) if c.key in few and c.other is None]
    out = [sentence(rows)]
    for title, mine in sections(rows):
        head = ["method", *[c.title for c in shown]]
        out += [f"\n{title}\n", terminal.columns(head, body(mine, shown), numbers=True)]
    return "\n".join([*out, *(f"\n{method} failed: {why}" for method, why in _reasons(rows))])
