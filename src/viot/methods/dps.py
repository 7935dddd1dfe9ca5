r"""DPS: diffusion posterior sampling (arXiv 2209.14687), in the reward form and in that of inverse problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from .. import weights
from ..kernel import per_row
from ..particles import State
from ..problem import Problem
from ..reward import name_of
from ..value import Tweedie, Value
from ..weights import NEG_INF
from .guided import Guided
from .method import methods
from .smc import Schedule


@methods.add(
    "dps",
    "diffusion posterior sampling: follow the reward's gradient, no weights",
    cost="K·T network calls, most with a gradient; K·T rewards",
)
@dataclass(frozen=True)
class DPS(Guided):
    r"""Independent particles pushed along the gradient; fast to a high reward, and no sampler of π: nothing corrects the push.

    zeta = None    the reward form (arXiv 2506.20701, equation 13):  x_s ~ N(mean + std² λ ∇r(x̂0(x_t)), std²)
    zeta = ζ       the inverse problem's form (algorithm 1 of arXiv 2209.14687), for a Gaussian likelihood as the reward (`viot.rewards.Inpainting`,
                   `SuperResolution`, `Deblurring`, `Likelihood`):  x_s = x'_s − ζ ∇‖y − A x̂0(x_t)‖ with x'_s an ordinary step, the norm of each
                   sample for itself, at every step and at any η. λ and the likelihood's noise play no part. The paper's ζ = 0.3 … 1
                   is for pictures in [−1, 1] and T = 1000. Pictures are in [0, 1] here, where a norm is half as large, and fewer steps need
                   longer ones: ζ = 8 … 32 was best for digits at T = 40

    `clip` stabilises the reward form, where published comparisons needed it; the form with ζ has a gradient of bounded length. Weights are
    uniform; a finished sample with a reward of −inf has none.
    """

    name: ClassVar[str] = "dps"
    reference: ClassVar[str] = "arXiv 2209.14687"

    zeta: float | None = None
    schedule: Schedule = field(init=False, default=())
    value: str | dict | Value = field(init=False, default=Tweedie())
    mean: Literal["score", "x0"] = field(init=False, default="score")
    guidance: float = field(init=False, default=1.0)
    resampling: str = field(init=False, default="systematic")
    ess_threshold: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.zeta is not None and not 0 <= self.zeta < float("inf"):
            raise ValueError(f"zeta is a step size ≥ 0, or None for the reward form, not {self.zeta}")
        super().__post_init__()

    @property
    def deterministic(self) -> bool:
        return not self.drifting

    @property
    def drifting(self) -> bool:
        return self.zeta is None

    @property
    def exact(self) -> bool:
        return False

    def gradients(self, steps: int) -> int:
        return steps - 1 if self.zeta is None else steps

    def prepare(self, problem: Problem, state: State) -> State:
        reward = problem.evaluate.reward
        if self.zeta is not None and not (hasattr(reward, "residual") and hasattr(reward, "noise")):
            raise TypeError(
                f"zeta is the step of an inverse problem, ‖y − A x‖, and the reward {name_of(reward)} is none. Use a likelihood such as "
                f"viot.rewards.Inpainting(y, mask), or zeta=None to follow the gradient of any reward"
            )
        return super().prepare(problem, state)

    def propose(self, problem: Problem, state: State) -> State:
        moved = super().propose(problem, state)
        if self.zeta is None:
            return moved
        # r = −‖y − A x̂0‖² / (2 noise²), so ‖y − A x̂0‖ = noise √(−2r) and its gradient is −noise ∇r / √(−2r).
        gradient, r = state.extra["gradient"], state.rewards
        noise = problem.evaluate.reward.noise  # type: ignore[attr-defined]
        pull = torch.where(r < 0, self.zeta * noise / (-2 * r).clamp_min(1e-300).sqrt(), 0.0)
        pull = torch.where(r.isfinite(), pull, 0.0)
        return moved.but(x=moved.x + per_row(pull, gradient).to(gradient) * gradient)

    def finish(self, problem: Problem, state: State) -> State:
        return state.but(log_w=weights.equal(state.rewards > NEG_INF))
