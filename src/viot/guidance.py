r"""Guidance: a drift that is added to the proposal of any particle method, and divided out of its weights again.

    q(x_s | x_t) ∝ p(x_s | x_t) exp(g · x_s)       Gaussian: the mean moves by std² g;  tokens: g is added to the logits

The ratio log p − log q of every draw joins the weights, so that no guidance changes the target of an exact method: a good one makes the
weights even, a bad one wears them out.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .kernel import Bias
from .model import Coeffs, Model, Prediction
from .problem import Problem, SteeringWarning
from .reward import name_of, takes

if TYPE_CHECKING:
    from .particles import State


class Guidance:
    """What the loop asks of a guidance. Users write a function (`as_guidance` wraps it); learned twists are subclasses.

    needs_grad   does it differentiate with respect to x_t?
    rows         network rows of its own per particle and step
    """

    needs_grad = False
    rows = 0

    def check(self, problem: Problem) -> None:
        """An error, before the first network call, where it does not go with model and kernel."""

    def aside(self, problem: Problem, state: State) -> Any | None:
        """What `evaluate` is to compute beside the prediction of this state (`viot.problem.Aside`)."""
        return None

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor | Bias | None:
        """(G, K, *event_shape) in score units, or biases of logits, for a step with this η."""
        raise NotImplementedError

    def spread(self, problem: Problem, state: State) -> Tensor | None:
        """(G, K, *event_shape) what multiplies the standard deviation of the step."""
        return None

    def prior(self, problem: Problem, state: State) -> tuple[Tensor, Tensor | None] | None:
        """Shift and spread of x_T in units of the prior's standard deviation, (G, K, *event_shape)."""
        return None


@dataclass(frozen=True)
class Own(Guidance):
    """A user's function g(x_t, t, prediction) -> drift.

    It sees x_t (rows, *event_shape), t (rows,) and the model's Prediction of these rows, and returns the drift: (rows, *event_shape) for
    Gaussian kernels, in units of the score (∇ log of something at x_t), or (rows, length, vocabulary) for tokens. It may also ask for
    `group` (rows,) and `coeffs`, the `viot.model.Coeffs` of the coming step, by naming them as parameters. Attributes it may have:
    `needs_grad = True` to be called while x_t has a graph to the prediction (`torch.autograd.grad(…, x_t)` works), `rows`, the network rows
    it spends for each row (0), and `fingerprint()` for the record. What is not finite in its answer counts as 0.
    """

    function: Callable[..., Tensor]

    @property
    def needs_grad(self) -> bool:  # type: ignore[override]
        return bool(getattr(self.function, "needs_grad", False))

    @property
    def rows(self) -> int:  # type: ignore[override]
        return int(getattr(self.function, "rows", 0))

    def check(self, problem: Problem) -> None:
        require_density(f"the guidance {name_of(self.function)}", problem)
        model = problem.evaluate.model
        if self.needs_grad and (not model.dtype.is_floating_point or not getattr(model, "differentiable", True)):
            why = "its states are tokens" if not model.dtype.is_floating_point else "it declares differentiable = False"
            raise TypeError(
                f"the guidance {name_of(self.function)} declares needs_grad, but no gradient reaches x_t in {type(model).__name__}: {why}. "
                f"Write one that needs none, or learn a twist (tri-tsmc)"
            )
        if callable(check := getattr(self.function, "check", None)):
            check(problem)

    def aside(self, problem: Problem, state: State) -> Any:
        return _Slice(self, problem, problem.grid.coeffs(state.step))

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor | None:
        assert state.prediction is not None
        return state.prediction.extra.get("guide")


@dataclass(frozen=True)
class _Slice:
    """A user's function at one step, as `evaluate` calls it."""

    own: Own
    problem: Problem
    coeffs: Coeffs

    @property
    def needs_grad(self) -> bool:
        return self.own.needs_grad

    @property
    def rows(self) -> int:
        return self.own.rows

    def __call__(self, x: Tensor, t: Tensor, prediction: Prediction, group: Tensor) -> Tensor:
        function, name = self.own.function, name_of(self.own.function)
        asked = {"group": group, "coeffs": self.coeffs}
        answer = function(x, t, prediction, **{k: v for k, v in asked.items() if takes(_signed(function), k)})
        shape = x.shape if prediction.logits is None else prediction.logits.shape
        if not isinstance(answer, Tensor) or answer.shape != shape:
            found = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"the guidance {name} returned {found}; for x of shape {tuple(x.shape)} it must return {tuple(shape)}")
        # The chain runs in the state's precision, whatever the guidance's.
        answer = answer.detach().to(x.dtype if prediction.logits is None else prediction.logits.dtype)
        if not bool(answer.isfinite().all()):
            told, what = self.problem.evaluate.told, f"guidance {name}"
            if what not in told:
                told.add(what)
                warnings.warn(
                    f"the guidance {name} returned numbers that are not finite; they count as 0: no drift. The weights stay right.",
                    SteeringWarning,
                    stacklevel=2,
                )
        # The loop takes what is not finite for 0, whoever answers it.
        return answer


