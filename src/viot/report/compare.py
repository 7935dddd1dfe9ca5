"""Methods side by side on one task, at one budget: rows of numbers, and one page with a figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from ..rewards.referee import Referee
from .beside import side_by_side
from .gallery import tiles
from .page import document
from .pictures import order
from .search import findings
from .svg import LEFT, RIGHT, Line, Scale, axes, chart, figure, marker, ticks
from .text import best_text
from .verdict import standard_error, verdict
from .words import count, duration, listed, number, percent, plural, setting, table

if TYPE_CHECKING:
    from ..population import Population

DOTS, SHOWN = 400, 12
#: Beneath a figure of reward against distance to the plain model.
AWAY = "Up is what was asked for, right is away from the plain model. Of two that are as high, the left one kept more of it."


def judge_of(reward: str) -> Callable[[Population], float] | None:
    """A measure of the weighted share of samples that a referee reads as wanted; None for rewards that nobody checks."""
    referee = Referee.of(reward)
    if referee is None:
        return None

    def share(population: Population) -> float:
        read = referee.agrees(population.samples.flatten(0, 1)).view(population.shape).double()
        return float(population.mean(read)[population.ess > 0].mean())

    return share


def row(name: str, population: Population, told: dict[str, Any] | None = None) -> dict[str, Any]:
    """What compare.json says of one method: means over the groups. `told` by those who did not steer, see `viot.bench.compared`."""
    told = told or {}

    def mean(values: torch.Tensor) -> float | None:
        finite = values[values.isfinite()].double()
        return float(finite.mean()) if len(finite) else None

    living = population.ess > 0
    error = standard_error(population) if population.exact else math.nan
    finite = population.rewards[population.rewards.isfinite()]
    return {
        "method": name,
        "exact": population.exact,
        "mean_reward": mean(population.mean()[living]),
        "standard_error": None if math.isnan(error) else error,
        "best_reward": float(finite.max()) if len(finite) else None,
        "best_per_prompt": mean(population.rewards.amax(-1)) if len(population.prompts) > 1 else None,
        # A tree's draws are equally weighted, whatever they are worth: what tells is how many leaves share its law.
        "ess": mean(population.ess if population.tree is None else findings(population).effective) if population.exact else None,
        "log_z": mean(population.log_z),
        "lineages": mean(population.surviving_lineages),
        "particles": population.shape[1],
        "judge": told.get("judge"),
        "judges": told.get("judges") or {},
        "nll": told.get("nll"),
        "mmd_base": told.get("mmd_base"),
        "precision_base": told.get("precision_base"),
        "nfe": population.nfe,
        "reward_rows": population.reward_rows,
        "seconds": population.seconds.get("total", 0.0),
        "verdict": verdict(population).headline,
        **({"best_text": best.text if (best := best_text(population, 0)) else None} if population.modality == "text" else {}),
    }


def cells(rows: list[dict[str, Any]], failures: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """The table's head and body as text. A column in which nobody has anything is left out."""

    def show(value: float | None, how: Any = number) -> str:
        return "–" if value is None else how(value)

    kinds = [
        ("method", lambda r: r["method"]),
        (
            "mean reward",
            lambda r: show(r["mean_reward"]) + ("" if r["standard_error"] is None else f" ±\u00a0{number(r['standard_error'], 2)}"),
        ),
        ("best", lambda r: show(r["best_reward"])),
        ("best per prompt", lambda r: show(r["best_per_prompt"])),
        ("judge", lambda r: show(r["judge"], percent)),
        *[(name, _judged(name, show)) for name in dict.fromkeys(name for r in rows for name in r["judges"])],
        ("NLL", lambda r: show(r["nll"])),
        ("MMD to base", lambda r: show(r["mmd_base"])),
        ("precision, base", lambda r: show(r["precision_base"], percent)),
        ("ESS", lambda r: "–" if r["ess"] is None else f"{number(r['ess'])} of {count(r['particles'])}"),
        ("log Z", lambda r: show(r["log_z"])),
        ("lineages", lambda r: show(r["lineages"])),
        ("network rows", lambda r: count(r["nfe"])),
        ("time", lambda r: duration(r["seconds"])),
    ]
    kinds = [(name, cell) for name, cell in kinds if name == "method" or any(cell(r) != "–" for r in rows)]
    body = [[cell(r) for _, cell in kinds] for r in rows]
    body += [[name, "died", *["–"] * (len(kinds) - 2)] for name in failures]
    return [name for name, _ in kinds], body


def _judged(name: str, show: Callable[..., str]) -> Callable[[dict[str, Any]], str]:
    return lambda r: show(r["judges"].get(name))


def strength(lam: float | dict[str, float]) -> str:
    """The λ of all methods, or of each where a task was published with several."""
    if isinstance(lam, dict):
        return "λ\u00a0=\u00a0" + listed([f"{setting(value)} for {name}" for name, value in lam.items()])
    return f"λ\u00a0=\u00a0{setting(lam)}"


