"""One self-contained HTML page about a population: what was done, how far to trust it, the samples, and what happened on the way."""

from __future__ import annotations

import json
import math
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from .gallery import gallery, group_label
from .journey import charts, trees
from .search import findings, search
from .training import training
from .verdict import standard_error, verdict
from .words import count, duration, number, obstacle, percent, plural, repeat_line, sentence, table, title

if TYPE_CHECKING:
    from ..population import Population

#: A sign beside the words, so that the verdict's level is not a matter of colour alone.
SIGNS = {"believe": "✓", "caution": "!", "doubt": "✕", "note": "i"}
ROWS = 64


@cache
def style() -> str:
    return files("viot.report").joinpath("style.css").read_text(encoding="utf-8")


def document(heading: str, body: str) -> str:
    """A whole page around `body`."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(heading)} · viot</title><style>{style()}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def page(population: Population) -> str:
    """The report as one HTML document: no network, no scripts, light and dark, readable at phone width and in print."""
    heading = title(population)
    sections = [
        ("Prompts" if population.prompts else "Samples", gallery(population)),
        ("Parts of the reward", _parts(population)),
        ("Groups", _groups(population)),
        ("Training", training(population)),
        ("On the way", charts(population)),
        ("Genealogy", trees(population)),
        ("Search tree", search(population)),
        ("Cost", _cost(population)),
        ("Run it again", _again(population)),
    ]
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections if content)
    return document(heading, _head(population, heading) + body)


def notebook(population: Population, height: int = 720) -> str:
    """The page in a frame of its own, so that neither its style nor the notebook's reaches the other."""
    return (
        f'<iframe title="viot report" srcdoc="{escape(page(population))}" sandbox="" '
        f'style="width:100%;height:{height}px;border:1px solid #8884;border-radius:8px"></iframe>'
    )


# -- the top --------------------------------------------------------------------------------------------------------------------------


def _head(population: Population, heading: str) -> str:
    found = verdict(population)
    # Candidates of a maximiser are neither to be believed nor doubted.
    look = found.level if population.exact or found.level != "believe" else "note"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in found.reasons)
    return (
        f'<header><p class="eyebrow">viot report</p><h1>{escape(heading)}</h1><p class="sub">{escape(sentence(population))}</p></header>'
        f'<div class="verdict {look}"><span class="sign" aria-hidden="true">{SIGNS[look]}</span>'
        f"<div><p>{escape(found.headline)}</p>{f'<ul>{reasons}</ul>' if reasons else ''}</div></div>{_tiles(population)}"
    )


def _tiles(population: Population) -> str:
    g, k = population.shape
    rewards = population.rewards[population.rewards.isfinite()]
    means = population.mean()[population.ess > 0]
    error = standard_error(population) if population.exact else math.nan
    how = "weighted" if population.tree is None else "of the draws"
    weighted = how if math.isnan(error) else f"±\u00a0{number(error, 2)}, {how}"
    facts = [("mean reward", number(means.mean()) if len(means) else "–", weighted if population.exact else "of the particles")]
    best = population.rewards.amax(-1)
    if population.prompts and g > 1 and best.isfinite().any():
        # What text-to-image tables report: the best of each prompt, averaged.
        facts.append(("best per prompt", number(best[best.isfinite()].mean()), f"{number(best.max())} the highest"))
    else:
        facts.append(("best reward", number(rewards.max()) if len(rewards) else "–", f"of {count(g * k)}"))
    each = " per group" if g > 1 else ""
    if population.tree is not None:
        # Draws of a tree are equally weighted: what they are worth is seen in the tree.
        seen = findings(population)
        found = seen.found.double().mean()
        if population.exact:
            facts.append(("effective leaves", number(seen.effective.mean()), f"of {count(found)}{each}"))
        facts.append(("distinct samples", number(seen.distinct.double().mean()), f"of {count(k)}{each}"))
        facts.append(("finished samples", count(found), f"found{each}"))
    elif population.exact:
        facts.append(("effective sample size", number(population.ess.mean()), f"of {count(k)}{each}"))
    z = population.log_z[population.log_z.isfinite()]
    if len(z):
        apart = f"±\u00a0{number(z.std(), 2)} over groups" if len(z) > 1 else "log E exp(λ r)"
        # Prompts have evidences of their own: how these differ says nothing of how well they are known.
        apart = "mean over prompts" if len(set(population.prompts)) > 1 else apart
        facts.append(("log Z", number(z.mean()), apart))
    if len(population.ancestors):
        left = population.surviving_lineages.double().mean()
        facts.append(("lineages left", number(left, 3 if g > 1 else 6), f"of {count(population.ancestors.shape[-1])}"))
    if population.unsteered is not None:
        draws = plural(population.unsteered.shape[1], "draw") + (" each" if g > 1 else "")
        facts.append(("unsteered reward", number(population.unsteered.mean().nanmean()), f"mean of {draws}"))
    if "nsfw" in population.parts:
        facts.append(("flagged nsfw", count(population.flagged.sum()), f"of {count(g * k)}"))
    facts.append(("network rows", count(population.nfe), duration(population.seconds.get("total", 0.0))))
    return '<dl class="facts">' + "".join(f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in facts) + "</dl>"


