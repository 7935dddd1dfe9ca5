r"""Intermediate values: what a noisy state is worth, V_t(x_t) = (1/λ) log E[exp(λ r(x0)) | x_t], estimated.

Any particle method takes any of them as `value=`. They differ in bias and cost; the network rows that they spend are counted and planned
inside the budget. Whatever the value, the weights at the end are exact: a bad one costs efficiency, not truth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from . import weights
from .particles import State
from .problem import Problem
from .weights import log_mean_exp, tilt


class Value(Protocol):
    """Sets `state.rewards` (G, K) from a state whose prediction is made."""

    def __call__(self, problem: Problem, state: State) -> State: ...

    def rows(self, steps: int, scoring: list[int]) -> int:
        """Network rows per particle that the value spends over a run of `steps` scored at `scoring`."""
        ...


def soft_mean(rewards: Tensor, lam: float) -> Tensor:
    """(1/λ) log mean exp(λ r) over the last dimension, the mean of what is allowed at λ = 0."""
    if lam == 0:
        # What is forbidden has no part in the limit λ → 0, as long as something is allowed.
        allowed = rewards > -torch.inf
        mean = torch.where(allowed, rewards, 0.0).sum(-1) / allowed.sum(-1).clamp_min(1)
        return torch.where(allowed.any(-1), mean, -torch.inf)
    value = log_mean_exp(tilt(rewards, lam)) / lam
    # Nothing feasible among them: −inf, whatever the sign of λ.
    return torch.where(value.isinf(), -torch.inf, value)


@dataclass(frozen=True)
class Tweedie:
    """r(E[x0 | x_t]): the reward of the clean guess of the same network call. Free."""

    def __call__(self, problem: Problem, state: State) -> State:
        assert state.prediction is not None
        x, prediction = problem.rows(state.x), state.prediction.map(problem.rows)
        guess = problem.kernel.guess(x, prediction)[:, 0]
        scored = problem.evaluate.score(guess, problem.group_rows(state.x.shape[1]), state.step)
        return state.but(rewards=problem.fold(scored.rewards))

    def rows(self, steps: int, scoring: list[int]) -> int:
        return 0


@dataclass(frozen=True)
class X0Samples:
    """Log-mean-exp over n clean guesses of the kernel: n fills of a masked sequence, scored each. No network rows.

    A Gaussian model's guess is its conditional mean, so there it equals `Tweedie` at n times the reward calls.
    """

    n: int = 4

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"clean guesses to score must be n ≥ 1, not n={self.n}")

    def __call__(self, problem: Problem, state: State) -> State:
        assert state.prediction is not None
        x, prediction = problem.rows(state.x), state.prediction.map(problem.rows)
        guesses = problem.kernel.guess(x, prediction, problem.draw(state.step, "guess"), self.n).flatten(0, 1)
        scored = problem.evaluate.score(guesses, problem.group_rows(state.x.shape[1] * self.n), state.step)
        return state.but(rewards=problem.fold(soft_mean(scored.rewards.view(-1, self.n), problem.lam)))

    def rows(self, steps: int, scoring: list[int]) -> int:
        return 0


@dataclass(frozen=True)
class Rollout:
    """Log-mean-exp over n rollouts to x_0 in `steps` coarser steps each, the first of which reuses the prediction that is there.

    Costs n · (steps − 1) network rows per particle and scoring step (fewer near the end of the chain).
    """

    n: int = 1
    steps: int = 2
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1 or self.steps < 1:
            raise ValueError(f"a rollout needs n ≥ 1 and steps ≥ 1, not n={self.n}, steps={self.steps}")

    def levels(self, step: int, total: int) -> list[int]:
        """The grid entries that a rollout from `step` visits, both ends included."""
        hops = min(self.steps, total - step)
        return [step + math.floor(i * (total - step) / hops + 0.5) for i in range(hops + 1)]

    def __call__(self, problem: Problem, state: State) -> State:
        return state.but(rewards=soft_mean(self.rewards(problem, state), problem.lam))

    def rewards(self, problem: Problem, state: State) -> Tensor:
        """(G, K, n): the rewards of the finished samples themselves."""
        assert state.prediction is not None

        def repeat(v: Tensor) -> Tensor:
            return problem.rows(v).repeat_interleave(self.n, 0)

        x, prediction = repeat(state.x), state.prediction.map(repeat)
        group = problem.group_rows(state.x.shape[1] * self.n)
        levels = self.levels(state.step, problem.T)
        draw = problem.draw(state.step, "rollout")
        for j, k in itertools.pairwise(levels):
            if j != state.step:
                prediction = problem.evaluate(x, problem.grid.times[j], group)[0]
            eta = self.eta if k < problem.T else 0.0
            x, _ = problem.kernel.step(x, prediction, problem.grid.coeffs(j, k), eta, draw)
        return problem.evaluate.score(x, group, state.step).rewards.view(*state.log_w.shape, self.n)

    def rows(self, steps: int, scoring: list[int]) -> int:
        return sum(self.n * (len(self.levels(j, steps)) - 2) for j in scoring)


@dataclass(frozen=True)
class Smoothed:
    """An exponential average of another value along each lineage: keep · before + (1 − keep) · now. Steadier at early steps."""

    inner: Value = field(default_factory=Tweedie)
    keep: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep is the weight of the past, in [0, 1), not {self.keep}")
        if isinstance(self.inner, Smoothed):
            raise TypeError("a smoothed value of a smoothed value is a smoothed value: use one, with a larger keep")

    def __call__(self, problem: Problem, state: State) -> State:
        before = state.extra.get("smoothed")
        now = weights.floored(self.inner(problem, state).rewards, problem.lam)
        if before is not None:
            now = self.keep * before + (1 - self.keep) * now
        return state.with_extra(smoothed=now).but(rewards=now)

    def rows(self, steps: int, scoring: list[int]) -> int:
        return self.inner.rows(steps, scoring)


@dataclass(frozen=True)
class Custom:
    """A value of the user's own: `function(problem, state) -> (G, K)`. Network calls go through `problem.evaluate` and are counted.

    `extra_rows` declares how many network rows per particle it spends over a whole run, so that the budget holds.
    """

    function: Callable[[Problem, State], Tensor]
    extra_rows: int = 0

    def __call__(self, problem: Problem, state: State) -> State:
        value = torch.as_tensor(self.function(problem, state)).detach().cpu().double()
        if value.shape != state.log_w.shape:
            raise ValueError(f"the intermediate value returned shape {tuple(value.shape)}, expected (G, K) = {tuple(state.log_w.shape)}")
        who = f"the intermediate value {getattr(self.function, '__name__', type(self.function).__name__)}"
        return state.but(rewards=problem.evaluate.sane(value, f"the particles of step {state.step}", who))

    def rows(self, steps: int, scoring: list[int]) -> int:
        return self.extra_rows


def scored_by(value: Value) -> int:
    """Rows per particle that a value decodes and scores at one scoring step; of a callable it is not known, and taken to be one."""
    return scored_by(value.inner) if isinstance(value, Smoothed) else getattr(value, "n", 1)


NAMED: dict[str, Callable[[], Value]] = {"tweedie": Tweedie, "x0_samples": X0Samples, "rollout": Rollout, "smoothed": Smoothed}


def as_value(value: str | dict | Value | Callable) -> Value:
    """A name, a name with settings {"name": "rollout", "n": 4}, a Value, or a callable (problem, state) -> (G, K)."""
    if isinstance(value, str):
        if value not in NAMED:
            from .registry import unknown

            raise unknown("intermediate value", value, NAMED)
        return NAMED[value]()
    if isinstance(value, dict):
        settings = dict(value)
        name = settings.pop("name")
        if "inner" in settings:
            settings["inner"] = as_value(settings["inner"])
        return type(as_value(name))(**settings)
    if hasattr(value, "rows"):
        return value  # type: ignore[return-value]
    if callable(value):
        return Custom(value)
    raise TypeError(f"value= takes a name, an object of viot.value, or a callable (problem, state) -> (G, K), not {value!r}")
