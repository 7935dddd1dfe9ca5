"""What a terminal shows: tables in columns, and the end of a run in a dozen lines."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from .search import findings
from .text import glimpse
from .verdict import standard_error, verdict
from .words import count, duration, number, plural, sentence, size, title

if TYPE_CHECKING:
    from ..cost import Estimate
    from ..population import Population

WIDTH = 100
BOLD, DIM, PLAIN = "\033[1m", "\033[2m", "\033[0m"
TONES = {"believe": "\033[32m", "caution": "\033[33m", "doubt": "\033[31m"}
SIGNS = {"believe": "✓", "caution": "!", "doubt": "✗"}


def columns(head: list[str], rows: list[list[str]], numbers: bool = False, width: int = 0) -> str:
    """A table in aligned columns; with `numbers` all but the first column are set to the right, with `width` the last one is wrapped there."""
    wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    room = max(24, width - sum(wide[:-1]) - 2 * len(head)) if width else wide[-1]

    def line(cells: list[str]) -> str:
        put = [cell.rjust(w) if numbers and i else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, wide, strict=True))]
        return "  ".join(put).rstrip()

    out = [line(head), "  ".join("─" * min(w, room) if i == len(wide) - 1 else "─" * w for i, w in enumerate(wide))]
    for row in rows:
        pieces = textwrap.wrap(row[-1], room) or [""] if width else [row[-1]]
        out.append(line([*row[:-1], pieces[0]]))
        out += [line([*[""] * (len(row) - 1), piece]) for piece in pieces[1:]]
    return "\n".join(out)


def facts(rows: list[tuple[str, str]]) -> str:
    """Names and what belongs to them, in two columns."""
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(wide)}   {value}" for name, value in rows)


def summary(
    population: Population, folder: Path | None = None, again: str | None = None, colour: bool = False, told: frozenset[str] = frozenset()
) -> str:
    """The end of a run: what was done, the verdict, the scores, the cost, and where the files are. Reasons in `told` are not repeated."""
    found = verdict(population)
    bold, plain = (BOLD, PLAIN) if colour else ("", "")
    sign = f"{TONES[found.level]}{SIGNS[found.level]}{PLAIN}" if colour else SIGNS[found.level]
    lines = [f"{bold}{title(population)}{plain}", sentence(population), "", f"  {sign} {bold}{found.headline}{plain}"]
    for reason in found.reasons:
        if not any(reason.lower() in text.lower() for text in told):
            lines += textwrap.wrap(reason, WIDTH, initial_indent="    ", subsequent_indent="    ")
    lines += ["", facts(_scores(population))]
    if population.modality == "text" and (best := glimpse(population)):
        lines += ["", facts([(name.ljust(len("lineages left")), line) for name, line in best])]
    if folder is not None:
        names = [
            name
            for name in ("report.html", "samples.png", "samples.txt", "images", "run.json", "population.safetensors", "tree.safetensors")
            if (folder / name).exists()
        ]
        kept = [("files", f"{folder}: {', '.join(names)}")] + ([("again", again)] if again else [])
        lines += ["", facts([(name.ljust(len("lineages left")), value) for name, value in kept])]
    return "\n".join(lines)


def _scores(population: Population) -> list[tuple[str, str]]:
    g, k = population.shape
    finite = population.rewards[population.rewards.isfinite()]
    means = population.mean()[population.ess > 0]
    error = standard_error(population) if population.exact else math.nan
    rows = [("mean reward", (number(means.mean()) if len(means) else "–") + ("" if math.isnan(error) else f" ±\u00a0{number(error, 2)}"))]
    rows.append(("best reward", number(finite.max()) if len(finite) else "–"))
    best, different = population.rewards.amax(-1), len(set(population.prompts)) > 1
    if different and best.isfinite().any():
        rows[-1] = ("best reward", f"{number(best[best.isfinite()].mean())} per prompt, {number(best.max())} the highest")
    per_group = " per group" if g > 1 else ""
    if population.tree is not None:
        seen = findings(population)
        spread = f"{number(seen.effective.mean())} effective of " if population.exact else ""
        rows.append(("leaves", f"{spread}{count(seen.found.double().mean())} found{per_group}"))
        rows.append(("distinct", f"{number(seen.distinct.double().mean())} of {plural(k, 'sample')}{per_group}"))
    elif population.exact:
        rows.append(("ESS", f"{number(population.ess.mean())} of {count(k)}{per_group}"))
    z = population.log_z[population.log_z.isfinite()]
    if len(z):
        rows.append(("log Z", number(z.mean()) + (f" ±\u00a0{number(z.std(), 2)} over groups" if len(z) > 1 and not different else "")))
    if len(population.ancestors):
        rows.append(
            (
                "lineages left",
                f"{number(population.surviving_lineages.double().mean())} of {count(population.ancestors.shape[-1])}{per_group}",
            )
        )
    beside = population.unsteered
    if beside is not None:
        drawn = plural(beside.shape[1], "draw") + per_group
        drawn += f", {plural(beside.nfe, 'network row')} counted apart" if beside.nfe else ""
        rows.append(("unsteered", f"mean reward {number(beside.mean().nanmean())} of {drawn}"))
    if "nsfw" in population.parts:
        rows.append(("flagged nsfw", f"{count(population.flagged.sum())} of {plural(g * k, 'picture')}, by the model's own checker"))
    spent = [plural(population.nfe, "network row")] + [plural(population.grad_rows, "gradient row")] * bool(population.grad_rows)
    spent += [plural(population.reward_rows, "reward row"), duration(population.seconds.get("total", 0.0))]
    return [*rows, ("cost", ", ".join(spent))]


def costed(found: Estimate, particles: int, batch_size: int | None) -> str:
    """What a run would cost: rows, seconds per row and in all for each phase, and memory."""
    rows, seconds, memory = found.total, found.seconds, found.memory
    counted = {"network": rows.network, "decode": rows.decode, "reward": rows.reward, "moving": rows.network}
    body = [[name, count(n), _each(seconds[name] / n if n else 0.0), duration(seconds[name])] for name, n in counted.items()]
    table = columns(["", "rows", "each", "time"], [*body, ["total", "", "", duration(seconds["total"])]], numbers=True)
    lines = textwrap.indent(table, "  ").splitlines()
    said = [f"{plural(rows.gradient, 'network row')} with their gradient, {_each(found.each['gradient'])} each"] if rows.gradient else []
    said += [f"{plural(more.network, 'network row')} of them {_WHY.get(name, name)}" for name, more in found.extra.items()]
    said.append(f"measured on {plural(memory.rows, 'row')} at a time, after a first step of {duration(found.first)}")
    if memory.peak is not None and not memory.cuda:
        said.append(
            f"memory: {size(memory.peak)} for the model and {plural(memory.rows, 'row')} at a time, {size(memory.held)} for what the run holds"
        )
    elif memory.peak is not None:
        said.append(
            f"memory: {size(memory.peak)} at the peak of {plural(memory.rows, 'row')} on the accelerator, {size(memory.held)} for what the run holds"
        )
        batch = min(batch_size or particles, particles)
        said.append(
            f"about {size(memory.whole or 0)} in all with {plural(batch, 'row')} at a time"
            + ("" if batch_size else "; --batch-size needs less")
        )
    said.append("nothing was written")
    return "\n".join([*lines, "", *(f"  {line}" for line in said)])


def _each(seconds: float) -> str:
    """A row's time: small ones with their digits, because thousands of them follow."""
    return duration(seconds) if seconds >= 0.1 else f"{number(1000 * seconds, 2)} ms"


#: Why rows are counted apart from those of the run.
_WHY = {"pilot": "for the pilot that solves λ", "unsteered": "for unsteered draws to look at beside"}
