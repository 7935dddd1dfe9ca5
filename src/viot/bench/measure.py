"""What is said of an answer beside the reward that steered it: how likely the model finds it, how far it is from its target, what others think
of it, how diverse it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import resample
from ..metrics import cosine, distinct, frechet_distance, mode_mass, ngram_kernel, pairwise_distance, precision_recall, vendi
from ..model import Model
from ..population import Population
from ..report.compare import judge_of
from ..report.search import findings
from ..reward import call
from ..rewards import as_reward
from ..rng import Rng
from .reference import Against, References, features

#: Neighbours of precision and recall, and the share of the target from which a mode without a particle is a missed one.
NEIGHBOURS, MISSED = 3, 0.01


@dataclass(frozen=True)
class Reading:
    """How answers are read, the same for every row of a bench.

    judges       names of rewards that steer nobody: another classifier, an n-gram model of the data, …
    characters   texts are compared by n-grams of characters, not of words
    draws        network calls per text for the model's own bound on its likelihood, where it offers `nll(x0, group, draws, generator)`;
                 they are counted as nobody's
    features     points and pictures are compared with a reference in these features, a name of `viot.bench.reference.features`; the reference
                 rests on `reference` base draws, its kernel has this `bandwidth`, and modes are counted within `radius` of their centres
    """

    judges: tuple[str, ...] = ()
    characters: bool = False
    draws: int = 32
    features: str | None = None
    reference: int | None = None
    bandwidth: float | None = None
    radius: float | None = None

    def ready(self) -> dict[str, Callable]:
        """The judges themselves."""
        return {name: as_reward(name) for name in self.judges}

    def references(self, samples: Tensor, model: Model) -> References:
        """What answers are held against, from base draws."""
        assert self.features is not None
        return References(samples, model, self.features, self.bandwidth, self.radius)

    def __call__(
        self, population: Population, model: Model, judges: dict[str, Callable], against: Against | None = None
    ) -> dict[str, float | None]:
        """Numbers by name, means over the groups; None for what cannot be told of this answer.

        `reward`, `nll` and judges are weighted means, `uniform` is the mean of all particles alike, `pick` that of each group's best, and
        `nll pick` its bound. Diversity is that of equally weighted draws. `against` is the target of this reward and λ.
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
        if population.modality == "text":
            return found | self._diversity(population)
        return found | (self._distances(population, against) if self.features is not None else {})

    def _distances(self, population: Population, against: Against | None) -> dict[str, float | None]:
        """Of points and pictures, in the features: every group's weighted particles, and where the name ends in "uniform" all of them alike,
        as a discrete measure. The Fréchet distance alone is that of all groups together: of a few points a covariance says little.
        """
        assert self.features is not None
        (g, k), of = population.shape, features[self.features].make()
        x = of(population.samples.flatten(0, 1)).view(g, k, -1)
        # A particle without a finite reward is no sample, whichever way they are drawn.
        sound = (population.rewards.isfinite() & x.isfinite().all(-1)).double()
        w = population.weights * sound
        w = w / w.sum(-1, keepdim=True)
        living = torch.nonzero(~w.isnan().any(-1))[:, 0].tolist()
        pictures = population.modality in ("images", "video")
        rng = Rng(population.config["seed"])
        streams = [rng.generator(index, 0, 0, "exact draws") for index in population.indices]
        groups = [_group(x[i], w[i], sound[i], against, pictures, streams[i]) for i in living]
        found = {
            name: _mean(torch.tensor([_number(group.get(name)) for group in groups]))
            for name in dict.fromkeys(n for m in groups for n in m)
        }
        if self.features == "digits-judge" and (share := judge_of("digits", population.config["reward"])) is not None:
            found["judge"] = share(population)
        if against is not None and living:
            found["log z error"] = _mean((population.log_z - against.chain.log_z).abs())
            if pictures:
                for name, mass in (("frechet", w), ("frechet uniform", sound / sound.sum(-1, keepdim=True))):
                    every = mass[living].flatten()
                    enough = int((every > 0).sum()) > 1
                    told = frechet_distance(x[living].flatten(0, 1), against.chain.points, every, against.chain.weights) if enough else None
                    found[name] = told
        return found

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


def _group(
    x: Tensor, w: Tensor, sound: Tensor, against: Against | None, pictures: bool, stream: torch.Generator
) -> dict[str, float | None]:
    """Numbers of one group: points (K, d), their weights (K,), and which are samples at all."""
    h = None if against is None else against.chain.bandwidth
    kernel = (
        cosine(x.nan_to_num()) if pictures or h is None else torch.exp(-torch.cdist(x.nan_to_num(), x.nan_to_num()).square() / (2 * h * h))
    )
    found: dict[str, float | None] = {"vendi": vendi(kernel, w), "euclidean": pairwise_distance(x, w)}
    if pictures:
        found["cosine"] = pairwise_distance(x, w, "cosine")
    if against is None:
        return found
    chain = against.chain
    exact = chain.draw(len(x), stream)
    found |= {"mmd": chain.mmd(x, w), "mmd uniform": chain.mmd(x, sound), "mmd exact": chain.mmd(exact)}
    found |= {
        "swd": chain.sliced_wasserstein(x, w), "swd uniform": chain.sliced_wasserstein(x, sound), "swd exact": chain.sliced_wasserstein(exact)
    }  # fmt: skip
    found["mmd base"] = against.base.mmd(x, w)
    if against.data is not None:
        found |= {"mmd data": against.data.mmd(x, w), "swd data": against.data.sliced_wasserstein(x, w)}
    # A support knows no weights: as many draws as there are particles stand for them.
    equal = x[resample.get("systematic")(w[None], torch.full((1, 1), 0.5, dtype=torch.float64))[0]]
    support, times = chain.support
    if min(len(x), len(support)) > NEIGHBOURS:
        found["precision"], found["recall"] = precision_recall(equal, support, NEIGHBOURS, weights_y=times)
    if against.centres is not None and against.radius is not None:
        (target, outside), (here, lost) = against.modes, mode_mass(x, against.centres, against.radius, w)
        found["modes"] = (float((here - target).abs().sum()) + abs(lost - outside)) / 2
        found["missed"] = float(((target >= MISSED) & (here == 0)).sum())
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


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
