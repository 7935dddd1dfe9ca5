r"""FKC: Feynman–Kac correctors (arXiv 2503.02819): powers of a model's law, geometric averages and products of two."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import weights
from ..guidance import Guidance, Toward, prior_std
from ..kernel import Gaussian, double
from ..model import Prediction
from ..particles import State
from ..problem import Problem
from ..record import describe
from ..weights import NEG_INF
from .method import methods
from .smc import ResamplingSMC, Schedule, still


class _Other(Toward):
    """The clean guess of another model beside that of the first: one network row per particle and step, and no drift of its own."""

    def aside(self, problem: Problem, state: State) -> _Other:
        return self

    def __call__(self, x: Tensor, t: Tensor, prediction: Prediction, group: Tensor) -> Tensor:
        return self.other.predict(x, t, group.to(x.device)).x0.to(x.dtype)

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> None:
        return None


@methods.add(
    "fkc",
    "a power of the model's law, a law between or beyond two models, or the product of two, by weights along the path",
    cost="K·T network calls, by half as many particles with another model; K·T rewards",
)
@dataclass(frozen=True)
class FKC(ResamplingSMC):
    r"""The correctors of arXiv 2503.02819. The target is q(x) exp(λ r(x)) with a law q that is not the model's:

        mix="power"       q ∝ p^c              a = (c)          c > 1 sharpens (annealing), 0 < c < 1 flattens
        mix="geometric"   q ∝ p1^{1−c} p2^c    a = (1 − c, c)   c > 1 is classifier-free guidance with the law that its name promises
        mix="product"     q ∝ p1 p2            a = (1, 1)       p1 is the model, p2 `other`, on the same noise levels

    With s_i = (α x̂0_i − x)/σ², s = Σ a_i s_i, A = Σ a_i, ν² = α² + σ² and the forward process dx = f x dt + g dW, backward in time

        dx = −f x + ½(1 + η²) g² s + ½(A − 1) g² κ x + η g dW,     d log w = g² (½|s|² − ½ Σ a_i |s_i|² + ½(A − 1) κ x·s),     κ = σ²/ν⁴.

    The paper has κ = 0 and η = 1: weights g² dt times ½c(c−1)|s1|², ½c(c−1)|s1−s2|² or s1·s2. It holds for any κ(t); this one evens the weights
    where states are noise, s_i = −x/σ², which wears the paper's out where A ≠ 1, more with the dimension. log p − log q of the steps is not a
    part of it: q is not the law of a chain that could be compared with this one.

    A step solves the equation with x̂0_i and κσ²/α² held fixed: at A = 1, η = 1 it is the library's at Σ a_i x̂0_i, and one from pure noise draws
    from N(α X, σ²/A), X = Σ a_i x̂0_i / A. The weight is the trapezoid in u = log(ν²/α²), g² dt = ν² du: the rate of a state times half of the
    steps on both sides, no network call more. The last step has no noise; it is the library's toward X, weighed by the rate where it begins.

    All of this is exact in the limit T → ∞ (and K → ∞) only, to first order: for Gaussians variances fall short by about the share by which those
    of the model's own chain do (a tenth at T = 50), and means are off by a few hundredths of a standard deviation. Euler's method is nearer in
    the variance but, with two models, errs ten times as far in the mean at T = 20, and for A ≠ 1 leaves an ESS of a particle in a hundred.

    c         > 0 for "power", any number for "geometric", not for "product"
    other     a model or pipeline, for "geometric" and "product"; one network row of it per particle and step
    eta       > 0: without noise the copies that a selection makes would never part
    schedule  where r(X) is scored, for the difference potentials of Feynman–Kac steering, and selection considered. The corrector weighs every
              step; where rewards are dear, `EVERY_FIFTH` selects often enough for few dimensions

    "power" and "product" start from N(0, prior_std²/A), so the model must declare `prior_std`; "geometric" starts as it is. "power" with c = 1 is
    ordinary Feynman–Kac steering, of any model, and `exact` is True for it alone: elsewhere the weighted particles target another law than
    p exp(λ r), and its normalising constant is dropped, so that there is no log Z.
    """

    name: ClassVar[str] = "fkc"
    reference: ClassVar[str] = "arXiv 2503.02819"

    mix: Literal["power", "geometric", "product"] = "power"
    c: float = 1.0
    other: Any = None
    schedule: Schedule = "every"
    ess_threshold: float | None = 0.5
    guide: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix not in ("power", "geometric", "product"):
            raise ValueError(f"mix must be 'power', 'geometric' or 'product', not {self.mix!r}")
        if not math.isfinite(self.c) or (self.mix == "power" and self.c <= 0):
            raise ValueError(f"c must be finite, and > 0 as the power of a law, which has no normalisation otherwise; not {self.c}")
        if self.mix == "product" and self.c != 1:
            raise ValueError(f"mix='product' is p1·p2 and has no c, not {self.c}; p1^(1−c)·p2^c is mix='geometric'")
        if self.eta == 0:
            raise ValueError("fkc selects among states that noise moves apart again, and eta=0 has none: give it eta > 0 (1 is ancestral)")
        if (self.other is None) != (self.mix == "power"):
            raise ValueError(
                "mix='power' is of the model alone; with other= use mix='geometric' or 'product'"
                if self.mix == "power"
                else f"mix={self.mix!r} is of two models; give the second one, other=viot.load(…) or a pipeline"
            )
        if self.other is not None:
            # Once, because a pipeline encodes its prompts here.
            object.__setattr__(self, "other", Toward(self.other).other)

    @property
    def plain(self) -> bool:
        """Is it the model's own law?"""
        return self.mix == "power" and self.c == 1

    @property
    def exact(self) -> bool:
        return self.plain and super().exact

    @property
    def shares(self) -> tuple[float, float, float]:
        """a_1, a_2 and their sum A."""
        return {"power": (self.c, 0.0, self.c), "geometric": (1 - self.c, self.c, 1.0), "product": (1.0, 1.0, 2.0)}[self.mix]

    @property
    def guiding(self) -> Guidance | None:
        return None if self.other is None else _Other(self.other)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"other": None if self.other is None else describe(self.other, self.other)}

    def prepare(self, problem: Problem, state: State) -> State:
        model, kernel, total = problem.evaluate.model, problem.kernel, self.shares[2]
        if self.plain:
            return super().prepare(problem, state)
        if not state.x.is_floating_point():
            raise TypeError(f"fkc with mix={self.mix!r}, c={self.c} works with scores, and the states of {type(model).__name__} are tokens")
        if not isinstance(kernel, Gaussian) or kernel.fresh or (total != 1 and type(kernel) is not Gaussian):
            raise TypeError(f"fkc with mix={self.mix!r} corrects the kernel viot.kernel.Gaussian(), not {kernel!r}")
        if total != 1 and prior_std(problem) is None:
            raise ValueError(
                f"mix={self.mix!r} starts from N(0, prior_std²/{total:g}), and {type(model).__name__} does not declare prior_std, the standard "
                f"deviation of x_T; where x_T ~ N(0, 1) in every entry, set model.prior_std = 1.0. mix='geometric' starts as it is"
            )
        return super().prepare(problem, state).but(x=state.x / math.sqrt(total))

    def aside(self, problem: Problem, state: State) -> Any:
        # At the last step too: it goes to the guesses of both.
        return self.guiding

    def look(self, problem: Problem, state: State) -> State:
        if self.plain or state.prediction is not None:
            return super().look(problem, state)
        state = super().look(problem, state)
        assert state.prediction is not None
        here, (a, b, total) = state.prediction.x0, self.shares
        there = state.prediction.extra.get("guide", here)
        gain = self.span(problem, state.step) * self.rate(problem, state, here, there)
        # Of a particle for which a network has no number nothing is left.
        log_w = state.log_w + torch.where(gain.isfinite(), gain, NEG_INF)
        clean = here if there is here else torch.add((a / total) * here, there, alpha=b / total)
        return state.but(prediction=Prediction(clean), log_w=log_w)

    def rate(self, problem: Problem, state: State, here: Tensor, there: Tensor) -> Tensor:
        """d log w / du (G, K) float64 from the clean guesses of both models."""
        alpha, sigma, *_ = problem.grid.coeffs(state.step)
        (a, b, total), whole, x = self.shares, alpha**2 + sigma**2, double(state.x)
        one, two = ((alpha * double(guess) - x) / sigma**2 for guess in (here, there))
        # As a difference of scores and not of their squares, which are large and nearly equal.
        gap = one if self.mix == "power" else one - two
        found = 2 * one * two if self.mix == "product" else self.c * (self.c - 1) * gap**2
        if total != 1:
            found = found + (total - 1) * sigma**2 / whole**2 * x * (a * one + b * two)
        return whole / 2 * found.flatten(2).sum(-1).cpu()

    def span(self, problem: Problem, j: int) -> float:
        """How much of u the rate of state j stands for."""
        levels = zip(problem.grid.alphas.tolist(), problem.grid.sigmas.tolist(), strict=True)
        u = [math.log1p((sigma / alpha) ** 2) if alpha else math.inf for alpha, sigma in levels]
        # The step from pure noise is a draw that owes nothing to where it began.
        before = u[j - 1] - u[j] if j and u[j - 1] < math.inf else 0.0
        after = u[j] - u[j + 1] if u[j] < math.inf else 0.0
        return before / 2 + (after / 2 if j < problem.T - 1 else after)

    def moments(self, problem: Problem, state: State) -> tuple[Tensor, float]:
        """Mean (G, K, *event_shape) and standard deviation of a step with noise, where A ≠ 1."""
        assert state.prediction is not None
        a_t, s_t, a_s, s_s = map(float, problem.grid.coeffs(state.step))
        total, n = self.shares[2], (1 + self.eta**2) / 2
        # d(x/α) = −(dλ²/λ²) (n A X − k x/α) + η dW_λ² in λ = σ/α, with X and k fixed.
        k = n * total - (total - 1) / 2 * (s_t**2 / (a_t**2 + s_t**2)) ** 2
        m = (2 * k - 1) or 1e-12
        if a_t == 0:
            return a_s * state.prediction.x0, self.eta * s_s / math.sqrt(m)
        fall = 2 * math.log(a_t * s_s / (a_s * s_t))
        std = self.eta * s_s * math.sqrt(-math.expm1(m * fall) / m)
        mean = (-math.expm1(k * fall) * a_s * n * total / k) * state.prediction.x0
        return mean + (a_s / a_t * math.exp(k * fall)) * state.x, std

    def propose(self, problem: Problem, state: State) -> State:
        if self.shares[2] == 1 or still(problem, state.step):
            return super().propose(problem, state)
        mean, std = self.moments(problem, state)
        noise = problem.draw(state.step, "propose").normal(tuple(problem.rows(mean).shape), mean.dtype, mean.device)
        return state.but(x=mean + std * problem.fold(noise), prediction=None)

    def weigh(self, problem: Problem, state: State) -> State:
        return self.reach(state, weights.tilt(state.rewards, problem.lam))
