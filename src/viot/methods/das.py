r"""DAS: diffusion alignment as sampling (arXiv 2501.05803)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import weights
from ..particles import State
from ..problem import Problem
from .guided import Guided
from .method import methods

Tempering = Literal["exponential", "polynomial", "adaptive", "none"]


@methods.add(
    "das",
    "diffusion alignment as sampling: twisted proposals under a tempered reward",
    cost="K·T network calls, most with a gradient; K·T rewards",
)
@dataclass(frozen=True)
class DAS(Guided):
    r"""Tempered twisted sampling, section 4 of arXiv 2501.05803: at step j the twist is exp(γ_j λ r(x̂0)) and the drift γ_{j+1} λ ∇r, while γ
    rises from 0 to 1; the terminal weight is exp(λ r(x_0)) whatever γ was. The paper's 1/α is λ.

    tempering   "exponential"  γ_j = min(2^{j / (full·T)} − 1, 1), the paper's (1 + γ)^j − 1 with γ = 0.008 at T = 100
                "polynomial"   γ_j = min((j / (full·T))^power, 1)
                "adaptive"     at each scoring step and in each group the largest γ ≤ min(j / (full·T), 1) that leaves an ESS of
                               ess_threshold·K, by bisection; the drift uses the γ reached. (The bound is ours: guesses from pure noise are
                               all alike, so that no γ would cost any ESS there)
                "none"         γ = 1: the twisted diffusion sampler with the proposal `mean="score"`
    full        the share of the steps after which γ is 1

    Selects by the Srinivasan sampling process when the ESS falls below K/2. The paper scores at every step (`schedule="every"`).
    """

    name: ClassVar[str] = "das"
    reference: ClassVar[str] = "arXiv 2501.05803"

    resampling: str = "ssp"
    ess_threshold: float | None = 0.5
    tempering: Tempering = "exponential"
    full: float = 0.87
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tempering not in ("exponential", "polynomial", "adaptive", "none"):
            raise ValueError(f"tempering must be 'exponential', 'polynomial', 'adaptive' or 'none', not {self.tempering!r}")
        if not 0 < self.full <= 1 or not 0 < self.power < math.inf:
            raise ValueError(f"full is a share of the steps in (0, 1] and power > 0, not full={self.full}, power={self.power}")
        if self.tempering == "adaptive" and not self.ess_threshold:
            raise ValueError("tempering='adaptive' aims at an ESS: it needs ess_threshold > 0")

    def gamma(self, step: int, total: int) -> float:
        """γ of a step, fixed beforehand; the most it may be where it adapts."""
        if self.tempering == "none":
            return 1.0
        share = step / (self.full * total)
        power = self.power if self.tempering == "polynomial" else 1.0
        return min(2**share - 1 if self.tempering == "exponential" else share**power, 1.0)

    def prepare(self, problem: Problem, state: State) -> State:
        return super().prepare(problem, state).with_group(gamma=torch.zeros(problem.G, dtype=torch.float64))

    def weigh(self, problem: Problem, state: State) -> State:
        if self.tempering == "adaptive":
            gamma = self.solve(problem, state)
        else:
            gamma = torch.full((problem.G,), self.gamma(state.step, problem.T), dtype=torch.float64)
        return self.twisted(problem, state, gamma).with_group(gamma=gamma)

    def twisted(self, problem: Problem, state: State, gamma: Tensor) -> State:
        """Weighted by the twist of γ (G,) over that of before."""
        return self.reach(state, weights.tilt(state.rewards, gamma[:, None] * problem.lam))

    def solve(self, problem: Problem, state: State) -> Tensor:
        """(G,) the γ between the one reached and 1 at which the ESS is that of the threshold."""
        assert self.ess_threshold is not None
        # A hair below the threshold, so that the selection which the γ was chosen for takes place.
        aim = self.ess_threshold * state.log_w.shape[1] * (1 - 1e-6)
        reached = state.group["gamma"]

        def lost(gamma: Tensor) -> Tensor:
            return -weights.ess(self.twisted(problem, state, gamma).log_w)

        most = torch.full_like(reached, self.gamma(state.step, problem.T))
        return weights.solve_monotone(lost, -aim, reached, most)

    def strength(self, problem: Problem, state: State) -> float | Tensor:
        if self.tempering == "adaptive":
            return state.group["gamma"] * problem.lam
        return self.gamma(state.step + 1, problem.T) * problem.lam

    def stats(self, problem: Problem, state: State) -> dict[str, Tensor]:
        return {"gamma": state.group["gamma"]}
