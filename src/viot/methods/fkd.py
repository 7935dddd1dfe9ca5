r"""FK steering (Feynman–Kac diffusion, arXiv 2501.06848)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import weights
from ..particles import State
from ..problem import Problem
from ..weights import NEG_INF
from .method import methods
from .smc import EVERY_TENTH, ResamplingSMC, Schedule

Potential = Literal["diff", "max", "sum", "rt"]


@methods.add(
    "fkd", "FK steering: potentials from intermediate rewards, multinomial resampling", cost="K·T network calls, rewards at 4 steps + end"
)
@dataclass(frozen=True)
class FKD(ResamplingSMC):
    r"""Feynman–Kac steering, section 3 of arXiv 2501.06848. With r_t the value of x_t and the product running over scoring steps:

        diff   G_t = exp(λ (r_t − r_{t+1})), the first r_{t+1} = 0
        max    G_t = exp(λ max_{s ≥ t} r_s)
        sum    G_t = exp(λ Σ_{s ≥ t} r_s)
        rt     G_t = exp(λ r_t)                    and for each   Π_t G_t · G_0 = exp(λ r(x_0)).

    The paper's settings: "diff" for class-conditional and text tasks, "max" with λ = 10 for text-to-image; η = 1; multinomial resampling of
    the state *after* the step, when ESS < K/2 (`ess_threshold=None` for every scoring step).

    `compat="released"` reproduces the published code instead of the paper, for comparison. It differs in three ways, each of which biases
    the result: a step that decides not to resample forgets its weights; the terminal potential of max and sum uses the running maximum
    or sum, not r(x_0); and weights are clamped to 10¹⁰. It resamples once more at the end and returns uniform weights.
    """

    name: ClassVar[str] = "fkd"
    reference: ClassVar[str] = "arXiv 2501.06848"
    resample: ClassVar[Literal["before_step", "after_step"]] = "after_step"

    schedule: Schedule = EVERY_TENTH
    resampling: str = "multinomial"
    ess_threshold: float | None = 0.5
    potential: Potential = "diff"
    compat: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.potential not in ("diff", "max", "sum", "rt"):
            raise ValueError(f"potential must be 'diff', 'max', 'sum' or 'rt', not {self.potential!r}")
        if self.compat not in ("paper", "released"):
            raise ValueError(f"compat must be 'paper' or 'released', not {self.compat!r}")

    @property
    def exact(self) -> bool:
        return self.compat == "paper" and super().exact

    def prepare(self, problem: Problem, state: State) -> State:
        # The running quantity of the potential: last reward, running maximum, or running sum. The released code starts the maximum at 0.
        start = NEG_INF if self.potential == "max" and self.compat == "paper" else 0.0
        return super().prepare(problem, state).with_extra(running=torch.full_like(state.log_w, start))

    def log_potential(self, lam: float, running: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """log G_t and the new running quantity."""
        if self.potential == "diff":
            return weights.subtract(weights.tilt(rewards, lam), weights.tilt(running, lam)), rewards
        if self.potential == "max":
            running = torch.maximum(running, rewards)
        elif self.potential == "sum":
            running = running + rewards
        else:
            running = rewards
        return weights.tilt(running, lam), running

    def weigh(self, problem: Problem, state: State) -> State:
        log_g, running = self.log_potential(problem.lam, state.extra["running"], state.rewards)
        if self.compat == "released":
            return state.but(log_w=log_g.clamp(max=math.log(1e10))).with_extra(running=running)
        return state.but(log_w=state.log_w + log_g).with_extra(running=running, path=state.extra["path"] + log_g)

    def select(self, problem: Problem, state: State) -> State:
        if self.compat == "paper":
            return super().select(problem, state)
        # Released: the path product grows only where something was resampled, and what was not resampled is forgotten.
        applied = state.with_extra(path=state.extra["path"] + state.log_w)
        few = torch.full_like(state.log_w[:, 0], torch.inf) if self.ess_threshold is None else self.ess_threshold * state.log_w.shape[1]
        resampled = (weights.ess(state.log_w) < few)[:, None]
        after = super().select(problem, applied)
        path = torch.where(resampled, after.extra["path"], state.extra["path"])
        return after.but(log_w=torch.zeros_like(state.log_w)).with_extra(path=path)

    def finish(self, problem: Problem, state: State) -> State:
        if self.compat == "paper":
            return super().finish(problem, state)
        log_g, _ = self.log_potential(problem.lam, state.extra["running"], state.rewards)
        if self.potential != "diff":
            log_g = weights.subtract(log_g, state.extra["path"])
        log_g = log_g.clamp(max=math.log(1e10))
        few = (weights.ess(log_g) < 0.5 * log_g.shape[1]) & weights.alive(log_g)
        masses = torch.where(few[:, None], weights.normalize(log_g).exp(), 1.0 / log_g.shape[1])
        ancestors = torch.where(few[:, None], self.ancestors(problem, state, masses), torch.arange(log_g.shape[1]))
        from .independent import take

        return take(state, ancestors).but(log_w=torch.zeros_like(log_g))
