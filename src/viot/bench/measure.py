"""What is said of an answer beside the reward that steered it: how likely the model finds it, how far it is from its target, what others think
of it, how diverse it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import lineage, resample
from ..metrics import cosine, distinct, frechet_distance, mode_mass, ngram_kernel, pairwise_distance, precision_recall, vendi
from ..model import Model
from ..population import Population
from ..report.compare import judge_of
from ..report.search import findings
from ..rewards import as_reward
from ..rng import Rng
from ..sample import Run
from .features import CMMD_SCALE, extractor, is_clip, read
from .front import Front
from .probe import probed
from .reference import NEIGHBOURS, Against, AgainstPrompts, Law, References, scores

#: The share of the target from which a mode without a particle is a missed one.
MISSED = 0.01
#: Particles of a group up to which its Vendi score is told: it takes the eigenvalues of all pairs.
SPECTRUM = 1024


@dataclass(frozen=True)
class Traced:
    """A number of every selection: (S, G) from a population. As a column it is a mean over selections, where such a mean says something."""

    title: str
    says: str
    of: Callable[[Population], Tensor]
    column: bool = True


def _made(population: Population, name: str) -> Tensor:
    """(S, G) a number of the selections that were made: one that waited for a smaller ESS has drawn nothing."""
    trace, share = population.trace, population.config["method"].get("ess_threshold")
    waited = False if share is None else trace["ess"] >= share * population.ancestors.shape[-1]
    return torch.where(torch.as_tensor(waited), torch.nan, trace[name])


TRACED = {
    "offspring variance": Traced(
        "Var N", "mean squared distance of the numbers of children from what the masses ask for, per selection",
        lambda p: _made(p, "offspring_variance"),
    ),
    "v_cont": Traced(
        "V_cont", "continuation variance of a selection's masses by its plug-in, the rewards of that moment, over the least there is",
        lambda p: _made(p, "v_cont"),
    ),
    "killed": Traced("killed", "share of the particles without children, per selection", lambda p: _made(p, "deaths") / p.ancestors.shape[-1]),
    "killed rank": Traced(
        "rank of the killed", "mean rank by reward of those without children, per selection: 0 the worst, ½ a blind choice",
        lambda p: p.trace["killed_rank"],
    ),
    "lineages by step": Traced(
        "lineages", "initial particles with a descendant after each selection", lambda p: lineage.surviving(p.ancestors)[1:].double(), column=False
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How answers are read, the same for every row of a bench.

    judges       names of rewards that steer nobody: another classifier, an n-gram model of the data, …
    characters   texts are compared by n-grams of characters, not of words
    draws        network calls per text for the model's own bound on its likelihood, where it offers `nll(x0, group, draws, generator)`;
                 they are counted as nobody's; 0 = it is not asked
    features     points and pictures are compared with a reference in these features, see `viot.bench.features.extractor`; the reference
                 rests on `reference` base draws (of each prompt), its kernel has this `bandwidth`, and modes are counted within `radius` of
                 their centres; `untilted`, it is the plain model alone
    front        two rewards whose weighted sums steer: both are told of every answer
    trace        numbers of the selections, names of `TRACED`; and "NAME pick" is what the judge NAME says of each group's best
    probes       what else is asked of the selections, names of `viot.bench.probe.probes`
    """

    judges: tuple[str, ...] = ()
    characters: bool = False
    draws: int = 32
    features: str | None = None
    reference: int | None = None
    bandwidth: float | None = None
    radius: float | None = None
    untilted: bool | None = None
    front: Front | None = None
    trace: tuple[str, ...] | None = None
    probes: tuple[str, ...] | None = None

    def ready(self) -> dict[str, Callable]:
        """The judges themselves; the weights of the features are opened too. OSError or ImportError for what is not to be had, and what to do."""
        found = {}
        for name in self.judges:
            try:
                found[name] = as_reward(name)
            except (OSError, ImportError) as error:
                others = " ".join(f"--judge {other}" for other in self.judges if other != name) or "--judge none"
                raise type(error)(f"the judge {name} cannot read these answers: {error}. To leave it out: {others}") from error
        if self.features is not None:
            try:
                extractor(self.features)
            except (OSError, ImportError) as error:
                raise type(error)(f"no distances in the features {self.features}: {error}. To leave them out: --features none") from error
        return found

    def references(self, samples: Tensor | Mapping[int, Tensor], model: Model) -> References:
        """What answers are held against, from base draws."""
        assert self.features is not None
        return References(samples, model, self.features, self.bandwidth, self.radius, not self.untilted)

    def __call__(
        self, population: Population, model: Model, judges: dict[str, Callable], against: Against | AgainstPrompts | None = None
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
        if self.draws and callable(bound := getattr(model, "nll", None)):
            found["nll"] = _weighted(population, self._bound(bound, model, population))
            found["nll pick"] = _mean(self._bound(bound, model, best))
        for name, judge in judges.items():
            found[name] = _weighted(population, _judged(judge, model, population))
            if f"{name} pick" in (self.trace or ()):
                found[f"{name} pick"] = _mean(_judged(judge, model, best))
        found |= {name: _mean(values.flatten()) for name, values in self._traced(population).items() if TRACED[name].column}
        if (share := judge_of(population.config["reward"])) is not None:
            found["judge"] = share(population)
        if self.front is not None:
            found |= self.front.read(population)
        if population.modality == "text":
            return found | self._diversity(population)
        return found | (self._distances(population, model, against) if self.features is not None else {})

    def watched(self, run: Run) -> Run:
        """The run as it is to be made: with the probes that are asked for."""
        return probed(run, self.probes or ())

    def curves(self, population: Population) -> dict[str, list[float | None]]:
        """What was asked of the selections, a number for each, means over the groups, with the `step` of each; nothing where nothing was."""
        told = self._traced(population) | {name: values for name, values in population.trace.items() if "/" in name}
        if not told:
            return {}
        return {"step": population.trace["step"].tolist(), **{name: [_mean(at) for at in values] for name, values in told.items()}}

    def _traced(self, population: Population) -> dict[str, Tensor]:
        """(S, G) by name; of a method that selects nothing, nothing."""
        if not len(population.ancestors) or "deaths" not in population.trace:
            return {}
        return {name: TRACED[name].of(population) for name in self.trace or () if name in TRACED}

    def _distances(self, population: Population, model: Model, against: Against | AgainstPrompts | None) -> dict[str, float | None]:
        """Of points and pictures, in the features: every group's weighted particles, and where the name ends in "uniform" all of them alike,
        as a discrete measure. The Fréchet distance alone is that of all groups together: of a few points a covariance says little.
        """
        assert self.features is not None
        g, k = population.shape
        x = read(self.features, population.samples.flatten(0, 1), model.device).view(g, k, -1)
        # A particle without a finite reward is no sample, whichever way they are drawn.
        sound = (population.rewards.isfinite() & x.isfinite().all(-1)).double()
        w = population.weights * sound
        w = w / w.sum(-1, keepdim=True)
        living = torch.nonzero(~w.isnan().any(-1))[:, 0].tolist()
        pictures = population.modality in ("images", "video")
        rng = Rng(population.config["seed"])
        streams = [rng.generator(index, 0, 0, "exact draws") for index in population.indices]
        targets = {i: None if against is None else against.of(population.indices[i]) for i in living}
        groups = [_group(x[i], w[i], sound[i], targets[i], pictures, streams[i]) for i in living]
        found = {
            name: _mean(torch.tensor([_number(group.get(name)) for group in groups]))
            for name in dict.fromkeys(n for m in groups for n in m)
        }
        if against is None or not living:
            return found
        if is_clip(self.features):
            base = against.together([population.indices[i] for i in living]).base
            found["cmmd"] = CMMD_SCALE * base.mmd(x[living].flatten(0, 1), w[living].flatten()) ** 2
        # A group whose target is not known has no part in what is told of all of them together either.
        known = [(i, chain) for i, one in targets.items() if one is not None and (chain := one.chain) is not None]
        at = [i for i, _ in known]
        together = against.together([population.indices[i] for i in at]).chain if known else None
        if together is None:
            return found
        found["log z error"] = _mean(torch.tensor([float(abs(population.log_z[i] - chain.log_z)) for i, chain in known]))
        found["target ess"] = _mean(torch.tensor([chain.ess for _, chain in known]))
        if pictures:
            for name, mass in (("frechet", w), ("frechet uniform", sound / sound.sum(-1, keepdim=True))):
                every = mass[at].flatten()
                # Weight on one point alone has no covariance.
                share = every / every.sum()
                enough = 1 - float(share @ share) > 1e-9
                told = frechet_distance(x[at].flatten(0, 1), together.points, every, together.weights) if enough else None
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
        drawn = _equally(population.weights)
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
    found: dict[str, float | None] = {"vendi": None, "euclidean": pairwise_distance(x, w)}
    if len(x) <= SPECTRUM:
        h = None if against is None else against.base.bandwidth
        points = x.nan_to_num()
        found["vendi"] = vendi(cosine(points) if pictures or h is None else (torch.cdist(points, points).square() / (-2 * h * h)).exp(), w)
    if pictures:
        found["cosine"] = pairwise_distance(x, w, "cosine")
    if against is None:
        return found
    found |= from_base(x, w, against.base)
    chain = against.chain
    if chain is None:
        return found
    exact = chain.draw(len(x), stream)
    found |= {"mmd": chain.mmd(x, w), "mmd uniform": chain.mmd(x, sound), "mmd exact": chain.mmd(exact)}
    found |= {
        "swd": chain.sliced_wasserstein(x, w), "swd uniform": chain.sliced_wasserstein(x, sound), "swd exact": chain.sliced_wasserstein(exact)
    }  # fmt: skip
    if against.data is not None:
        found |= {"mmd data": against.data.mmd(x, w), "swd data": against.data.sliced_wasserstein(x, w)}
    # A support knows no weights: as many draws as there are particles stand for them.
    equal = x[_equally(w[None])[0]]
    support, times = chain.support
    if min(len(x), len(support)) > NEIGHBOURS:
        found["precision"], found["recall"] = precision_recall(equal, support, NEIGHBOURS, weights_y=times)
    if against.centres is not None and against.radius is not None:
        (target, outside), (here, lost) = against.modes, mode_mass(x, against.centres, against.radius, w)
        found["modes"] = (float((here - target).abs().sum()) + abs(lost - outside)) / 2
        found["missed"] = float(((target >= MISSED) & (here == 0)).sum())
    return found


def from_base(x: Tensor, w: Tensor, base: Law) -> dict[str, float | None]:
    """How far the plain model's draws are from weighted points (K, d), and the weighted share of the points where it draws any."""
    return {"mmd base": base.mmd(x, w), "precision base": base.precision(x, w)}


def _equally(weights: Tensor) -> Tensor:
    """(G, K) particles, each as often as its weight asks for, by equal steps: the same for the same weights."""
    return resample.get("systematic")(weights, torch.full((len(weights), 1), 0.5, dtype=torch.float64))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _groups(population: Population, k: int) -> Tensor:
    return torch.tensor(population.indices).repeat_interleave(k)


def _judged(judge: Callable, model: Model, population: Population) -> Tensor:
    """(G, K) what another reward says of the samples."""
    samples = population.samples
    flat: Any = samples.flatten(0, 1) if isinstance(samples, Tensor) else [sample for group in samples for sample in group]
    return scores(judge, model, flat, _groups(population, population.shape[1]).tolist()).view(population.shape)


def _weighted(population: Population, values: Tensor) -> float | None:
    return _mean(population.mean(values)[population.ess > 0])


def _mean(values: Tensor) -> float | None:
    """Of what is finite, None where nothing is."""
    finite = values[values.isfinite()].double()
    mean = float(finite.mean()) if len(finite) else math.nan
    return mean if math.isfinite(mean) else None