def _signed(function: Callable) -> Callable:
    """Where the parameters of a callable are written: a module's in its forward."""
    return getattr(function, "forward") if isinstance(function, torch.nn.Module) else function  # noqa: B009


class Toward(Guidance):
    """The drift from the model toward another: `scale` times as far as one step of the other would go from here.

    With a pipeline called at guidance_scale=1 as the model and the same pipeline with classifier-free guidance as `other`, this is
    classifier-free guidance as a proposal, whose weights keep the target that of the unguided model. Costs one network row of `other` per
    particle and step. For small steps the drift is `scale` times the difference of the two scores.
    """

    rows = 1

    def __init__(self, other: Model | Any, scale: float = 1.0) -> None:
        from .models import as_model

        self.other, self.scale = as_model(other), float(scale)

    def aside(self, problem: Problem, state: State) -> Any:
        return _Differences(self.other)

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor:
        assert state.prediction is not None
        x0, eps = problem.rows(state.prediction.extra["guide"]).unbind(1)
        # Means are linear in (x, x0, eps), so their difference is the mean of the differences: of any kernel, at α_t = 0 too.
        given = None if state.prediction.eps is None else eps
        rows = problem.rows(eta) if isinstance(eta, Tensor) else eta
        gap, std = problem.kernel.moments(torch.zeros_like(x0), Prediction(x0, given), problem.grid.coeffs(state.step), rows)  # type: ignore[attr-defined]
        return problem.fold(torch.where(std > 0, self.scale * gap / std.square(), 0.0))

    def check(self, problem: Problem) -> None:
        require_density("a guidance toward another model", problem)
        model = problem.evaluate.model
        if not hasattr(problem.kernel, "moments") or not model.dtype.is_floating_point:
            raise TypeError(
                "a guidance toward another model needs a kernel with moments(x_t, prediction, coeffs, eta), as viot.Gaussian has"
            )
        if tuple(self.other.event_shape) != tuple(model.event_shape):
            raise ValueError(f"the other model has states {tuple(self.other.event_shape)}, this one {tuple(model.event_shape)}")
        here, there = problem.grid, self.other.grid(problem.T)
        if not (
            torch.equal(here.times, there.times) and torch.allclose(here.alphas, there.alphas) and torch.allclose(here.sigmas, there.sigmas)
        ):
            raise ValueError("the other model walks along other noise levels; give both the same scheduler")

    def fingerprint(self) -> str:
        """What tells it apart: the other model's own record, and the scale."""
        from .record import describe

        told = repr((describe(self.other, self.other), self.scale))
        return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class _Differences:
    """What the other model's prediction has beyond this one's: x0 and eps, (rows, 2, *event_shape); eps of 0 where there is none to take."""

    other: Model
    needs_grad = False
    rows = 1

    def __call__(self, x: Tensor, t: Tensor, prediction: Prediction, group: Tensor) -> Tensor:
        there = self.other.predict(x, t, group.to(x.device))
        if there.x0.shape != x.shape:
            found = tuple(there.x0.shape)
            raise ValueError(f"{type(self.other).__name__}.predict returned x0 of shape {found} for x of shape {tuple(x.shape)}")
        x0 = there.x0.to(x.dtype) - prediction.x0
        eps = torch.zeros_like(x0)
        if prediction.eps is not None and there.eps is not None:
            eps = there.eps.to(x.dtype) - prediction.eps
        return torch.stack([x0, eps], 1)


def as_guidance(guide: Any) -> Guidance | None:
    """A Guidance, a learned twist from a file, or a function of the user's as one."""
    if isinstance(guide, (str, Path, dict)):
        from .twists import as_twist

        guide = as_twist(guide)
    if guide is None or isinstance(guide, Guidance):
        if guide is not None and getattr(guide, "theta", ...) is None:
            raise ValueError(
                "this twist has not been fitted: TriTSMC(twist=…).learn(model, reward, …) returns one that is, or use tri-tsmc"
            )
        return guide
    if callable(guide):
        return Own(guide)
    raise TypeError(f"guide= takes a function (x_t, t, prediction) -> drift, or a learned twist, not {guide!r}")


def prior_std(problem: Problem) -> float | None:
    """The standard deviation of x_T where the model declares it to be N(0, prior_std²), or None."""
    found = getattr(problem.evaluate.model, "prior_std", None)
    return None if found is None else float(found)


def still(problem: Problem, step: int) -> bool:
    """Is a step without noise, so that no drift can move it? The last of a chain is, unless its kernel says otherwise."""
    return step == problem.T - 1 and not getattr(problem.kernel, "noisy_end", False)


def require_density(who: str, problem: Problem) -> None:
    """An error where the kernel's proposal takes no drift."""
    kernel = problem.kernel
    if not kernel.drifts:
        raise TypeError(f"{who} adds a drift to the proposal, which {type(kernel).__name__} in this form has no density for")
