"""What a steered answer is held against: draws of the plain model weighed by exp(λ r) and, where it is known, the tilted law of the data.

The first is the target of every weighted method: the law of the chain that was run, tilted. The second is what a chain of infinitely many steps
would be tilted from; a method that met it exactly would have made the discretisation's error good by another one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import differences
from ..metrics.distances import as_measure, kernel_mean, median_distance, mode_mass, precision, reach, sliced_wasserstein, unit_directions
from ..metrics.spectrum import Spectrum
from ..model import Model
from ..models.gaussian import MixtureLaw
from ..particles import write_tensors
from ..problem import SteeringWarning
from ..registry import Entry
from ..reward import call
from ..rewards import as_reward, rewards
from ..task import Task
from .features import read

#: Points that a law keeps for distances, and directions of the sliced one: they are measured for every group of every row.
POINTS, DIRECTIONS = 2000, 32
#: Bandwidths that the points of a line or a plane may be apart for the MMD to be taken by frequencies.
WIDE = 100
#: Neighbours of precision and recall.
NEIGHBOURS = 3
#: Base draws in a file of the folder, and their seed: no row of a bench has it.
CHUNK, SEED = 512, -1
#: Effective draws that a prompt's target rests on at least: of fewer no distance is told.
EFFECTIVE = 8.0
#: Samples that a reward scores at a time.
READ = 64

# -- laws -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """A discrete measure that answers are held against: points (n, d) of the features, weights (n,), and log Z of its tilt.

    The MMD is taken from the measure itself in one or two dimensions, unless it lies over more than `WIDE` bandwidths. Else, and for other
    distances, where it has more than `POINTS` points, so many equally weighted draws of it stand for it, made by equal steps through the
    cumulative weights.
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
    def _reach(self) -> Tensor:
        return reach(self.support[0], NEIGHBOURS)

    def precision(self, x: Tensor, weights: Tensor | None = None) -> float | None:
        """The weighted share of x inside the support, which is made of balls as far as the third neighbour; None of too few points."""
        points = self.support[0]
        return precision(x, points, self._reach, weights) if len(points) > NEIGHBOURS else None

    @cached_property
    def ess(self) -> float:
        """How many equally weighted points it is worth."""
        return float(1 / self.weights.square().sum())

    @cached_property
    def _measure(self) -> tuple[Tensor, Tensor | None]:
        return (self.points, self.weights) if len(self.points) <= POINTS else (self.drawn, None)

    @cached_property
    def _spectrum(self) -> Spectrum | None:
        """Of one or two dimensions, unless the points are so far apart that its grid would be dearer than pairs."""
        near = self.points.shape[1] <= 2 and bool((self.points.amax(0) - self.points.amin(0) <= WIDE * self.bandwidth).all())
        return Spectrum(self.points, self.weights, self.bandwidth) if near else None

    @cached_property
    def _own(self) -> float:
        points, weights = self._measure
        return kernel_mean(points, points, weights, weights, bandwidth=self.bandwidth)

    @cached_property
    def _directions(self) -> Tensor:
        return unit_directions(DIRECTIONS, self.points.shape[1])

    def mmd(self, x: Tensor, weights: Tensor | None = None) -> float:
        """See `viot.metrics.mmd`; what does not depend on x is computed once."""
        if self._spectrum is not None:
            return self._spectrum.mmd(x, weights)
        own = kernel_mean(x, x, weights, weights, bandwidth=self.bandwidth)
        points, mass = self._measure
        return max(0.0, own + self._own - 2 * kernel_mean(x, points, weights, mass, bandwidth=self.bandwidth)) ** 0.5

    def sliced_wasserstein(self, x: Tensor, weights: Tensor | None = None) -> float:
        points, mass = self._measure
        return sliced_wasserstein(x, points, weights, mass, directions=self._directions)

    def draw(self, n: int, stream: torch.Generator) -> Tensor:
        """(n, d) independent draws."""
        return self.points[torch.multinomial(self.weights, n, replacement=True, generator=stream)]


@dataclass(frozen=True)
class Against:
    """What one target is: the chain's tilted law and its plain one, the tilted law of the data where it is known, and its modes if it has any.

    `chain` is None where nothing is known of the target: then answers are held against the plain law alone.
    """

    chain: Law | None
    base: Law
    data: Law | None = None
    centres: Tensor | None = None
    radius: float | None = None

    def of(self, group: int) -> Against:
        """That of a group: all have the same."""
        return self

    def together(self, groups: list[int]) -> Against:
        """That of several groups' answers together."""
        return self

    @cached_property
    def modes(self) -> tuple[Tensor, float]:
        """Shares of the modes in the target, and of what is outside of them: those of the data where its law is known."""
        assert self.centres is not None
        assert self.radius is not None
        law = self.data or self.chain
        assert law is not None
        return mode_mass(law.points, self.centres, self.radius, law.weights)


