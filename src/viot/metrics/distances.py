r"""Distances between two weighted sets of points, (n, d) with weights (n,) against (m, d) with weights (m,), in float64.

Both are distances between the discrete measures Σ w_i δ(x_i) and Σ v_j δ(y_j) themselves, and correct for no noise of sampling: n independent
draws of a law are at a distance of order n^−½ from it, and uneven weights count as fewer draws. Say what exact draws of the same number get.
Weights need not sum to 1; None = equal. A point of weight 0 is not there, whatever its coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moments(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the weighted points, without a correction for their number."""
    x, w = _measure(x, weights)
    mean = w @ x
    gap = x - mean
    return mean, (gap * w[:, None]).T @ gap


def median_distance(x: Tensor, weights: Tensor | None = None, at_most: int = 2000) -> float:
    """The median distance between two different points, a bandwidth for `mmd`; of `at_most` of them, evenly spaced, where there are more.

    The pair (i, j) counts w_i w_j. In several clusters it is of the size of the gaps between them as soon as most pairs are apart.
    """
    x, w = _measure(x, weights)
    if len(x) < 2:
        raise ValueError("the median distance between points needs two of positive weight")
    if len(x) > at_most:
        kept = torch.linspace(0, len(x) - 1, at_most, dtype=torch.float64).round().long()
        x, w = x[kept], w[kept]
    i, j = torch.triu_indices(len(x), len(x), 1)
    distance, order = torch.pdist(x).sort()
    mass = (w[i] * w[j])[order].cumsum(0)
    return float(distance[torch.searchsorted(mass, mass[-1:] / 2).clamp_max(len(mass) - 1)])


def kernel_mean(x: Tensor, y: Tensor, weights_x: Tensor | None = None, weights_y: Tensor | None = None, *, bandwidth: float) -> float:
    """Σ w_i v_j exp(−|x_i − y_j|² / 2h²), the terms of `mmd`: that of a reference against itself need be computed only once."""
    x, w, y, v = _pair(x, weights_x, y, weights_y)
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"the bandwidth of a kernel must be finite and > 0, not {bandwidth}")
    # |x − y|² as a matrix product, about a common origin: far from it large squares would cancel.
    origin = v @ y
    x, y = (x - origin) / bandwidth, (y - origin) / bandwidth
    size, total = y.square().sum(1), 0.0
    rows = max(1, 2**21 // len(y))
    for part, mass in zip(x.split(rows), w.split(rows), strict=True):
        squares = torch.addmm(part.square().sum(1, keepdim=True) + size, part, y.T, alpha=-2).clamp_(min=0)
        total += float(mass @ squares.mul_(-0.5).exp_() @ v)
    return total


def mmd(x: Tensor, y: Tensor, weights_x: Tensor | None = None, weights_y: Tensor | None = None, *, bandwidth: float | None = None) -> float:
    """The maximum mean discrepancy, not squared, under the kernel exp(−|x − y|² / 2h²): between 0 and √2.

    bandwidth   h; None = `median_distance` of y, the reference. Numbers compare only at the same h
    """
    h = median_distance(y, weights_y) if bandwidth is None else bandwidth
    own, other = kernel_mean(x, x, weights_x, weights_x, bandwidth=h), kernel_mean(y, y, weights_y, weights_y, bandwidth=h)
    return max(0.0, own + other - 2 * kernel_mean(x, y, weights_x, weights_y, bandwidth=h)) ** 0.5


def unit_directions(n: int, d: int, seed: int = 0) -> Tensor:
    """(n, d): n directions, uniform on the sphere, the same for the same seed."""
    directions = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return directions / directions.norm(dim=1, keepdim=True)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    *,
    directions: int | Tensor = 200,
    order: float = 2.0,
) -> float:
    """(mean over directions θ of W_p(θ·x, θ·y)^p)^(1/p), each W_p exactly, from the quantile functions of the weighted projections.

    directions   how many fixed random ones (`unit_directions`), or your own (n, d), of length 1
    order        p ≥ 1
    """
    x, w, y, v = _pair(x, weights_x, y, weights_y)
    if not 1 <= order < float("inf"):
        raise ValueError(f"order must be finite and ≥ 1, not {order}")
    theta = unit_directions(directions, x.shape[1]) if isinstance(directions, int) else directions.detach().cpu().double()
    if theta.ndim != 2 or theta.shape[1] != x.shape[1] or not len(theta):
        raise ValueError(f"directions must be (n, {x.shape[1]}), not {tuple(theta.shape)}")
    total = 0.0
    # Some at a time: a projection of a million points is large.
    for some in theta.split(max(1, 2**21 // (len(x) + len(y)))):
        (a, low), (b, high) = _quantiles(some @ x.T, w), _quantiles(some @ y.T, v)
        # Between two neighbours of all cumulative weights both quantile functions are constant.
        levels = torch.cat([low, high], 1).sort(dim=1).values
        width = levels.diff(dim=1, prepend=torch.zeros(len(levels), 1, dtype=torch.float64))
        at = (p.gather(1, torch.searchsorted(c, levels).clamp_(max=p.shape[1] - 1)) for p, c in ((a, low), (b, high)))
        total += float((width * (next(at) - next(at)).abs().pow(order)).sum())
    return (total / len(theta)) ** (1 / order)


def _quantiles(projected: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Projections (directions, n) in rising order and their cumulative weights."""
    ordered, index = projected.sort(dim=1)
    return ordered, weights[index].cumsum(1)


def _measure(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points (n, d) and normalised weights (n,), those of weight 0 left out."""
    if x.ndim != 2 or not len(x):
        raise ValueError(f"points must be (n, d) with n ≥ 1, not {tuple(x.shape)}")
    x = x.detach().cpu().double()
    if weights is None:
        w = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    else:
        w = weights.detach().cpu().double()
        if w.shape != x.shape[:1]:
            raise ValueError(f"{len(x)} points need as many weights, not {tuple(w.shape)}")
        if not bool((w.isfinite() & (w >= 0)).all()) or not float(w.sum()) > 0:
            raise ValueError("weights must be finite and ≥ 0, and not all 0")
        x, w = x[w > 0], w[w > 0] / w.sum()
    if not bool(x.isfinite().all()):
        raise ValueError("points of positive weight must be finite")
    return x, w


def _pair(x: Tensor, weights_x: Tensor | None, y: Tensor, weights_y: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, w = _measure(x, weights_x)
    y, v = _measure(y, weights_y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"points must have the same dimension, not {x.shape[1]} and {y.shape[1]}")
    return x, w, y, v
