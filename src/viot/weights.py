"""Log-weight algebra over (groups, particles). Everything is float64 on the CPU, everything stays in log space.

The convention throughout: `log_w` is unnormalised and its *mean* estimates a normalising constant, Ẑ = (1/K) Σ_i exp(log_w_i). Selecting
ancestors from masses m changes it to log_w − log(K m), which leaves that estimate unbiased, so no separate accumulator of log Z exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NEG_INF = float("-inf")


def normalize(log_w: Tensor) -> Tensor:
    """log_w (G, K) with logsumexp = 0 over K; NaN for a group in which every particle is dead."""
    total = log_w.logsumexp(-1, keepdim=True)
    return torch.where(total > NEG_INF, log_w - total, torch.nan)


def log_mean_exp(log_w: Tensor, dim: int = -1) -> Tensor:
    """log of the mean of exp(log_w) along `dim`; −inf where all entries are."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def ess(log_w: Tensor) -> Tensor:
    """Effective sample size (Σw)² / Σw² over the last dimension: between 1 and K, 0 for a dead group."""
    top = log_w.amax(-1, keepdim=True)
    w = torch.exp(log_w - torch.where(top > NEG_INF, top, 0.0))
    total, squares = w.sum(-1), (w * w).sum(-1)
    return torch.where(squares > 0, total * total / squares.clamp_min(1e-300), 0.0)


def kl_from_uniform(log_w: Tensor) -> Tensor:
    """KL(W ‖ uniform) = log K − entropy of the normalised weights, in nats: between 0 and log K."""
    log_p = normalize(log_w)
    return math.log(log_w.shape[-1]) + torch.xlogy(log_p.exp(), log_p.exp()).sum(-1)


def tilt(rewards: Tensor, lam: float | Tensor) -> Tensor:
    """λ r with 0 · (−inf) = −inf: a hard constraint holds whatever the strength."""
    return torch.where(rewards == NEG_INF, NEG_INF, lam * rewards)


def subtract(a: Tensor, b: Tensor) -> Tensor:
    """a − b where a dead entry (−inf on either side) stays dead instead of turning into NaN or +inf."""
    dead = (a == NEG_INF) | (b == NEG_INF)
    return torch.where(dead, NEG_INF, a - torch.where(dead, 0.0, b))


def floored(rewards: Tensor, lam: float) -> Tensor:
    """Intermediate scores (G, K) with −inf replaced by three nats (of λ r) below the group's lowest finite one; 0 where there is none.

    A clean guess that breaks a hard constraint does not make its particle worthless: the finished sample may keep it. Killing it would cut
    off a part of the target that no later weight could bring back, while a low finite score costs efficiency only: whatever potential is
    applied on the way is divided out at the end.
    """
    sign = -1.0 if lam < 0 else 1.0
    dead = rewards == NEG_INF
    if not bool(dead.any()):
        return rewards
    lowest = torch.where(dead, torch.inf, sign * rewards).amin(-1, keepdim=True)
    margin = 3.0 / abs(lam) if lam else 0.0
    return torch.where(dead, torch.where(lowest < torch.inf, sign * (lowest - margin), 0.0), rewards)


def equal(possible: Tensor) -> Tensor:
    """The same weight for everybody who is possible (bool, any shape): 0, and −inf for the others."""
    return torch.where(possible, 0.0, NEG_INF).double()


def draw(log_w: Tensor, u: Tensor) -> Tensor:
    """Indices (…) drawn ∝ exp(log_w) over the last dimension of log_w (…, n), one for each uniform u (…); evenly where all are −inf."""
    top = log_w.amax(-1, keepdim=True)
    edges = torch.where(top > NEG_INF, (log_w - top).exp(), 1.0).cumsum(-1)
    return torch.searchsorted(edges, u[..., None] * edges[..., -1:], right=True)[..., 0].clamp_max(log_w.shape[-1] - 1)


def alive(log_w: Tensor) -> Tensor:
    """(G,) bool: has the group any particle with positive weight?"""
    return (log_w > NEG_INF).any(-1)


def solve_monotone(f: Callable[[Tensor], Tensor], target: float, low: Tensor, high: Tensor, iterations: int = 60) -> Tensor:
    """Bisection, elementwise: the x in [low, high] at which the increasing f crosses `target` (an end where it does not)."""
    for _ in range(iterations):
        middle = (low + high) / 2
        below = f(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
