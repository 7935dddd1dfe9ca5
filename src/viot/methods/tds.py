r"""TDS: the twisted diffusion sampler (arXiv 2306.17775)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import weights
from ..particles import State
from ..problem import Problem
from .guided import Guided
from .method import methods


@methods.add(
    "tds",
    "twisted diffusion: proposals along the reward's gradient, weighed exactly",
    cost="K·T network calls, most with a gradient; K·T rewards",
)
@dataclass(frozen=True)
class TDS(Guided):
    r"""The twisted diffusion sampler, sections 3.2–3.4 of arXiv 2306.17775. The twist exp(λ r(x̂0(x_t))) guides and weighs:

        w_T ∝ exp(λ r(x̂0(x_T))),      w_s ∝ w_t · p(x_s | x_t) / q(x_s | x_t) · exp(λ r(x̂0(x_s)) − λ r(x̂0(x_t))),

    and λ r(x_0) at the end. The density ratio joins at every step, the twists at the scoring steps, where they telescope.

    The paper's proposal puts the twisted x̂0 into the posterior mean (`mean="x0"`) and selects at every step (`schedule="every"`); its clamp of
    x̂0 to the range of pixels is `clip` here. Later comparisons (arXiv 2506.20701, equation 15) use `mean="score"` and select at four steps,
    which are the defaults: on exact models the evidence scatters a third as much, on digits there is no difference, and selecting at every
    step costs lineages.

    guidance, mean, clip   see `viot.methods.guided`
    """

    name: ClassVar[str] = "tds"
    reference: ClassVar[str] = "arXiv 2306.17775"

    def weigh(self, problem: Problem, state: State) -> State:
        return self.reach(state, weights.tilt(state.rewards, problem.lam))