@dataclass(frozen=True)
class AgainstPrompts:
    """A target for each prompt: group g has that of prompt g mod `prompts`."""

    targets: dict[int, Against]
    prompts: int

    def of(self, group: int) -> Against:
        """That of a group's prompt; without a `chain` where too few base draws count in it."""
        return self.targets[group % self.prompts]

    def together(self, groups: list[int]) -> Against:
        """The mixture of the groups' targets, each with the same mass; those without a `chain` have no part in that of the others."""
        each = [self.of(group) for group in groups]
        chains = [one.chain for one in each if one.chain is not None]
        return Against(_mixture(chains) if chains else None, _mixture([one.base for one in each]))


def _mixture(laws: list[Law]) -> Law:
    weights = torch.cat([law.weights for law in laws]) / len(laws)
    return Law(torch.cat([law.points for law in laws]), weights, math.nan, laws[0].bandwidth)


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


def common_bandwidth(points: Mapping[int, Tensor]) -> float:
    """The mean of the median distances within the base draws (n, d) of several prompts or groups."""
    return sum(median_distance(x) for x in points.values()) / len(points)


def check_draws(n: int | None, each: str = "") -> None:
    """What --reference may be: one draw has no distance to another."""
    if n is not None and n < 2 and n != 0:
        raise ValueError(f"--reference takes a number of base draws{each} ≥ 2, or 0 for none, not {n}")


class References:
    """What the answers of a bench are held against, for each reward and λ: made when first asked for, from the same base draws.

    samples     (B, …) of the plain model; or by prompt, where it follows prompts: each then has a target of its own
    kind        the features, see `viot.bench.features`
    bandwidth   of the kernel of the MMD; None = the median distance between base draws, in the features (of prompts the mean of theirs)
    radius      modes are those of the model's mixture, this far around their means; None = it has none to speak of
    target      False: the draws are too few to be tilted, and answers are held against the plain law alone
    """

    def __init__(
        self,
        samples: Tensor | Mapping[int, Tensor],
        model: Model,
        kind: str,
        bandwidth: float | None = None,
        radius: float | None = None,
        target: bool = True,
    ) -> None:
        self.samples, self.model, self.radius, self.target = samples, model, radius, target
        device = model.device
        points = {p: read(kind, x, device) for p, x in ({0: samples} if isinstance(samples, Tensor) else samples).items()}
        known = getattr(model, "data_law", None)
        law = known() if callable(known) and kind == "points" and isinstance(samples, Tensor) and points[0].shape[1] == 2 else None
        self.law = law if isinstance(law, MixtureLaw) else None
        h = common_bandwidth(points) if bandwidth is None else bandwidth
        self.base = {p: Law(*as_measure(x), log_z=0.0, bandwidth=h) for p, x in points.items()}
        self._scores: dict[str, dict[int, Tensor]] = {}
        self._made: dict[tuple[str, float], Against | AgainstPrompts] = {}

    def against(self, reward: str, lam: float) -> Against | AgainstPrompts:
        key = (reward, lam)
        if key not in self._made:
            one = isinstance(self.samples, Tensor)
            made = {p: self._against(reward, lam, p, EFFECTIVE if not one else 0.0) for p in self.base}
            self._made[key] = made[0] if one else AgainstPrompts(made, conditions(self.model))
        return self._made[key]

    def _against(self, reward: str, lam: float, prompt: int, effective: float) -> Against:
        base, data = self.base[prompt], None
        log_w = None
        if self.target:
            log_w = (lam * self._scored(reward)[prompt]).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
            # Before anything is made of a law that is nowhere.
            if not effective and not bool(log_w.isfinite().any()):
                n = len(log_w)
                raise ValueError(f"none of the {n} base draws has a finite {reward}: they say nothing about its target; use --reference 0")
        if self.law is not None:
            data = quadrature(self.law, lambda x: scores(scorer(reward), self.model, x, [0] * len(x), len(x)), lam, base.bandwidth)
        centres = None if self.law is None or self.radius is None else self.law.means
        if log_w is None or not bool(log_w.isfinite().any()):
            return Against(None, base, data, centres, self.radius)
        chain = Law(base.points, log_w.softmax(0), float(log_w.logsumexp(0)) - math.log(len(log_w)), base.bandwidth)
        return Against(chain if chain.ess >= effective else None, base, data, centres, self.radius)

    def _scored(self, reward: str) -> dict[int, Tensor]:
        """What the reward says of the base draws: once, whatever λ."""
        if reward not in self._scores:
            samples = {0: self.samples} if isinstance(self.samples, Tensor) else self.samples
            self._scores[reward] = {p: scores(scorer(reward), self.model, x, [p] * len(x)) for p, x in samples.items()}
        return self._scores[reward]


