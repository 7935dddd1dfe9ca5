r"""Proposals that follow the gradient of the reward, and weights that divide them out again: what DPS, TDS and DAS share.

With g = ∇_{x_t} r(x̂0(x_t)), by backpropagation through reward, decoder and network, the step becomes

    q(x_s | x_t) = N(mean + shift, std²),      shift = std² · λ g                        mean="score": the score plus λ g
                                               shift = ∂mean/∂x0 · (σ_t² / α_t) · λ g    mean="x0": x̂0 replaced by x̂0 + σ_t²/α_t λ g

of which the second is Tweedie's formula for the tilted law: exactly its posterior mean where r(x̂0) is its log-twist. Both are proposals only;
log p − log q joins the weights at every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..kernel import Bias, double, per_row
from ..particles import State
from ..problem import Problem
from ..reward import name_of
from ..value import Tweedie, as_value, scored_by
from .smc import EVERY_TENTH, ResamplingSMC, Schedule


@dataclass(frozen=True)
class Guided(ResamplingSMC):
    """The loop with a drift along the reward's gradient at every step but the last.

    guidance   multiplies the drift and nothing else: 0 proposes from the model, negative ones go astray; weights make up for either
    mean       "score" or "x0", see above; the latter moves several times as far in the first and last steps, at a price in weights
    clip       the shift of a step is cut to this many times the typical length of its noise, std·√dim; with mean="x0" also that of x̂0 to
               this many times √dim, the size of the data, as the paper's clamp does: near pure noise σ²/α is huge, and networks are not
               accurate enough for it. None = never. A gradient that explodes costs efficiency, not the run; one that is not finite
               counts as 0
    """

    schedule: Schedule = EVERY_TENTH
    guidance: float = 1.0
    mean: Literal["score", "x0"] = "score"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean not in ("score", "x0"):
            raise ValueError(f"mean must be 'score' or 'x0', not {self.mean!r}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be finite, not {self.guidance}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is a multiple of the noise's length, > 0, or None, not {self.clip}")
        if self.eta == 0 and not self.deterministic:
            raise ValueError(
                f"{self.name} moves the mean of a noisy step and weighs by its density: a deterministic step, eta=0, has neither. "
                f"Use eta > 0 (1 is the default), or fvd for deterministic trajectories"
            )

    @property
    def needs_gradient(self) -> bool:
        return self.guidance != 0

    @property
    def deterministic(self) -> bool:
        """May η be 0? Only where the push is not scaled by the noise."""
        return False

    @property
    def drifting(self) -> bool:
        """Does the gradient enter as a drift of the proposal?"""
        return self.needs_gradient

    def gradients(self, steps: int) -> int:
        """At how many steps, the first ones, the gradient of the reward is followed."""
        return steps - 1 if self.needs_gradient else 0

    def grads(self, steps: int) -> int:
        return self.gradients(steps) + super().grads(steps)

    def scored(self, steps: int) -> int:
        """The gradient scores the clean guess; another intermediate value scores beside it."""
        if not self.needs_gradient:
            return super().scored(steps)
        return 1 + self.gradients(steps) + len(self.scoring(steps)) * (0 if self._tweedie else scored_by(as_value(self.value)))

    @property
    def _tweedie(self) -> bool:
        return isinstance(as_value(self.value), Tweedie)

    def prepare(self, problem: Problem, state: State) -> State:
        if self.needs_gradient:
            require_gradients(self, problem, state)
        return super().prepare(problem, state)

    def look(self, problem: Problem, state: State) -> State:
        """One network call per particle, and back through it."""
        if state.step >= self.gradients(problem.T):
            return super().look(problem, state)
        t, group = problem.grid.times[state.step], problem.group_rows(state.x.shape[1])
        aside = self.aside(problem, state)
        prediction, rewards, gradient = problem.evaluate(problem.rows(state.x), t, group, grad=True, step=state.step, guide=aside)
        assert rewards is not None
        assert gradient is not None
        state = state.but(prediction=prediction.map(problem.fold), rewards=problem.fold(rewards))
        return state.with_extra(gradient=problem.fold(gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)))

    def assess(self, problem: Problem, state: State) -> State:
        # The gradient's own evaluation has scored the guess already.
        return state if "gradient" in state.extra and self._tweedie else super().assess(problem, state)

    def strength(self, problem: Problem, state: State) -> float | Tensor:
        """What multiplies ∂r/∂x in the drift: a number, or one per group (G,)."""
        return problem.lam

    def drift(self, problem: Problem, state: State) -> Tensor | Bias | None:
        own, guide = self.push(problem, state), super().drift(problem, state)
        if own is None or guide is None:
            return guide if own is None else own
        assert isinstance(guide, Tensor)
        return own + guide

    def push(self, problem: Problem, state: State) -> Tensor | None:
        """The reward's gradient as a drift."""
        if not self.drifting or "gradient" not in state.extra:
            return None
        coeffs, gradient = problem.grid.coeffs(state.step), state.extra["gradient"]
        strength = self.guidance * torch.as_tensor(self.strength(problem, state), dtype=torch.float64).reshape(-1, 1)
        if self.mean == "score" and self.clip is None:
            return gradient * per_row(strength, gradient).to(gradient)
        gain, std = problem.kernel.response(coeffs, self.eta)  # type: ignore[attr-defined]
        if std == 0 or (self.mean == "x0" and coeffs.alpha_t == 0):
            # Without noise there is no drift, and without signal no gradient.
            return None
        limit = math.inf if self.clip is None else self.clip * math.sqrt(gradient[0, 0].numel()) / std
        if self.mean == "x0":
            # How far x̂0 moves, and from there the mean.
            reach = coeffs.sigma_t**2 / coeffs.alpha_t
            strength = strength * (gain * reach / std**2)
            limit = min(limit, limit * gain / std)
        # One factor for each particle: what overflows in the state's precision, a huge gradient times a huge strength, is cut before.
        length = double(gradient).flatten(2).norm(dim=-1).cpu() * strength.abs()
        cut = strength * (limit / length.clamp_min(1e-300)).clamp_max(1.0)
        return gradient * per_row(cut, gradient).to(gradient)

    def propose(self, problem: Problem, state: State) -> State:
        moved = super().propose(problem, state)
        return moved.but(extra={name: value for name, value in moved.extra.items() if name != "gradient"})


