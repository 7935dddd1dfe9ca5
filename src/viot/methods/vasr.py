r"""VASR and VASR-Max: variance-aware selection and resampling (arXiv 2604.06779 v2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import resample, weights
from ..particles import State
from ..problem import Problem
from .independent import best_distinct
from .method import methods
from .smc import ResamplingSMC


@methods.add(
    "vasr", "variance-aware selection: masses that minimise the continuation variance", cost="K·T network calls, rewards at 9 steps + end"
)
@dataclass(frozen=True)
class VASR(ResamplingSMC):
    r"""Variance-aware selection and resampling, sections 4–5 of arXiv 2604.06779 v2.

    The variance of a selection splits into continuation and resampling variance, V = V_cont + V_res. With s_i the spread of what particle i
    can become, V_cont = (1/K) Σ w_i² s_i² / m_i is least at masses m_i ∝ w_i s_i; the plug-in s_i = exp(τ r_i) gives

        m_i ∝ w_i exp(τ r_i),      N ~ systematic(m) in order of the score,      w_child = w_i / (K m_i).

    The w are pure correction weights: they target the *prior* whatever the masses, and the tilt is applied once, at the end, with the
    user's λ. So the answer is exact for any temperature τ; the temperature only shapes who has children.

    masses         "optimal" as above; "weights" m ∝ w with w carrying difference potentials, the allocation of earlier SMC methods;
                   "spike" all children to the best
    temperature    τ; None = λ for raw scores, its sign for standardised ones
    order          sort before the counts by "score" or "ratio" w/m, or "none". Cannot change Var N_i; lowers the variance of sums
    standardize    z-score the rewards over the K particles first
    carry_potential  w carries difference potentials too, so the masses over-allocate on purpose (an ablation arm)
    """

    name: ClassVar[str] = "vasr"
    reference: ClassVar[str] = "arXiv 2604.06779"

    masses: Literal["optimal", "weights", "spike"] = "optimal"
    temperature: float | None = None
    order: Literal["score", "ratio", "none"] = "score"
    standardize: bool = False
    carry_potential: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masses not in ("optimal", "weights", "spike"):
            raise ValueError(f"masses must be 'optimal', 'weights' or 'spike', not {self.masses!r}")
        if self.order not in ("score", "ratio", "none"):
            raise ValueError(f"order must be 'score', 'ratio' or 'none', not {self.order!r}")
        if self.temperature is not None and not math.isfinite(self.temperature):
            raise ValueError(f"temperature must be finite, not {self.temperature}")

    @property
    def exact(self) -> bool:
        return self.masses != "spike" and super().exact

    def tau(self, problem: Problem) -> float:
        """The temperature of the masses."""
        if self.temperature is not None:
            return self.temperature
        # A standardised reward has lost its scale, not its sign.
        return math.copysign(float(problem.lam != 0), problem.lam) if self.standardize else problem.lam

    def scores(self, state: State) -> Tensor:
        """The rewards (G, K) that shape the masses: raw, or standardised over each group."""
        if not self.standardize:
            return state.rewards
        centred = state.rewards - state.rewards.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-8)

    def weigh(self, problem: Problem, state: State) -> State:
        if not (self.carry_potential or self.masses == "weights"):
            return state
        return self.reach(state, weights.tilt(state.rewards, problem.lam))

    def log_masses(self, problem: Problem, state: State) -> Tensor:
        if self.masses == "spike":
            best = torch.zeros_like(state.rewards).scatter(-1, state.rewards.argmax(-1, keepdim=True), 1.0).log()
            return torch.where(weights.alive(state.log_w)[:, None], best, torch.nan)
        if self.masses == "weights":
            return weights.normalize(state.log_w)
        return weights.normalize(state.log_w + weights.tilt(self.scores(state), self.tau(problem)))

    def ancestors(self, problem: Problem, state: State, masses: Tensor) -> Tensor:
        if self.order == "none" or not resample.get(self.resampling).uniforms(masses.shape[1]):
            return super().ancestors(problem, state, masses)
        key = state.rewards if self.order == "score" else state.log_w - masses.log()
        order = key.argsort(dim=-1, descending=True, stable=True)
        n = resample.counts(super().ancestors(problem, state, masses.gather(-1, order)))
        return resample.ancestors_of(torch.empty_like(n).scatter_(-1, order, n))

    def stats(self, problem: Problem, state: State) -> dict[str, Tensor]:
        tau = self.tau(problem) if self.masses == "optimal" else torch.nan
        return {"temperature": torch.full((len(state.log_w),), float(tau), dtype=torch.float64)}


@methods.add("vasr-max", "all children to the best: a strong maximiser, not a sampler", cost="K·T network calls, rewards at 9 steps + end")
@dataclass(frozen=True)
class VASRMax(VASR):
    """The λ → ∞ end of VASR: at every scoring step all particles restart from the best (equation 9). Biased on purpose.

    Returns the distinct candidates in order of their reward, with uniform weights.
    """

    name: ClassVar[str] = "vasr-max"

    # What shapes masses has nothing to shape here.
    masses: Literal["optimal", "weights", "spike"] = field(init=False, default="spike")
    temperature: float | None = field(init=False, default=None)
    order: Literal["score", "ratio", "none"] = field(init=False, default="none")
    standardize: bool = field(init=False, default=False)
    carry_potential: bool = field(init=False, default=False)
    resampling: str = field(init=False, default="argmax")
    ess_threshold: float | None = field(init=False, default=None)

    def prepare(self, problem: Problem, state: State) -> State:
        if problem.lam < 0:
            raise ValueError("vasr-max maximises the reward; to minimise it, negate the reward instead of λ")
        return super().prepare(problem, state)

    def select(self, problem: Problem, state: State) -> State:
        # The correction by 1/(K m) has no meaning for masses of zero: the survivors' weights are uniform.
        after = super().select(problem, state)
        return after.but(log_w=torch.where(weights.alive(after.log_w)[:, None], 0.0, after.log_w))

    def finish(self, problem: Problem, state: State) -> State:
        return best_distinct(state)