def scorer(name: str) -> Callable:
    """A reward by name, made once: some are gigabytes, and every row asks for its own."""
    kind, _, argument = name.partition(":")
    return _scorer(rewards[kind], argument, name)


@cache
def _scorer(entry: Entry, argument: str, name: str) -> Callable:
    return as_reward(name)


def conditions(model: Model) -> int:
    """How many laws the model has, one for each of its prompts: group g has that of prompt g mod P."""
    return getattr(model, "groups", None) or len(getattr(model, "prompts", None) or ()) or 1


def scores(reward: Callable, model: Model, samples: Any, groups: list[int], at_once: int = READ) -> Tensor:
    """(n,) what a reward says of n samples of these groups, some at a time and without noise; pictures are read on the model's device."""
    prompts, width, out = getattr(model, "prompts", None), getattr(reward, "noises", 1), []
    for at in range(0, len(samples), at_once):
        part, which = samples[at : at + at_once], groups[at : at + at_once]
        part = part.to(model.device) if isinstance(part, Tensor) else part
        offers = {"group": torch.tensor(which), "prompts": prompts and [prompts[g % len(prompts)] for g in which]}
        offers["noise"] = torch.zeros(len(which), width) if width > 1 else torch.zeros(len(which))
        with torch.no_grad():
            out.append(call(reward, part, len(which), offers)[0].detach().double().cpu())
    return torch.cat(out)


# -- base draws -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws(Mapping[int, Tensor]):
    """n base draws (n, …) of each prompt, read from their files when they are asked for: pictures of many prompts fill a memory."""

    places: dict[int, list[Path]]
    n: int
    config: dict[str, Any]

    def __getitem__(self, prompt: int) -> Tensor:
        return torch.cat([_read(path, self.config) for path in self.places[prompt]])[: self.n]

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def draw(folder: Path, task: Task, model: Model, n: int, config: dict[str, Any]) -> Tensor | Draws:
    """n samples (n, …) of the plain model, or n for each prompt of the task's groups; from files in the folder, and those that are missing are
    drawn into it now. Where there are no prompts a file holds `CHUNK`, so that fewer draws are the first ones of more.

    `config` says of which model and chain they are; files that say otherwise are refused.
    """
    p = conditions(model)
    each = CHUNK if p == 1 and not getattr(model, "prompts", None) else min(CHUNK, n)
    config = json.loads(json.dumps({**config, "seed": SEED, "draws": each}))
    which = [0] if p == 1 else sorted({g % p for g in task.prepare(model, scorer(task.reward)).config["groups"]})
    # Group g follows prompt g mod P: files are groups of their own.
    groups = {prompt: [prompt + p * i for i in range(math.ceil(n / each))] for prompt in which}
    places = {g: folder / f"{g:03}.safetensors" for gs in groups.values() for g in gs}
    # All files are looked at before anything is drawn.
    for path in places.values():
        if path.exists():
            _read(path, config, check_only=True)
    missing = {g: path for g, path in places.items() if not path.exists()}
    bar = tqdm(total=len(places), initial=len(places) - len(missing), disable=None if missing else True, desc="base draws")
    for g, path in missing.items():
        run = replace(task, groups=(g,), particles=each, budget=None, seed=SEED).prepare(model, scorer(task.reward))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SteeringWarning)
            samples = run.finish(progress=False).samples
        if not isinstance(samples, Tensor):
            raise TypeError(f"a reference is made of tensors, and {task.model} draws texts")
        write_tensors(path, {"samples": samples[0]}, {"config": json.dumps(config)})
        bar.update()
    bar.close()
    draws = Draws({prompt: [places[g] for g in gs] for prompt, gs in groups.items()}, n, config)
    return draws[0] if p == 1 else draws


def _read(path: Path, config: dict[str, Any], check_only: bool = False) -> Tensor:
    with _opened(path) as file:
        there = json.loads((file.metadata() or {}).get("config", "{}"))
        if differ := list(differences(config, there)):
            raise ValueError(
                f"{path} holds base draws of another bench ({'; '.join(differ[:3])}). Give another --out, or remove that folder to have "
                f"them drawn anew."
            )
        return torch.empty(0) if check_only else file.get_tensor("samples")


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} holds no base draws ({error}); remove it to have them drawn anew") from error
