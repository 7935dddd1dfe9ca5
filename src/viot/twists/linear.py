r"""Twists that are linear in the clean guess, log ψ_t(x) = ⟨η, F x̂0(x)⟩, with one η for the whole chain or a few stretches of it.

The mean of a step moves by std² Jᵀ Fᵀ η, J = ∂x̂0/∂x. With e = (x_s − mean)/std and S = std Jᵀ Fᵀ,

    log q_η / p = ηᵀ Σ_k S_kᵀ e_k − ½ ηᵀ (Σ_k S_kᵀ S_k) η

so that Σ Sᵀe and Σ SᵀS of a path are all that weighted maximum likelihood needs, which is then linear least squares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model import Coeffs, Prediction
from ..particles import State
from ..problem import Problem
from .basis import Basis, basis_of, whole
from .twist import Twist, standardised, start_noise, twists


def gain(coeffs: Coeffs, data_std: float) -> float:
    """∂x̂0/∂x_s of isotropic Gaussian data with this standard deviation, at the level that a step leads to."""
    a, s, v = float(coeffs.alpha_s), float(coeffs.sigma_s), data_std**2
    return a * v / (a * a * v + s * s)


@dataclass(frozen=True, eq=False)
class Linear(Twist):
    """What the linear families share.

    features   what F measures, see `viot.twists.basis_of`
    buckets    how many stretches of the chain have an η of their own
    """

    features: int | Tensor | None = None
    buckets: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets < 1:
            raise ValueError(f"buckets must be ≥ 1, not {self.buckets}")

    def basis(self, problem: Problem) -> Basis:
        return basis_of(self.features, tuple(problem.evaluate.model.event_shape))

    def size(self, problem: Problem) -> int:
        return self.buckets * self.basis(problem).m

    def bucket(self, problem: Problem, step: int) -> int:
        return step * self.buckets // problem.T

    def eta_of(self, problem: Problem, theta: Tensor, step: int) -> Tensor:
        """The part (G, m) of θ in force at a step."""
        return theta.unflatten(-1, (self.buckets, -1))[:, self.bucket(problem, step)]

    def add(self, problem: Problem, state: State, score: Tensor, info: Tensor) -> dict[str, Tensor]:
        """The statistics with Sᵀe (G, N, m) and SᵀS of one more step."""
        held, b = self.copied(state), self.bucket(problem, state.step)
        held["score"][:, :, b] += score
        held["info"][:, :, b] += info
        return held

    # -- least squares ------------------------------------------------------------------------------------------------------------

    def information(self, statistics: dict[str, Tensor], w: Tensor) -> Tensor:
        """Σ_n w_n SᵀS, (G, buckets, m, m)."""
        return torch.einsum("gn,gnb...->gb...", w, statistics["info"])

    def quadratic(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        """ηᵀ SᵀS η of each path, (G, N)."""
        eta = theta.unflatten(-1, (self.buckets, -1))
        return torch.einsum("gbi,gnbij,gbj->gn", eta, statistics["info"], eta)

    def log_ratio(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        eta = theta.unflatten(-1, (self.buckets, -1))
        return torch.einsum("gbi,gnbi->gn", eta, statistics["score"]) - self.quadratic(statistics, theta) / 2

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        old = theta.unflatten(-1, (self.buckets, -1))
        score = torch.einsum("gn,gnbi->gbi", w, statistics["score"])
        info = self.information(statistics, w)
        m = info.shape[-1]
        scale = info.diagonal(dim1=-2, dim2=-1).mean(-1)
        # A bucket in which nothing could be moved keeps its η.
        rho = self.shrinkage(w, theta.shape[1])[:, None] * scale + 1e-12 * scale + (scale == 0)
        eye = torch.eye(m, dtype=torch.float64)
        found = torch.linalg.solve(info + rho[..., None, None] * eye, (score + rho[..., None] * old)[..., None])
        return found[..., 0].flatten(1)

    def kl(self, statistics: dict[str, Tensor], w: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return (w * self.quadratic(statistics, new - old)).sum(-1) / 2


@twists.add("slope", "linear in the clean guess, whose slope is that of Gaussian data: no derivative and no network call of its own")
@dataclass(frozen=True, eq=False)
class Slope(Linear):
    """J ≈ α v / (α² v + σ²), the slope of E[x0 | x] for Gaussian data of standard deviation `data_std` = √v: a number for each level.

    data_std   of x0 per entry: about 1 for latents and for pictures in [−1, 1]
    """

    name = "slope"
    data_std: float = 1.0

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        m = self.basis(problem).m
        zeros = torch.zeros(problem.G, n, self.buckets, m, dtype=torch.float64)
        return {"score": zeros, "info": zeros[..., 0].clone()}

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor:
        pushed = gain(problem.grid.coeffs(state.step), self.data_std) * self.eta_of(problem, self.parameters(problem, state), state.step)
        return self.basis(problem).lift(pushed[:, None].expand(-1, state.x.shape[1], -1), state.x)

    def first(self, problem: Problem, std: float) -> float:
        """S of the start, where x_T is drawn."""
        level = problem.grid.coeffs(0)
        return std * gain(Coeffs(1.0, 0.0, level.alpha_t, level.sigma_t), self.data_std)

    def prior(self, problem: Problem, state: State) -> tuple[Tensor, None] | None:
        found = start_noise(problem, state)
        if found is None:
            return None
        eta = self.first(problem, found[1]) * self.eta_of(problem, self.parameters(problem, state), 0)
        return self.basis(problem).lift(eta[:, None].expand(-1, state.x.shape[1], -1), state.x), None

    def note_prior(self, problem: Problem, state: State) -> dict[str, Tensor]:
        found = start_noise(problem, state)
        if found is None:
            return self.held(state)
        s = self.first(problem, found[1])
        return self.add(problem, state, s * self.basis(problem).project(found[0]), torch.tensor(s * s, dtype=torch.float64))

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        e, std = standardised(problem, before, after, eta)
        s = std * gain(problem.grid.coeffs(before.step), self.data_std)
        return self.add(problem, before, s * self.basis(problem).project(e), torch.tensor(s * s, dtype=torch.float64))

    def information(self, statistics: dict[str, Tensor], w: Tensor) -> Tensor:
        eye = torch.eye(statistics["score"].shape[-1], dtype=torch.float64)
        return super().information(statistics, w)[..., None, None] * eye

    def quadratic(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        eta = theta.unflatten(-1, (self.buckets, -1))
        return torch.einsum("gnb,gb->gn", statistics["info"], eta.square().sum(-1))


@twists.add("vjp", "linear in the clean guess, with its exact derivative: a backward pass for each of ≤ 4 features")
@dataclass(frozen=True, eq=False)
class VJP(Linear):
    """J by vector–Jacobian products through the network, at x_t: m backward passes beside every prediction. At most four features."""

    name = "vjp"
    needs_grad = True

    def check(self, problem: Problem) -> None:
        super().check(problem)
        m, model = self.basis(problem).m, problem.evaluate.model
        if m > 4:
            raise ValueError(f"a vjp twist goes back through the network once for each feature: give it features (m ≤ 4, D), not {m}")
        if not getattr(model, "differentiable", True):
            raise TypeError(f"{type(model).__name__} declares differentiable = False: no vector–Jacobian products. Use a slope twist.")

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        m = self.basis(problem).m
        zeros = torch.zeros(problem.G, n, self.buckets, m, m, dtype=torch.float64)
        return {"score": zeros[..., 0].clone(), "info": zeros}

    def aside(self, problem: Problem, state: State) -> Any:
        return _Products(self.basis(problem))

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor:
        assert state.prediction is not None
        directions = state.prediction.extra["guide"]
        return torch.einsum(
            "gi,gni...->gn...", self.eta_of(problem, self.parameters(problem, state), state.step).to(directions), directions
        )

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        e, std = standardised(problem, before, after, eta)
        if std == 0:
            return self.held(before)
        assert before.prediction is not None
        s = std * before.prediction.extra["guide"].flatten(3).cpu().double()
        score = torch.einsum("gnid,gnd->gni", s, e.flatten(2).cpu())
        return self.add(problem, before, score, torch.einsum("gnid,gnjd->gnij", s, s))


@dataclass(frozen=True, eq=False)
class _Products:
    """∂⟨F_i, x̂0⟩/∂x_t for each feature, (rows, m, *event_shape)."""

    basis: Basis
    needs_grad = True
    rows = 0

    def __call__(self, x: Tensor, t: Tensor, prediction: Prediction, group: Tensor) -> Tensor:
        features = self.basis.lift(torch.eye(self.basis.m, dtype=torch.float64)[None], prediction.x0[None])[0]
        found = []
        for i, direction in enumerate(features):
            total = (prediction.x0 * direction).sum()
            (product,) = torch.autograd.grad(total, x, retain_graph=i + 1 < len(features))
            found.append(product.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        return torch.stack(found, 1)


@twists.add("direction", "linear in the clean guess, along where weighted samples lie: for pictures and latents, with few particles")
@dataclass(frozen=True, eq=False)
class Direction(Slope):
    """A slope twist of the whole state that learns one direction in every round: from the mean of the clean samples to their weighted mean.

    The size of a step along it is fitted for each stretch of the chain, by least squares in which no particle has a say in the direction
    that it is measured against (leave one out): with few particles in many dimensions anything else fits their noise. The statistics are
    as large as a state for each bucket, and one more.
    """

    name = "direction"
    features: int | Tensor | None = field(init=False, default=None)
    buckets: int = 4

    def basis(self, problem: Problem) -> Basis:
        return whole(tuple(problem.evaluate.model.event_shape))

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        held = super().blank(problem, n)
        return {**held, "x0": torch.zeros_like(held["score"][:, :, 0])}

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        held = super().note(problem, before, after, eta, drift)
        return {**held, "x0": self.basis(problem).project(after.x)} if before.step == problem.T - 1 else held

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        old, score = theta.unflatten(-1, (self.buckets, -1)), statistics["score"]
        info = torch.einsum("gn,gnb->gb", w, statistics["info"])
        # What is left to explain after the twist that is there.
        left = score - info[:, None, :, None] * old[:, None]
        n, x0 = w.shape[1], statistics["x0"]
        mean, weighted = x0.mean(1), torch.einsum("gn,gnd->gd", w, x0)
        direction = weighted - mean
        rest = (1 - w).clamp_min(1e-12)[..., None]
        others = (weighted[:, None] - w[..., None] * x0) / rest - (n * mean[:, None] - x0) / max(n - 1, 1)
        gained = torch.einsum("gn,gnd,gnbd->gb", w, others, left)
        size = torch.einsum("gn,gnd,gnd->g", w, others, others)[:, None] * info
        a = gained / (size * (1 + self.shrinkage(w, self.buckets)[:, None])).clamp_min(1e-300)
        # Away from the weighted samples is noise.
        return (old + a.clamp_min(0.0)[..., None] * direction[:, None]).flatten(1)
