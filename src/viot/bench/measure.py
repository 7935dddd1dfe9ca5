"""What is said of an answer beside the reward that steered it: how likely the model finds it, what others think of it, how diverse it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import resample
from ..metrics.text import distinct, ngram_kernel, vendi
from ..model import Model
from ..population import Population
from ..report.search import findings
from ..reward import call
from ..rewards import as_reward


@dataclass(frozen=True)
class Reading:
    """How answers are read, the same for every row of a bench.

    judges       names of rewards that steer nobody: another classifier, an n-gram model of the data, …
    characters   texts are compared by n-grams of characters, not of words
    draws        network calls per text for the model's own bound on its likelihood, where it offers `nll(x0, group, draws, generator)`;
                 they are counted as nobody's
    """

    judges: tuple[str, ...] = ()
    characters: bool = False
    draws: int = 32

    def ready(self) -> dict[str, Callable]:
        """The judges themselves."""
        return {name: as_reward(name) for name in self.judges}

    def __call__(self, population: Population, model: Model, judges: dict[str, Callable]) -> dict[str, float | None]:
        """Numbers by name, means over the groups; None for what cannot be told of this answer.

        `reward`, `nll` and judges are weighted means, `uniform` is the mean of all particles alike, `pick` that of each group's best, and
        `nll pick` its bound. Diversity is that of equally weighted draws.
        """
        living = population.ess > 0
        best = population.best(1)
        flat = population.rewards[population.rewards.isfinite()]
        found = {
            "reward": _mean(population.mean()[living]),
            "uniform": _mean(flat),
            "pick": _mean(best.rewards),
            "lineages": _mean(population.surviving_lineages),
            # Draws of a tree are equally weighted whatever they are worth: what tells is how many leaves share its law.
            "ess": _mean(population.ess if population.tree is None else findings(population).effective) if population.exact else None,
            "log z": _mean(population.log_z),
            "returned": float(population.shape[1]),
        }
        if callable(bound := getattr(model, "nll", None)):
            found["nll"] = _weighted(population, self._bound(bound, model, population))
            found["nll pick"] = _mean(self._bound(bound, model, best))
        for name, judge in judges.items():
            found[name] = _weighted(population, _judged(judge, model, population))
        return found | (self._diversity(population) if population.modality == "text" else {})

    def _bound(self, bound: Callable, model: Model, population: Population) -> Tensor:
        """(G, K) nats."""
        rows, k = population.x0.flatten(0, 1).to(model.device), population.shape[1]
        with torch.no_grad():
            nats = bound(rows, group=_groups(population, k), draws=self.draws, generator=torch.Generator().manual_seed(0))
        return nats.double().cpu().view(population.shape)

    def _diversity(self, population: Population) -> dict[str, float | None]:
        """Of each group's texts, each as often as its weight asks for, so that equally weighted ones count once each."""
        k, rows = population.shape[1], []
        drawn = resample.get("systematic")(population.weights, torch.full((population.shape[0], 1), 0.5, dtype=torch.float64))
        for i in torch.nonzero(population.ess > 0)[:, 0].tolist():
            texts = [population.samples[i][j] for j in drawn[i].tolist()]
            kernel = ngram_kernel(population.samples[i], 3 if self.characters else 1, characters=self.characters)
            told = [distinct(texts, n, characters=self.characters) for n in (1, 2, 3)]
            rows.append([*told, len(set(texts)) / k, vendi(kernel, population.weights[i])])
        means: list[float | None] = [None] * 5 if not rows else torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        return dict(zip(("dist-1", "dist-2", "dist-3", "different", "vendi"), means, strict=True))


def _groups(population: Population, k: int) -> Tensor:
    return torch.tensor(population.indices).repeat_interleave(k)


def _judged(judge: Callable, model: Model, population: Population) -> Tensor:
    """(G, K) what another reward says of the samples."""
    (g, k), samples = population.shape, population.samples
    flat: Any = samples.flatten(0, 1) if isinstance(samples, Tensor) else [sample for group in samples for sample in group]
    prompts, group = getattr(model, "prompts", None), _groups(population, k)
    offers = {"group": group, "prompts": prompts and [prompts[i % len(prompts)] for i in group.tolist()]}
    with torch.no_grad():
        scores, _ = call(judge, flat, g * k, {**offers, "noise": torch.zeros(g * k)})
    return scores.detach().double().cpu().view(g, k)


def _weighted(population: Population, values: Tensor) -> float | None:
    return _mean(population.mean(values)[population.ess > 0])


def _mean(values: Tensor) -> float | None:
    """Of what is finite, None where nothing is."""
    finite = values[values.isfinite()].double()
    mean = float(finite.mean()) if len(finite) else math.nan
    return mean if math.isfinite(mean) else None