def comparison(
    task: dict[str, Any], rows: list[dict[str, Any]], populations: dict[str, Population], folders: dict[str, str], failures: dict[str, str]
) -> str:
    """The page of a comparison. `folders` leads from a method to its own report, relative to this page."""
    g, budget = len(task["groups"]), task["budget"]
    heading = f"{task['model']}, steered toward {task['reward']}"
    spent = f"{count(budget)} network rows" + (f" in each of {plural(g, 'group')}" if g > 1 else "")
    sub = f"{plural(len(rows) + len(failures), 'method')} at one budget: {spent}, {task['steps']} steps, {strength(task['lam'])}."
    sub += " These are the published strengths: the methods' targets differ, and with them what their means aim at." * isinstance(
        task["lam"], dict
    )
    judged = any(r["judge"] is not None for r in rows)
    judge = " The judge is another network, never steered by: the weighted share of samples that it reads as wanted." if judged else ""
    if any(r["nll"] is not None for r in rows):
        judge += " NLL: nats per text under the plain model, an upper bound."
    judge += f" {says}" if (says := task.get("base", {}).get("says")) else ""
    died = "".join(f'<p class="missing"><b>{escape(name)}</b> {escape(why)}</p>' for name, why in failures.items())
    body = f'<header><p class="eyebrow">viot comparison</p><h1>{escape(heading)}</h1><p class="sub">{escape(sub)}</p></header>'
    body += f'<section><h2>Results</h2>{table(*cells(rows, failures))}<p class="more">Means over groups, weighted where the method has weights.{judge}</p>{died}</section>'
    body += f"<section><h2>Rewards</h2>{strips(populations)}</section>"
    if gone := _gone(task, rows):
        body += f'<section><h2>Reward against distance</h2><div class="charts">{gone}</div></section>'
    try:
        beside = side_by_side(populations)
    except ImportError:
        beside = ""
    if beside:
        body += f"<section><h2>Side by side</h2>{beside}</section>"
    shown = []
    for r in rows:
        name, population = r["method"], populations[r["method"]]
        link = f' <a href="{escape(folders[name])}/report.html">full report</a>' if name in folders else ""
        which = [(0, j) for j in order(population)[0, :SHOWN].tolist()]
        few = "" if population.modality == "tensor" or beside else _pictures(population, which)
        shown.append(f'<h3>{escape(name)}</h3><p class="lede">{escape(r["verdict"])}{link}</p>{few}')
    where = " of the first group" if g > 1 else ""
    kind = any(p.modality != "tensor" for p in populations.values()) and not beside
    return document(
        heading, f'{body}<section class="by-weight"><h2>{f"Heaviest samples{where}" if kind else "Verdicts"}</h2>{"".join(shown)}</section>'
    )


def _gone(task: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Mean reward against how far from the plain model each method went: in features, or of texts by their likelihood."""
    drawn = ""
    for key, label in (("mmd_base", "MMD to the plain model"), ("nll", "NLL under the plain model, nats per text")):
        known = [r for r in rows if r[key] is not None and r["mean_reward"] is not None]
        if len(known) > 1:
            lines = [Line(r["method"], [r[key]], [r["mean_reward"]]) for r in known]
            drawn += chart(f"{task['reward']} against {label.partition(',')[0]}", AWAY, lines, x_label=label, y_label="reward", whole=False)
    return drawn


def _pictures(population: Population, which: list[tuple[int, int]]) -> str:
    try:
        return tiles(population, which, population.weights)
    except ImportError as error:
        return f'<p class="missing">The pictures are missing here: {escape(str(error))}</p>'


def strips(populations: dict[str, Population]) -> str:
    """Every method a row, every particle a dot at its reward, its area the weight; the weighted mean a bar, the best a diamond."""
    width, height, top = 760, 46, 8
    finite = [p.rewards[p.rewards.isfinite()] for p in populations.values()]
    values = torch.cat(finite) if finite else torch.zeros(0)
    if not len(values):
        return ""
    marks = ticks(float(values.min()), float(values.max()), 7)
    marks = marks if len(marks) > 1 else [marks[0] - 0.5, marks[0], marks[0] + 0.5]
    # In these units of the drawing a letter of a method's name is about 7 wide.
    left = min(260, max(LEFT, 12 + 7 * max(map(len, populations))))
    x = Scale(marks[0], marks[-1], left, width - RIGHT)
    bottom = top + height * len(populations)
    out = [axes(x, marks, top, bottom, "reward")]
    generator = torch.Generator().manual_seed(0)
    for n, (name, population) in enumerate(populations.items()):
        middle = top + height * (n + 0.5)
        out.append(f'<text class="name" x="{left - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        rewards, w = population.rewards.flatten(), population.weights.flatten()
        kept = torch.nonzero(rewards.isfinite())[:, 0]
        kept = kept[torch.randperm(len(kept), generator=generator)[:DOTS]] if len(kept) > DOTS else kept
        height_of = (torch.rand(len(kept), generator=generator) - 0.5) * height * 0.5
        largest = float(w.max()) or 1.0
        for j, dy in zip(kept.tolist(), height_of.tolist(), strict=True):
            radius = 0.8 + 3.4 * math.sqrt(float(w[j]) / largest)
            out.append(f'<circle class="dot" cx="{x(float(rewards[j])):.1f}" cy="{middle + dy:.1f}" r="{radius:.1f}"/>')
        if (population.ess > 0).any():
            mean = float(population.mean()[population.ess > 0].mean())
            tip = f"<title>{escape(name)}: mean {number(mean)}</title>"
            out.append(f'<path class="mean" d="M{x(mean):.1f} {middle - 15:.1f}v30">{tip}</path>')
        if len(kept):
            best = float(rewards[rewards.isfinite()].max())
            out.append(marker(x(best), middle, 3, f"<title>{escape(name)}: best {number(best)}</title>", 4.5))
    note = "Each dot is a particle, its area the weight; the bar is the mean, the diamond the best."
    most = max(p.rewards.numel() for p in populations.values())
    note += f" Of each method a sample of {DOTS} is drawn." if most > DOTS else ""
    return figure("Rewards of the particles", note, "", "".join(out), width, bottom + 40, "tree")
