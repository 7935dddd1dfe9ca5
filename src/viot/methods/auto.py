r"""The library's own method: guesses of the reward are believed as far as they have been right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import weights
from ..particles import State
from ..problem import Problem
from .guided import Guided
from .method import methods
from .smc import EVERY_FIFTH, Schedule

#: Where a state keeps the guesses of the scoring step before.
BEFORE = "guessed"


@methods.add(
    "auto",
    "selects by guesses of the reward as far as they have been right so far: keeps lineages",
    cost="K·T network calls, rewards at 9 steps + end",
)
@dataclass(frozen=True)
class Auto(Guided):
    r"""Feynman–Kac steering toward V_t = b_t λ r̂_t, where b_t in [0, 1] is how far the guess r̂_t can be believed. Other methods take b_t = 1: near pure
    noise all guesses are the same blurred mean, whose reward says little of the sample's and may mislead by many nats; selection by it kills
    lineages for nothing.

    How far is seen in the run itself, at no cost. Had the guesses of the scoring step before told those of this one, their correlation c over the
    particles of the group would be 1:

        ρ_t = (K c²(r̂_{t−1}, r̂_t) + prior · s_t) / (K + prior),        s_t = α_t² / (α_t² + σ_t²),        b_t = ρ_t^power_t

    with c² adjusted for K, and 0 where c < 0. The share of signal s_t stands in for it at the first scoring step, and is worth `prior` particles later.
    The potentials telescope to exp(λ r(x_0)) whatever b_t was: nothing is believed in the end but the finished sample, and the mean of the weights is
    unbiased for Z at every K. Selection is by Srinivasan sampling, and only where the ESS of the weights is below half of K.

    What is not applied early has to be applied late, by weights that K particles must carry, at most log K nats of them. So b_t is the more careful
    the less the guesses ask for:

        power_t = 2 − KL_t / log K,        KL_t = KL(exp(λ r̂_t) over the particles ‖ even)

    power     a fixed one instead: 2 keeps more lineages, and is better where modes part late and particles are many; 1 and ½ are better where plain
              draws never meet the wish. 0 is FK steering by differences
    prior     how many particles the share of signal is worth
    guidance  1 also moves the proposals by b_t λ ∇r̂, which the weights make up for: for rewards whose gradient can be believed, at the price of a
              backward pass per step. `power=0` is then the twisted diffusion sampler. mean, clip: see `viot.methods.guided`
    """

    name: ClassVar[str] = "auto"

    schedule: Schedule = EVERY_FIFTH
    resampling: str = "ssp"
    ess_threshold: float | None = 0.5
    power: float | None = None
    prior: float = 10.0
    guidance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.power is not None and not 0 <= self.power < math.inf) or not 0 <= self.prior < math.inf:
            raise ValueError(f"power (or None) and prior must be ≥ 0 and finite, not {self.power} and {self.prior}")

    @property
    def deterministic(self) -> bool:
        return not self.needs_gradient

    def signal(self, problem: Problem, step: int) -> Tensor:
        """(G,) s of a step."""
        return problem.grid.signal[step].expand(problem.G)

    def caution(self, problem: Problem, rewards: Tensor) -> float | Tensor:
        """(G,) the power of a step whose guesses are `rewards` (G, K)."""
        if self.power is not None:
            return self.power
        return 2 - weights.kl_from_uniform(weights.tilt(rewards, problem.lam)) / math.log(max(2, rewards.shape[1]))

    def strength(self, problem: Problem, state: State) -> Tensor:
        """The belief of the last scoring step, or of the signal alone if that is more by now."""
        now = self.signal(problem, state.step) ** self.caution(problem, state.rewards)
        return problem.lam * torch.maximum(state.group.get("belief", now), now)

    def weigh(self, problem: Problem, state: State) -> State:
        told = self.signal(problem, state.step)
        if (before := state.extra.get(BEFORE)) is not None:
            k = state.log_w.shape[1]
            told = (k * agreement(before, state.rewards) + self.prior * told) / (k + self.prior)
        belief = told ** self.caution(problem, state.rewards)
        state = self.reach(state, weights.tilt(state.rewards, problem.lam * belief[:, None]))
        return state.with_extra(**{BEFORE: state.rewards}).with_group(belief=belief)

    def stats(self, problem: Problem, state: State) -> dict[str, Tensor]:
        return {"belief": state.group["belief"]}


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """(G,) share of the variance of b (G, K) that a (G, K) tells, adjusted for K; 0 for a correlation below 0, where either is constant, and
    for fewer than three particles, which are always on a line.
    """
    k = a.shape[1]
    if k < 3:
        return torch.zeros(len(a), dtype=torch.float64)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    both, each = (a * b).sum(-1), (a.square().sum(-1) * b.square().sum(-1))
    share = torch.where((both > 0) & (each > 0), both.square() / each.clamp_min(1e-300), 0.0)
    return (1 - (1 - share) * (k - 1) / (k - 2)).clamp_min(0)
