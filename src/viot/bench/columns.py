"""What the columns of a bench's tables hold, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..report.words import count, fixed, number
from . import features
from .measure import TRACED
from .reference import EFFECTIVE
from .rows import Row, rewards_of


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
    model, reward = config["model"]["name"], rewards_of(rows)
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
        *[Column(f"{name} pick", f"{name} of best", "the same reader, of the best of each group") for name in reading["judges"]],
        *(_distances(reading, len(config["model"].get("prompts") or ()) > 1) if measured else []),
        *[
            Column(f"dist-{n}", f"dist-{n}", f"different {n}-grams of {units} per {n}-gram of a group: to be compared at the same K only")
            for n in (1, 2, 3)
        ],
        Column("different", "different", "share of a group's texts that differ"),
        Column("vendi", "Vendi", f"effective number of different {'samples' if measured else 'texts'} in a group, {vendi}"),
        Column("returned", "K", "particles that a group returns"),
        Column("ess", "ESS", "effective sample size at the end"),
        Column("lineages", "lineages", "initial particles with a descendant in the answer"),
        *[Column(name, TRACED[name].title, TRACED[name].says) for name in reading.get("trace") or () if name in TRACED],
        Column("log z", "log Z", "estimate of log E exp(λ r)"),
        Column("log z error", "error of log Z", "distance of a group's estimate to that of all base draws"),
        Column("nfe", "network rows", "spent per group"),
        Column("reward_rows", "reward rows", "spent per group"),
        Column("grad_rows", "gradient rows", "spent per group"),
        Column("seconds", "seconds", "of a run, all its groups"),
    ]
    # Nobody's gradients are no column.
    return [c for c in known if any(c.of(row) is not None for row in rows) and (c.key != "grad_rows" or any(c.of(row) for row in rows))]


def _distances(reading: dict[str, Any], prompted: bool) -> list[Column]:
    """The columns of points and pictures."""
    of, n = features.summary(reading["features"]), count(reading["reference"] or 0)
    target = f"the target: {n} base draws weighed by exp(λ r)"
    together, base = target, "to the plain model: how far it was steered"
    if prompted:
        target = f"the target of its prompt: {n} base draws of it weighed by exp(λ r)"
        together = f"the targets of their prompts: {n} base draws of each weighed by exp(λ r)"
        base = f"of a group's weighted particles to {n} base draws of its prompt: how far it was steered; a Gaussian kernel in {of}, not squared"
    few = f"effective number of base draws of a prompt in its target; prompts of fewer than {EFFECTIVE:g} are left out of distances to targets"
    two = "the smaller of the weighted and the uniform one, row by row"
    return [
        # First of all how far steering went: what is gained in reward may be lost there.
        Column("mmd base", "MMD to base", base),
        Column(
            "precision base",
            "precision, base",
            "weighted share inside the plain model's support: what lies outside of it the model would not draw",
        ),
        Column(
            "frechet",
            "Fréchet",
            f"squared, between all groups' particles together, weighted, and {together}; in {of}, biased upwards for few",
        ),
        Column("frechet", "Fréchet, best of the two", two, "frechet uniform"),
        Column("mmd", "MMD", f"of a group's weighted particles to {target}; a Gaussian kernel in {of}, not squared"),
        Column("mmd uniform", "MMD, uniform", "the same, all particles alike"),
        Column("mmd", "MMD, best of the two", two, "mmd uniform"),
        Column("mmd exact", "MMD of exact draws", "what as many independent draws of the target get"),
        Column("mmd data", "MMD to data", "to the tilted law of the data itself, by quadrature, weighted"),
        Column(
            "cmmd",
            "CMMD to base",
            f"between all groups' particles together, weighted, and base draws of the same prompts, as it is published (arXiv 2401.09603): MMD² "
            f"× {features.CMMD_SCALE:g}, a kernel of width {features.CMMD_BANDWIDTH:g} in {of}",
        ),
        Column("swd", "SWD", "sliced Wasserstein-2 distance to the target, weighted"),
        Column("swd", "SWD, best of the two", two, "swd uniform"),
        Column("swd exact", "SWD of exact draws", "what as many independent draws of the target get"),
        Column("swd data", "SWD to data", "to the tilted law of the data itself, weighted"),
        Column("modes", "modes", "total variation between the masses of the modes and those of the target"),
        Column("missed", "missed modes", "modes of a hundredth of the target or more without a particle"),
        Column("precision", "precision", f"share of equally weighted draws inside the target's support (third neighbours, in {of})"),
        Column("recall", "recall", "share of the target inside their support: to be compared at the same K only"),
        *([Column("target ess", "ESS of the target", few)] if prompted else []),
        Column("euclidean", "diversity", f"mean distance between two particles of a group, in {of}, weighted"),
        Column("cosine", "diversity, cosine", "mean of 1 − cosine between two of them"),
    ]
