"""What `viot compare` says of answers beside their reward: how far they went from the plain model, and what those think who steered nobody."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..metrics.distances import as_measure, kernel_mean
from ..model import Model
from ..models import models
from ..population import Population
from ..report.words import count, number, plural
from ..task import Task
from .features import read, summary
from .measure import Reading
from .preset import Preset
from .reference import SEED, Against, AgainstPrompts, Law, check_draws, common_bandwidth, conditions
from .tasks import tasks

#: Base draws of a group's model: as many as a run has particles, but so many at least, and no more than that.
LEAST, MOST = 32, 256
#: Network calls per text of the model's own bound on its likelihood.
BOUND = 8


def reading(task: Task, judges: list[str] | None, features: str | None, reference: int | None) -> Reading:
    """How the answers of a comparison are read. What is not asked for is that of a task of the same model, if there is one.

    judges     rewards that steer nobody; ["none"] = nobody
    features   in which answers are compared with base draws; "none" = in none
    reference  base draws for each group, 0 = no comparison with the model at all
    """
    check_draws(reference, each=" per group")
    # What is not of this package may have to be downloaded: that is for people to ask for.
    known = _known(task) if task.model in models else None
    names = list(known.judges) if judges is None and known is not None else [name for name in judges or [] if name != "none"]
    kind = features or (known.features if known is not None else None)
    return Reading(
        # A judge that steers is none.
        tuple(name for name in names if name != task.reward), known is not None and known.characters, BOUND if reference != 0 else 0,
        features=kind, reference=reference,
        bandwidth=known.bandwidth if known is not None and kind == known.features else None,
    )  # fmt: skip


def _known(task: Task) -> Preset | None:
    """A task of this model: the one that was asked for, or one of the same reward, or any."""
    every = {name: entry.make() for name, entry in tasks.entries.items()}
    mine = [
        preset
        for name, preset in every.items()
        if preset.model == task.model or (preset.portable and name == task.preset and preset.model in models)
    ]
    return max(
        mine, key=lambda p: (p is every.get(task.preset or ""), task.reward in (p.reward, *p.rewards), p.features is not None), default=None
    )


@dataclass(frozen=True)
class Held:
    """What answers are held against: the plain model's draws, for each group those of its prompt.

    kind      the features               draws   for each group
    nfe       network rows that they took, 0 where they are those of the base run
    others    they are those of other groups, or of other seeds; else the base run's own stand beside answers from the same noise
    """

    against: AgainstPrompts
    kind: str
    draws: int
    nfe: int
    others: bool

    def floor(self, particles: int) -> float:
        """The MMD at which as many independent draws of the plain model itself are, by its expected square."""
        squares = []
        for one in self.against.targets.values():
            points, m = one.base.points, len(one.base.points)
            own = kernel_mean(points, points, bandwidth=one.base.bandwidth)
            # The mean over pairs of different points.
            alike = (own - 1 / m) / (1 - 1 / m)
            squares.append((1 / particles + 1 / m) * max(0.0, 1 - alike))
        return (sum(squares) / len(squares)) ** 0.5

    def record(self, particles: int) -> dict[str, Any]:
        """For compare.json."""
        return {"features": self.kind, "draws": self.draws, "nfe": self.nfe, "floor": self.floor(particles), "says": self.says(particles)}

    def says(self, particles: int) -> str:
        """A sentence for people."""
        whose = (
            f"{plural(self.draws, 'draw')} of the plain model for each group, {count(self.nfe)} network rows, counted apart"
            if self.nfe
            else f"the {plural(self.draws, 'draw')} of the base run in other groups"
            if self.others
            else f"the {plural(self.draws, 'draw')} of the base run, from the same seed"
        )
        return (
            f"Base: {whose}, in {summary(self.kind)}. As many draws of the model itself as a group has particles would be at an MMD of about "
            f"{number(self.floor(particles), 2)}; precision is the share of the answer inside the base draws' support (third neighbours)."
        )


def held(how: Reading, plain: Task, model: Model, base: Population | None, groups: list[int], particles: int) -> Held | None:
    """Base draws to hold answers against: those of the base run where it has enough, else they are drawn now; None where there is no way.

    plain      the task of plain sampling                  base        its run, where it is one of those compared
    groups     indices of the groups that are compared     particles   of each
    """
    if how.reference == 0 or how.features == "none" or (how.reference is None and base is None and how.features is None):
        return None
    p = conditions(model)
    if how.reference is None and base is not None and base.modality != "text":
        kind = how.features or ("points" if base.modality == "tensor" else "thumbnail")
        x = _points(kind, base, model)
        apart = p == 1 and (len(x) - 1) * x.shape[1] >= LEAST
        laws = {
            g: torch.cat([x[j] for j, other in enumerate(groups) if (other != g if apart else other % p == g % p)])
            for g in (groups if apart or p > 1 else groups[:1])
        }
        if len(next(iter(laws.values()))) >= LEAST:
            return _held(laws if apart or p > 1 else dict.fromkeys(groups, laws[groups[0]]), kind, how.bandwidth, 0, apart)
    n = how.reference or min(MOST, max(LEAST, particles))
    which = [0] if p == 1 else sorted({g % p for g in groups})
    drawn = replace(plain, groups=tuple(which), particles=n, budget=None, seed=SEED, lam=1.0).prepare(model).finish()
    if drawn.modality == "text":
        return None
    kind = how.features or ("points" if drawn.modality == "tensor" else "thumbnail")
    x = dict(zip(which, _points(kind, drawn, model), strict=True))
    return _held({g: x[g % p] for g in groups}, kind, how.bandwidth, drawn.nfe, True)


def _points(kind: str, base: Population, model: Model) -> Tensor:
    """(G, K, d)"""
    return read(kind, base.samples.flatten(0, 1), model.device).view(*base.shape, -1)


def _held(points: dict[int, Tensor], kind: str, bandwidth: float | None, nfe: int, others: bool) -> Held:
    h = common_bandwidth(points) if bandwidth is None else bandwidth
    targets = {g: Against(None, Law(*as_measure(x), log_z=0.0, bandwidth=h)) for g, x in points.items()}
    draws = min(map(len, points.values()))
    return Held(AgainstPrompts(targets, max(points) + 1), kind, draws, nfe, others)


def told(how: Reading, held: Held | None, population: Population, model: Model, judges: dict[str, Any]) -> dict[str, Any]:
    """What compare.json says of an answer: the judge's share, judges, NLL, and how far from the base draws it is."""
    how = replace(how, features=None if held is None else held.kind)
    found = how(population, model, judges, None if held is None else held.against)
    # Beside its own draws the base run is at no distance.
    itself = held is not None and not held.nfe and not held.others and population.config["method"]["name"] == "base"
    return {
        "judge": found.get("judge"),
        "judges": {name: found[name] for name in judges},
        "nll": found.get("nll"),
        "mmd_base": None if itself else found.get("mmd base"),
        "precision_base": None if itself else found.get("precision base"),
    }
