"""What a steered answer is held against: draws of the plain model weighed by exp(λ r) and, where it is known, the tilted law of the data.

The first is the target of every weighted method: the law of the chain that was run, tilted. The second is what a chain of infinitely many steps
would be tilted from; a method that met it exactly would have made the discretisation's error good by another one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import differences
from ..metrics.distances import as_measure, kernel_mean, median_distance, mode_mass, sliced_wasserstein, unit_directions
from ..model import Model
from ..models.gaussian import MixtureLaw
from ..particles import write_tensors
from ..problem import SteeringWarning
from ..registry import Registry
from ..reward import call
from ..rewards import as_reward
from ..task import Task

#: Points that a law keeps for distances, and directions of the sliced one: they are measured for every group of every row.
POINTS, DIRECTIONS = 2000, 32
#: Base draws in a file of the folder, and their seed: no row of a bench has it.
CHUNK, SEED = 512, -1

features = Registry("features")


@features.add("points", "the points themselves")
def _points() -> Callable[[Tensor], Tensor]:
    return lambda samples: samples.flatten(1).double()


@features.add("digits-judge", "the 96 features of a classifier of digits that steers nobody")
def _digits_judge() -> Callable[[Tensor], Tensor]:
    from ..rewards.digits import judge

    @torch.no_grad()
    def of(samples: Tensor) -> Tensor:
        net = judge()
        device = next(net.parameters()).device
        return torch.cat([net.features(part.to(device)).cpu() for part in samples.split(500)]).double()

    return of


# -- laws -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """A discrete measure that answers are held against: points (n, d) of the features, weights (n,), and log Z of its tilt.

    Distances are taken from `POINTS` equally weighted draws of it, made by equal steps through the cumulative weights.
    """

    points: Tensor
    weights: Tensor
    log_z: float
    bandwidth: float

    @cached_property
    def _drawn(self) -> Tensor:
        """(POINTS,) indices of the draws, in rising order."""
        at = torch.searchsorted(self.weights.cumsum(0), (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS)
        return at.clamp_max(len(self.points) - 1)

    @cached_property
    def drawn(self) -> Tensor:
        """(POINTS, d)"""
        return self.points[self._drawn]

    @cached_property
    def support(self) -> tuple[Tensor, Tensor]:
        """The different points that were drawn, and how often each: a neighbour of itself would have no reach."""
        which, times = self._drawn.unique_consecutive(return_counts=True)
        return self.points[which], times

    @cached_property
    def _own(self) -> float:
        return kernel_mean(self.drawn, self.drawn, bandwidth=self.bandwidth)

    @cached_property
    def _directions(self) -> Tensor:
        return unit_directions(DIRECTIONS, self.points.shape[1])

    def mmd(self, x: Tensor, weights: Tensor | None = None) -> float:
        """See `viot.metrics.mmd`; what does not depend on x is computed once."""
        own = kernel_mean(x, x, weights, weights, bandwidth=self.bandwidth)
        return max(0.0, own + self._own - 2 * kernel_mean(x, self.drawn, weights, bandwidth=self.bandwidth)) ** 0.5

    def sliced_wasserstein(self, x: Tensor, weights: Tensor | None = None) -> float:
        return sliced_wasserstein(x, self.drawn, weights, directions=self._directions)

    def draw(self, n: int, stream: torch.Generator) -> Tensor:
        """(n, d) independent draws."""
        return self.points[torch.multinomial(self.weights, n, replacement=True, generator=stream)]


@dataclass(frozen=True)
class Against:
    """What one target is: the chain's tilted law and its plain one, the tilted law of the data where it is known, and its modes if it has any."""

    chain: Law
    base: Law
    data: Law | None = None
    centres: Tensor | None = None
    radius: float | None = None

    @cached_property
    def modes(self) -> tuple[Tensor, float]:
        """Shares of the modes in the target, and of what is outside of them: those of the data where its law is known."""
        assert self.centres is not None
        assert self.radius is not None
        law = self.data or self.chain
        return mode_mass(law.points, self.centres, self.radius, law.weights)


