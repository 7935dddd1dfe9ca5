"""No interaction between particles: the base sampler, best-of-n and importance weighting. The yardsticks of every other method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .. import weights
from ..particles import State, copies, flat_index, pick
from ..problem import Problem
from ..value import Tweedie, Value
from ..weights import NEG_INF
from .method import methods
from .smc import SMC, Schedule


@dataclass(frozen=True)
class _Independent(SMC):
    """No scoring on the way, no selection; only the noise of the chain can be chosen."""

    eta: float = 1.0
    schedule: Schedule = field(init=False, default=())
    value: str | dict | Value = field(init=False, default=Tweedie())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be ≥ 0 and finite, not {self.eta}")

    @property
    def has_log_z(self) -> bool:
        return True

    def etas(self, state: State) -> float | Tensor:
        return self.eta


@methods.add("base", "the model as it is, unsteered: the yardstick", cost="K·T network calls, K rewards")
@dataclass(frozen=True)
class Base(_Independent):
    """The unsteered model: uniform weights. `log_z` is still the estimate of log E[exp(λ r)] over its draws. With `guide` it is the guided
    chain as it is, pure guidance, whose draws nothing corrects.
    """

    name: ClassVar[str] = "base"

    @property
    def exact(self) -> bool:
        return False

    def finish(self, problem: Problem, state: State) -> State:
        tilted = super().finish(problem, state)
        evidence = torch.logsumexp(tilted.log_w, -1, keepdim=True) - math.log(problem.K)
        # The same weight for everybody, whose mean is the evidence: an unsteered population that still says what steering would meet.
        return state.but(log_w=evidence.expand_as(state.log_w).clone())


@methods.add("importance", "base samples, weighted by exp(λ r): exact, wasteful when λ r varies much", cost="K·T network calls, K rewards")
@dataclass(frozen=True)
class Importance(_Independent):
    """Self-normalised importance sampling from the base model; exact for every λ, with few effective samples for a large one."""

    name: ClassVar[str] = "importance"


@methods.add("best-of-n", "draw n, keep the best: the baseline to beat for a maximiser", cost="K·T network calls, K rewards")
@dataclass(frozen=True)
class BestOfN(_Independent):
    """K candidates in pools of n, of which each pool returns its best: K/n independent draws of the best of n.

    n = None makes one pool of everything and returns one sample. λ plays no part.
    """

    name: ClassVar[str] = "best-of-n"
    n: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is not None and self.n < 1:
            raise ValueError(f"best-of-n needs n ≥ 1, not {self.n}")

    @property
    def exact(self) -> bool:
        return False

    def finish(self, problem: Problem, state: State) -> State:
        evidence = torch.logsumexp(super().finish(problem, state).log_w, -1) - math.log(problem.K)
        n = min(self.n or problem.K, problem.K)
        pools = problem.K // n
        rewards = state.rewards[:, : pools * n].unflatten(-1, (pools, n))
        winners = rewards.argmax(-1) + torch.arange(pools) * n
        kept = take(state, winners)
        # A pool without a possible sample has no winner; the others share its weight, so that the mean stays the evidence.
        possible = kept.rewards > NEG_INF
        share = evidence + math.log(pools) - possible.sum(-1).clamp_min(1).double().log()
        return kept.but(log_w=torch.where(possible, share[:, None], NEG_INF))


def take(state: State, index: torch.Tensor) -> State:
    """A final state reduced to particles `index` (G, K') of each group, decoded samples included."""
    samples = None if state.samples is None else pick(state.samples, flat_index(index, state.log_w.shape[1]))
    return state[index].but(samples=samples)


def best_distinct(state: State) -> State:
    """A final state in order of falling reward, without exact copies: what a maximiser returns, uniformly weighted.

    Groups may differ in their number of distinct candidates. Those with fewer than the others are filled up with copies of weight 0.
    """
    order = state.rewards.argsort(dim=-1, descending=True, stable=True)
    copy = torch.ones_like(order, dtype=torch.bool)
    for g, ranked in enumerate(order):
        # The first of its kind in order of reward, which is sorted stably.
        copy[g] = copies(state.x[g].cpu()[ranked])
    k = int((~copy).sum(-1).max())
    placed = copy.to(torch.int8).argsort(dim=-1, stable=True)[:, :k]
    chosen = take(state, order.gather(-1, placed))
    possible = (chosen.rewards > NEG_INF) & ~copy.gather(-1, placed)
    return chosen.but(log_w=weights.equal(possible))


def evened(ranked: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Candidates of each group, best first, as one index (G, K) with the most that any group has; and (G, K) bool, which of them are only
    copies that fill up the groups with fewer.
    """
    k = max(map(len, ranked))
    chosen = torch.stack([found[torch.arange(k).clamp_max(len(found) - 1)] for found in ranked])
    return chosen, torch.stack([torch.arange(k) >= len(found) for found in ranked])
