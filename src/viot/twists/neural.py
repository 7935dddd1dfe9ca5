"""A small network as a twist: the shift of a step as a function of the clean guess and the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..particles import State
from ..problem import Problem
from .basis import Basis, basis_of
from .linear import gain
from .twist import Twist, standardised, twists


@twists.add("neural", "a small network of the clean guess: for rewards whose direction depends on where a sample is heading")
@dataclass(frozen=True, eq=False)
class Neural(Twist):
    """e ~ N(s_k u(F x̂0, α_s, σ_s), 1) with u a network of one hidden layer and s_k the slope of `viot.twists.Slope` times the step's std.

    Trained by Adam on the weighted squared error, from where it is, on three quarters of the particles; the step at which the remaining
    quarter fits best is kept.

    features, data_std   see `viot.twists.Slope`
    hidden               units of the hidden layer
    epochs, rate         steps and learning rate of Adam
    """

    name = "neural"
    features: int | Tensor | None = None
    data_std: float = 1.0
    hidden: int = 16
    epochs: int = 60
    rate: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or self.epochs < 1 or not self.rate > 0:
            raise ValueError(f"hidden and epochs must be ≥ 1 and rate > 0, not {self.hidden}, {self.epochs}, {self.rate}")

    def basis(self, problem: Problem) -> Basis:
        return basis_of(self.features, tuple(problem.evaluate.model.event_shape))

    def shapes(self, m: int) -> tuple[tuple[int, int], ...]:
        return (m + 2, self.hidden), (1, self.hidden), (self.hidden, m), (1, m)

    def size(self, problem: Problem) -> int:
        return sum(a * b for a, b in self.shapes(self.basis(problem).m))

    def network(self, theta: Tensor, z: Tensor, levels: Tensor) -> Tensor:
        """u (G, n, m) at inputs z (G, n, m) and levels (n, 2). The first layer is θ beyond a fixed draw, so that θ = 0 gives 0 and can be left."""
        shapes = self.shapes(z.shape[-1])
        w1, b1, w2, b2 = (
            part.unflatten(-1, shape) for part, shape in zip(theta.split([a * b for a, b in shapes], -1), shapes, strict=True)
        )
        fixed = torch.randn(shapes[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64) / math.sqrt(shapes[0][0])
        inputs = torch.cat([z, levels.expand(len(z), -1, -1)], -1)
        return (inputs @ (fixed + w1) + b1).tanh() @ w2 + b2

    # -- as a guidance ------------------------------------------------------------------------------------------------------------

    def _seen(self, problem: Problem, state: State) -> tuple[Tensor, Tensor, float]:
        assert state.prediction is not None
        coeffs = problem.grid.coeffs(state.step)
        levels = torch.tensor([[coeffs.alpha_s, coeffs.sigma_s]], dtype=torch.float64).expand(state.x.shape[1], -1)
        return self.basis(problem).project(state.prediction.x0), levels, gain(coeffs, self.data_std)

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor:
        z, levels, slope = self._seen(problem, state)
        return self.basis(problem).lift(slope * self.network(self.parameters(problem, state), z, levels), state.x)

    # -- statistics ---------------------------------------------------------------------------------------------------------------

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        z = torch.zeros(problem.G, n, problem.T, self.basis(problem).m, dtype=torch.float64)
        return {"e": z, "z": z.clone(), "levels": z.new_zeros(*z.shape[:3], 2), "s": z[..., 0].clone()}

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        e, std = standardised(problem, before, after, eta)
        z, levels, slope = self._seen(problem, before)
        held = self.copied(before)
        found = {"e": self.basis(problem).project(e), "z": z, "levels": levels, "s": torch.tensor(std * slope, dtype=torch.float64)}
        for name, value in found.items():
            held[name][:, :, before.step] = value
        return held

    def _shift(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        """s_k u along the paths, (G, N, T, m)."""
        z = statistics["z"]
        u = self.network(theta, z.flatten(1, 2), statistics["levels"][0].flatten(0, 1))
        return statistics["s"][..., None] * u.view_as(z)

    def log_ratio(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        shift = self._shift(statistics, theta)
        return (shift * statistics["e"] - shift.square() / 2).sum((-1, -2))

    def kl(self, statistics: dict[str, Tensor], w: Tensor, new: Tensor, old: Tensor) -> Tensor:
        moved = (self._shift(statistics, new) - self._shift(statistics, old)).square().sum((-1, -2)) / 2
        return (w * moved).sum(-1)

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        n = w.shape[1]
        apart = torch.arange(n) % 4 == 3 if n >= 8 else torch.zeros(n, dtype=torch.bool)
        rho = self.shrinkage(w, 1)
        best, least = theta, torch.full((len(w),), torch.inf, dtype=torch.float64)
        with torch.enable_grad():
            now = theta.clone().requires_grad_()
            adam = torch.optim.Adam([now], lr=self.rate)
            for _ in range(self.epochs + 1):
                gain = self.log_ratio(statistics, now) * w
                held = -(gain * (apart if bool(apart.any()) else ~apart)).sum(-1).detach()
                better = held < least
                best, least = torch.where(better[:, None], now.detach(), best), torch.where(better, held, least)
                adam.zero_grad()
                loss = -(gain * ~apart).sum() + (rho[:, None] * (now - theta).square()).sum() / 2
                loss.backward()
                adam.step()
        return best.clone()
