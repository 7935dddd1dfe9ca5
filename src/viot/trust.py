r"""Trust regions: how far one population of weights lets a sampler move, in nats.

With log-weights f under the current sampler q, the law nearest to the target within KL ≤ ε of q is the tempered one, W(τ) ∝ exp(τ f) with
the largest τ ≤ 1 whose KL(W ‖ uniform) is at most ε; this is the closed form of  min KL(q' ‖ Π)  subject to  KL(q' ‖ q) ≤ ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from . import weights

Solver = Literal["bisection", "dual"]


def tempered(f: Tensor, nats: float, solver: Solver = "bisection") -> Tensor:
    """τ (G,) of log-weights f (G, N): 1 where the whole step costs no more than `nats`, else KL(W(τ) ‖ uniform) = nats.

    "bisection" solves for the KL itself, "dual" minimises the convex dual (`dual`) of which that is the derivative; they agree.
    """
    if solver == "dual":
        return _minimised(f, nats)
    zero = torch.zeros(len(f), dtype=torch.float64)
    return weights.solve_monotone(lambda tau: spent(f, tau), nats, zero, zero + 1)


def spent(f: Tensor, tau: Tensor) -> Tensor:
    """KL(W(τ) ‖ uniform) in nats, (G,): between 0 and log N, and W has an entropic sample size of N exp(−KL)."""
    return weights.kl_from_uniform(weights.tilt(f, tau[:, None]))


def dual(f: Tensor, nats: float, ell: Tensor) -> Tensor:
    """The dual objective ℓ ε + (1 + ℓ) log mean exp(f / (1 + ℓ)) at multipliers ℓ ≥ 0, (G,); its minimum is at τ = 1 / (1 + ℓ)."""
    return ell * nats + (1 + ell) * weights.log_mean_exp(weights.tilt(f, 1 / (1 + ell[:, None])))


def _minimised(f: Tensor, nats: float) -> Tensor:
    """Golden-section search of the dual over log(1 + ℓ), in which it is unimodal."""
    low = torch.zeros(len(f), dtype=torch.float64)
    high = low + 40.0
    share = (math.sqrt(5) - 1) / 2
    # Shifted so that the largest is 0, where the dual is most accurate; a shift does not move its minimum.
    f = f - f.amax(-1, keepdim=True).clamp_min(-1e300)
    for _ in range(90):
        a, b = high - share * (high - low), low + share * (high - low)
        left = dual(f, nats, a.expm1()) < dual(f, nats, b.expm1())
        low, high = torch.where(left, low, a), torch.where(left, b, high)
    tau = torch.exp(-(low + high) / 2)
    return torch.where(tau > 1 - 1e-9, 1.0, tau)


def capped(kl: Callable[[Tensor], Tensor], old: Tensor, new: Tensor, nats: float) -> tuple[Tensor, Tensor]:
    """(1 − s) old + s new, with the largest s in (0, 1] that keeps kl(θ) (G,) of parameters θ (G, P) within `nats`; and s (G,)."""

    def at(s: Tensor) -> Tensor:
        return old + s[:, None] * (new - old)

    one = torch.ones(len(old), dtype=torch.float64)
    s = torch.where(kl(new) <= nats, one, weights.solve_monotone(lambda s: kl(at(s)), nats, torch.zeros_like(one), one))
    # Where the KL is not monotone the crossing found may lie on its far side.
    while bool((far := kl(at(s)) > nats * (1 + 1e-6)).any()):
        s = torch.where(far, s / 2, s)
    return at(s), s