def require_gradients(method: Any, problem: Problem, state: State) -> None:
    """A clear error, before the first network call, where a gradient method has no gradient or no use for one."""
    evaluate, kernel = problem.evaluate, problem.kernel
    others = "Particle methods (vasr, fkd, fvd), svdd and dts need no gradient."
    if not evaluate.differentiable(problem.rows(state.x), problem.group_rows(state.x.shape[1])):
        tokens = not state.x.is_floating_point()
        model = type(evaluate.model).__name__
        why = (
            f"the states of {model} are tokens"
            if tokens
            else f"{model} declares differentiable = False"
            if not getattr(evaluate.model, "differentiable", True)
            else f"no gradient reaches the decoded samples through the reward {name_of(evaluate.reward)}"
        )
        raise TypeError(f"{method.name} follows the gradient of the reward, and there is none: {why}. {others}")
    if not method.drifting:
        return
    if not kernel.drifts:
        raise TypeError(f"{method.name} adds a drift to the proposal, which {_named(kernel)} has no density for. {others}")
    if (method.mean == "x0" or method.clip is not None) and not hasattr(kernel, "response"):
        raise TypeError(
            f"mean='x0' and clip need to know how far a step of {_named(kernel)} moves and spreads: give it a method "
            f"response(coeffs, eta) -> (∂mean/∂x0, std), or use mean='score', clip=None"
        )


def _named(kernel: Any) -> str:
    return kernel.__name__ if isinstance(kernel, type) else type(kernel).__name__
