r"""Twists with parameters of their own at every step: free shifts, or affine in x_t with a free variance (a quadratic log ψ).

In units of the step's own noise, e = (x_s − mean)/std ~ N(b_k + C_k F x_t, v_k). Exact for linear-Gaussian chains, with linear and with
quadratic rewards; but T·m and more parameters, which overfit unless there are many more particles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..particles import State
from ..problem import Problem
from ..reward import takes
from .basis import Basis, basis_of, whole
from .twist import Twist, standardised, start_noise, step_std, twists


@dataclass(frozen=True, eq=False)
class _PerStep(Twist):
    """Regression of e on nothing or on x_t, step by step; the draw of x_T is one more, the last."""

    affine: ClassVar[bool] = False

    def basis(self, problem: Problem) -> Basis:
        raise NotImplementedError

    def size(self, problem: Problem) -> int:
        m = self.basis(problem).m
        return (problem.T + 1) * m * (m + 2 if self.affine else 1)

    def split(self, theta: Tensor, m: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """b (G, T+1, m), and C (G, T+1, m, m) and log v (G, T+1, m) where there are any."""
        table = theta.unflatten(-1, (-1, m * (m + 2 if self.affine else 1)))
        if not self.affine:
            return table, None, None
        return table[..., :m], table[..., m : m + m * m].unflatten(-1, (m, m)), table[..., -m:]

    def law(self, z: Tensor | None, theta: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of e, (G, N, T+1, m), along paths with F x_t = z (G, N, T+1, m)."""
        b, c, log_v = (None if v is None else v[:, None] for v in self.split(theta, m))
        assert b is not None
        if c is None or log_v is None or z is None:
            return b, torch.zeros_like(b)
        return b + torch.einsum("gnkij,gnkj->gnki", c.expand(-1, z.shape[1], -1, -1, -1), z), log_v

    # -- as a guidance ------------------------------------------------------------------------------------------------------------

    def _law_at(self, problem: Problem, state: State, step: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of e of one step for each particle, (G, N, m)."""
        m, n = self.basis(problem).m, state.x.shape[1]
        b, c, log_v = (None if v is None else v[:, step] for v in self.split(self.parameters(problem, state), m))
        assert b is not None
        mean = b[:, None].expand(-1, n, -1)
        if c is None or log_v is None:
            return mean, torch.ones_like(mean)
        if step < problem.T:
            mean = mean + torch.einsum("gij,gnj->gni", c, self.basis(problem).project(state.x))
        return mean, (log_v / 2).exp()[:, None].expand_as(mean)

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Tensor:
        mean, _ = self._law_at(problem, state, state.step)
        std = step_std(problem, state, eta).to(state.x)
        return torch.where(std > 0, self.basis(problem).lift(mean, state.x) / std, 0.0)

    def spread(self, problem: Problem, state: State) -> Tensor | None:
        return self.basis(problem).lift(self._law_at(problem, state, state.step)[1], state.x) if self.affine else None

    def prior(self, problem: Problem, state: State) -> tuple[Tensor, Tensor | None] | None:
        if start_noise(problem, state) is None:
            return None
        mean, spread = (self.basis(problem).lift(v, state.x) for v in self._law_at(problem, state, problem.T))
        return mean, spread if self.affine else None

    # -- statistics ---------------------------------------------------------------------------------------------------------------

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        m = self.basis(problem).m
        e = torch.zeros(problem.G, n, problem.T + 1, m, dtype=torch.float64)
        return {"e": e, "live": e[..., 0].clone(), **({"z": e.clone()} if self.affine else {})}

    def _put(self, state: State, step: int, e: Tensor, z: Tensor | None) -> dict[str, Tensor]:
        held = self.copied(state)
        held["e"][:, :, step], held["live"][:, :, step] = e, 1.0
        if z is not None and self.affine:
            held["z"][:, :, step] = z
        return held

    def note_prior(self, problem: Problem, state: State) -> dict[str, Tensor]:
        found = start_noise(problem, state)
        return self.held(state) if found is None else self._put(state, problem.T, self.basis(problem).project(found[0]), None)

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        e, std = standardised(problem, before, after, eta)
        if std == 0:
            return self.held(before)
        basis = self.basis(problem)
        return self._put(before, before.step, basis.project(e), basis.project(before.x) if self.affine else None)

    # -- regression ---------------------------------------------------------------------------------------------------------------

    def log_ratio(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        e, live = statistics["e"], statistics["live"]
        mean, log_v = self.law(statistics.get("z"), theta, e.shape[-1])
        log_q = -((e - mean).square() / log_v.exp() + log_v) / 2
        return ((log_q + e.square() / 2).sum(-1) * live).sum(-1)

    def kl(self, statistics: dict[str, Tensor], w: Tensor, new: Tensor, old: Tensor) -> Tensor:
        e, live = statistics["e"], statistics["live"]
        (mean, log_v), (mean_old, log_v_old) = (self.law(statistics.get("z"), theta, e.shape[-1]) for theta in (new, old))
        change = log_v - log_v_old
        each = change.exp() - 1 - change + (mean - mean_old).square() / log_v_old.exp()
        return (w[..., None] * live * each.sum(-1) / 2).sum((-1, -2))

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        e, live = statistics["e"], statistics["live"]
        m = e.shape[-1]
        b, c, log_v = self.split(theta, m)
        x, old = torch.ones_like(e[..., :1]), b[..., None, :]
        if c is not None:
            x, old = torch.cat([x, statistics["z"]], -1), torch.cat([old, c.transpose(-1, -2)], -2)
        rho = self.shrinkage(w, x.shape[-1])[:, None, None, None]
        left = torch.einsum("gn,gnki,gnkj->gkij", w, x, x) + (rho + 1e-12) * torch.eye(x.shape[-1], dtype=torch.float64)
        right = torch.einsum("gn,gnki,gnkj->gkij", w, x, e) + rho * old
        beta = torch.linalg.solve(left, right)
        pieces = [beta[..., 0, :]]
        if log_v is not None:
            gap = e - torch.einsum("gnki,gkij->gnkj", x, beta)
            rho = rho[..., 0]
            # Residuals of few particles are short: they have been fitted. Too small a variance makes weights of infinite variance.
            freedom = (1 - self.shrinkage(w, 2 * x.shape[-1])).clamp_min(0)[:, None, None]
            v = (torch.einsum("gn,gnki->gki", w, gap.square()) + rho * log_v.exp()) / (freedom + rho)
            pieces += [beta[..., 1:, :].transpose(-1, -2).flatten(-2), v.clamp_min(1e-8).log()]
        # Where no noise was drawn there is nothing to learn.
        drawn = (live > 0).any(1)[..., None]
        found = torch.where(drawn, torch.cat(pieces, -1), theta.unflatten(-1, (live.shape[-1], -1)))
        return found.flatten(1)


@twists.add("shift", "a free shift of every step: for far more particles than T·features")
@dataclass(frozen=True, eq=False)
class Shift(_PerStep):
    """b_k for every step: the weighted average of its noise. The optimum for linear rewards on linear-Gaussian chains.

    features   the directions that are shifted, see `viot.twists.basis_of`
    """

    name = "shift"
    features: int | Tensor | None = None

    def basis(self, problem: Problem) -> Basis:
        return basis_of(self.features, tuple(problem.evaluate.model.event_shape))


@twists.add("affine", "shift, slope and variance of every step: exact for quadratic rewards on linear-Gaussian chains, in few dimensions")
@dataclass(frozen=True, eq=False)
class Affine(_PerStep):
    """b_k + C_k x_t and a variance for each entry, for states of at most 64 numbers."""

    name = "affine"
    affine = True

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not takes(problem.kernel.step, "spread"):
            raise TypeError(
                f"an affine twist changes the variance of a step: {type(problem.kernel).__name__}.step lacks a parameter spread; use shift"
            )
        if (size := self.basis(problem).m) > 64:
            raise ValueError(f"an affine twist has {size * (size + 2)} parameters at every step for states of {size} numbers; use slope")

    def basis(self, problem: Problem) -> Basis:
        return whole(tuple(problem.evaluate.model.event_shape))