def quadrature(law: MixtureLaw, reward: Callable, lam: float, bandwidth: float, fine: float = 5.0) -> Law:
    """The law ∝ p(x) exp(λ r(x)) of a mixture in two dimensions as points of a square grid, with log Z: for any reward that decays with p.

    fine   points per standard deviation of the narrowest component. The grid reaches eight of the widest beyond the means
    """
    spread = torch.linalg.eigvalsh(law.covs).sqrt()
    step, margin = float(spread.min()) / fine, 8 * float(spread.max())
    axes = [torch.arange(float(m.min()) - margin, float(m.max()) + margin + step, step, dtype=torch.float64) for m in law.means.T]
    x = torch.cartesian_prod(*axes)
    log_w = torch.cat([law.log_density(part) for part in x.split(2**14)]) + lam * reward(x) + 2 * math.log(step)
    log_z = log_w.logsumexp(0)
    kept = log_w > log_w.max() - 35
    return Law(*as_measure(x[kept], (log_w[kept] - log_z).exp()), log_z=float(log_z), bandwidth=bandwidth)


class References:
    """What the answers of a bench are held against, for each reward and λ: made when first asked for, from the same base draws.

    samples     (B, …) of the plain model
    bandwidth   of the kernel of the MMD; None = the median distance between base draws, in the features
    radius      modes are those of the model's mixture, this far around their means; None = it has none to speak of
    """

    def __init__(self, samples: Tensor, model: Model, kind: str, bandwidth: float | None = None, radius: float | None = None) -> None:
        self.samples, self.radius, self.of = samples, radius, features[kind].make()
        x = self.of(samples)
        known = getattr(model, "data_law", None)
        law = known() if callable(known) and kind == "points" and x.shape[1] == 2 else None
        self.law = law if isinstance(law, MixtureLaw) else None
        self.base = Law(*as_measure(x), log_z=0.0, bandwidth=median_distance(x) if bandwidth is None else bandwidth)
        self._made: dict[tuple[str, float], Against] = {}

    def against(self, reward: str, lam: float) -> Against:
        key = (reward, lam)
        if key not in self._made:
            scorer, n = as_reward(reward), len(self.samples)
            with torch.no_grad():
                log_w = lam * torch.cat([_scores(scorer, part) for part in self.samples.split(CHUNK)])
            log_w = log_w.nan_to_num(nan=-math.inf, posinf=-math.inf)
            if not bool(log_w.isfinite().any()):
                raise ValueError(f"none of the {n} base draws has a finite {reward}: they say nothing about its target; use --reference 0")
            h, log_z = self.base.bandwidth, float(log_w.logsumexp(0)) - math.log(n)
            data = None if self.law is None else quadrature(self.law, scorer, lam, h)
            centres = None if self.law is None or self.radius is None else self.law.means
            chain = Law(self.base.points, log_w.softmax(0), log_z, h)
            self._made[key] = Against(chain, self.base, data, centres, self.radius)
        return self._made[key]


def _scores(reward: Callable, samples: Tensor) -> Tensor:
    n = len(samples)
    return call(reward, samples, n, {"group": torch.zeros(n, dtype=torch.long), "noise": torch.zeros(n)})[0].detach().double().cpu()


# -- base draws -----------------------------------------------------------------------------------------------------------------------


def draw(folder: Path, task: Task, model: Model, n: int, config: dict[str, Any]) -> Tensor:
    """n samples (n, …) of the plain model, from files of `CHUNK` in the folder; those that are missing are drawn into it now.

    `config` says of which model and chain they are; files that say otherwise are refused.
    """
    config = json.loads(json.dumps({**config, "seed": SEED, "draws": CHUNK}))
    places = [folder / f"{i:03}.safetensors" for i in range(math.ceil(n / CHUNK))]
    # All files are looked at before anything is drawn.
    found = {path: _read(path, config) for path in places if path.exists()}
    bar = tqdm(total=len(places), initial=len(found), disable=None if len(found) < len(places) else True, desc="base draws")
    for i, path in enumerate(places):
        if path in found:
            continue
        run = replace(task, groups=(i,), particles=CHUNK, budget=None, seed=SEED).prepare(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SteeringWarning)
            samples = run.finish(progress=False).samples
        if not isinstance(samples, Tensor):
            raise TypeError(f"a reference is made of tensors, and {task.model} draws texts")
        found[path] = samples[0]
        write_tensors(path, {"samples": samples[0]}, {"config": json.dumps(config)})
        bar.update()
    bar.close()
    return torch.cat([found[path] for path in places])[:n]


def _read(path: Path, config: dict[str, Any]) -> Tensor:
    with safe_open(str(path), "pt") as file:
        there = json.loads((file.metadata() or {}).get("config", "{}"))
        if differ := list(differences(config, there)):
            raise ValueError(
                f"{path} holds base draws of another bench ({'; '.join(differ[:3])}). Give another --out, or remove that folder to have "
                f"them drawn anew."
            )
        return file.get_tensor("samples")