# -- the middle -----------------------------------------------------------------------------------------------------------------------


def _parts(population: Population) -> str:
    # A checker's flags are no part of the score.
    parts = {name: part for name, part in population.parts.items() if name != "nsfw"}
    if not parts:
        return ""
    rows = []
    for name, part in parts.items():
        best = part.gather(-1, population.rewards.nan_to_num(nan=-math.inf).argmax(-1, keepdim=True))
        rows.append([name, number(population.mean(part).mean()), number(best.mean()), number(part.amin()), number(part.amax())])
    return table(["part", "weighted mean", "at the best sample", "lowest", "highest"], rows)


def _groups(population: Population) -> str:
    g = population.shape[0]
    if g == 1:
        return ""
    mean, best = population.mean(), population.rewards.amax(-1)
    if population.tree is not None:
        seen = findings(population)
        head = ["effective leaves", "distinct", "found"]
        more = list(zip(map(number, seen.effective), map(count, seen.distinct), map(count, seen.found), strict=True))
    else:
        head = ["ESS", "log Z", "lineages"]
        more = list(zip(map(number, population.ess), map(number, population.log_z), map(count, population.surviving_lineages), strict=True))
    rows = [[group_label(population, i), number(mean[i]), number(best[i]), *more[i]] for i in range(min(g, ROWS))]
    rest = f'<p class="more">and {count(g - ROWS)} more</p>' if g > ROWS else ""
    return table(["group", "mean reward", "best reward", *head], rows) + rest


# -- the end --------------------------------------------------------------------------------------------------------------------------


def _cost(population: Population) -> str:
    rows = [
        ("network", "rows through the network", population.nfe, "network"),
        ("gradient", "rows through its gradient", population.grad_rows, None),
        ("decode", "rows decoded", population.decode_rows, "decode"),
        ("reward", "rows scored", population.reward_rows, "reward"),
        ("selection", "", None, "selection"),
    ]
    total = population.seconds.get("total", 0.0)
    known = sum(population.seconds.get(clock, 0.0) for *_, clock in rows if clock)
    lines = [(name, what, n, population.seconds.get(clock) if clock else None) for name, what, n, clock in rows if n or clock]
    lines.append(("everything else", "", None, max(0.0, total - known)))
    cells = []
    for name, what, n, seconds in lines:
        share = seconds / total if seconds is not None and total else 0.0
        time = "" if seconds is None else duration(seconds)
        bar = "" if seconds is None else f'<i style="--share:{share:.4f}"></i><span>{percent(share)}</span>'
        rows_text = "" if n is None else f"{count(n)} {what.partition(' ')[0]}"
        cells.append(f'<tr><td>{name}</td><td>{rows_text}</td><td>{time}</td><td class="share"><div>{bar}</div></td></tr>')
    foot = f"<tr><td>total</td><td></td><td>{duration(total)}</td><td></td></tr>"
    faults = f'<p class="more">{count(population.faults)} rewards were NaN or +inf and counted as dead.</p>' if population.faults else ""
    pilot = population.config.get("lam_pilot")
    solved = (
        f'<p class="more">Before that, {count(pilot["nfe"])} network rows solved λ for {escape(str(pilot["wish"]))}.</p>' if pilot else ""
    )
    beside = population.unsteered
    apart = f'<p class="more">Counted apart: {_apart(population, beside)}</p>' if beside is not None else ""
    return (
        f'<div class="scroll"><table class="cost"><thead><tr><th>what</th><th>rows</th><th>time</th><th>share of the time</th></tr></thead>'
        f"<tbody>{''.join(cells)}</tbody><tfoot>{foot}</tfoot></table></div>{faults}{solved}{apart}"
    )


def _apart(population: Population, beside: Population) -> str:
    if not beside.nfe:
        return "nothing. The unsteered draws are the first ones of the comparison's base run."
    n, each = beside.shape[1], " per group" if population.shape[0] > 1 else ""
    return f"{plural(n, 'unsteered draw')}{each}, {count(beside.nfe)} network rows in {duration(beside.seconds.get('total', 0.0))}."


def _again(population: Population) -> str:
    config = population.config
    line = repeat_line(config)
    why = obstacle(config) or ""
    how = f"<pre><code>{line}</code></pre>" if line else f'<p class="lede">{escape(why[:1].upper() + why[1:])}</p>'
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return f"{how}<details><summary>Configuration</summary><pre><code>{escape(text)}</code></pre></details>"
