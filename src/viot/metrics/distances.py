r"""Distances between two weighted sets of points, (n, d) with weights (n,) against (m, d) with weights (m,), in float64.

`mmd` and `sliced_wasserstein` are distances between the discrete measures Σ w_i δ(x_i) and Σ v_j δ(y_j) themselves, and correct for no noise of
sampling: n independent draws of a law are at a distance of order n^−½ from it, and uneven weights count as fewer draws. Say what exact draws of the same number get.
Weights need not sum to 1; None = equal. A point of weight 0 is not there, whatever its coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moments(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the weighted points, without a correction for their number."""
    x, w = as_measure(x, weights)
    mean = w @ x
    gap = x - mean
    return mean, (gap * w[:, None]).T @ gap


def median_distance(x: Tensor, weights: Tensor | None = None, at_most: int = 2000) -> float:
    """The median distance between two different points, a bandwidth for `mmd`; of `at_most` of them, evenly spaced, where there are more.

    The pair (i, j) counts w_i w_j. In several clusters it is of the size of the gaps between them as soon as most pairs are apart.
    """
    x, w = as_measure(x, weights)
    if len(x) < 2:
        raise ValueError("the median distance between points needs two of positive weight")
    if len(x) > at_most:
        kept = torch.linspace(0, len(x) - 1, at_most, dtype=torch.float64).round().long()
        x, w = x[kept], w[kept]
    i, j = torch.triu_indices(len(x), len(x), 1)
    distance, order = torch.pdist(x).sort()
    mass = (w[i] * w[j])[order].cumsum(0)
    return float(distance[torch.searchsorted(mass, mass[-1:] / 2).clamp_max(len(mass) - 1)])


def check_bandwidth(bandwidth: float) -> None:
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"the bandwidth of a kernel must be finite and > 0, not {bandwidth}")


def kernel_mean(x: Tensor, y: Tensor, weights_x: Tensor | None = None, weights_y: Tensor | None = None, *, bandwidth: float) -> float:
    """Σ w_i v_j exp(−|x_i − y_j|² / 2h²), the terms of `mmd`: that of a reference against itself need be computed only once."""
    x, w, y, v = _pair(x, weights_x, y, weights_y)
    check_bandwidth(bandwidth)
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


def frechet_distance(x: Tensor, y: Tensor, weights_x: Tensor | None = None, weights_y: Tensor | None = None) -> float:
    """‖μ_x − μ_y‖² + Tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½) between features x (n, d) and y (m, d).

    The squared Wasserstein-2 distance of the two Gaussians (FID's formula), covariances corrected for the number of points, 1/(1 − Σ w²): n/(n − 1)
    for equal weights. A number only means something beside others in the same features and with similar n: it is biased upwards for few samples.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features must be (n, d) and (m, d) with n, m ≥ 2, not {tuple(x.shape)} and {tuple(y.shape)}")
    (mean_x, a), (mean_y, b) = _spread(x, weights_x), _spread(y, weights_y)
    if min(len(a), len(b)) < x.shape[1]:
        # Tr (aᵀa bᵀb)^½ is the sum of the singular values of a bᵀ: of few points in many dimensions a small matrix, exact and stable.
        cross = torch.linalg.svdvals(a @ b.T).sum()
    else:
        # As √Σ_x Σ_y √Σ_x, which is symmetric.
        values, axes = torch.linalg.eigh(a.T @ a)
        half = axes * values.clamp_min(0).sqrt()
        cross = torch.linalg.eigvalsh(half.T @ (b.T @ b) @ half).clamp_min(0).sqrt().sum()
    gap = mean_x - mean_y
    return float(gap @ gap + a.square().sum() + b.square().sum() - 2 * cross)


def _spread(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (d,) and what a covariance aᵀa is made of, (n, d): the gaps to the mean by their weights, corrected for the number of points."""
    x, w = as_measure(x, weights)
    if len(x) < 2:
        raise ValueError("a covariance needs two points of positive weight")
    mean = w @ x
    return mean, (x - mean) * (w / (1 - w @ w)).sqrt()[:, None]


def precision_recall(
    x: Tensor, y: Tensor, k: int = 3, weights_x: Tensor | None = None, weights_y: Tensor | None = None
) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, section 2) of samples x (n, d) against a reference y (m, d), n, m > k.

    Precision is the share of x inside the support of y, which is the union of balls around its points, each reaching to its k-th nearest
    neighbour; recall the share of y inside the support of x. Weights say how much a point counts in its share. A support knows no weights: every
    point of positive weight is one of its balls, and a point with k copies has a ball of radius 0.
    """
    x, w, y, v = _pair(x, weights_x, y, weights_y)
    if k < 1 or min(len(x), len(y)) <= k:
        raise ValueError(
            f"k-th neighbours need k ≥ 1 and more than k points of positive weight, not k = {k}, n = {len(x)} and m = {len(y)}"
        )
    gap = _gaps(x, y)
    return float(w @ (gap <= reach(y, k)).any(1).double()), float(v @ (gap <= reach(x, k)[:, None]).any(0).double())


def precision(x: Tensor, y: Tensor, reach_y: Tensor, weights_x: Tensor | None = None) -> float:
    """The first of `precision_recall` alone, for any number of samples x, where the `reach` (m,) of the reference y is known already."""
    x, w, y, _ = _pair(x, weights_x, y, None)
    return float(w @ (_gaps(x, y) <= reach_y).any(1).double())


def _gaps(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) Euclidean distances, without the cancellation of matrix products: a point and its copy are at 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def reach(x: Tensor, k: int) -> Tensor:
    """(n,) the distance of each point to its k-th nearest other one: itself is the first of the k + 1 nearest."""
    return _gaps(x, x).kthvalue(k + 1, dim=1).values


def mode_mass(x: Tensor, centres: Tensor, radius: float, weights: Tensor | None = None) -> tuple[Tensor, float]:
    """The share (C,) of the points whose nearest centre of (C, d) is at most `radius` away, for each centre, and the share of all others."""
    x, w = as_measure(x, weights)
    centres = centres.detach().cpu().double()
    if centres.ndim != 2 or centres.shape[1] != x.shape[1] or not len(centres):
        raise ValueError(f"centres must be (C, {x.shape[1]}) with C ≥ 1, not {tuple(centres.shape)}")
    if not radius > 0:
        raise ValueError(f"a radius is > 0, not {radius}")
    gap, nearest = _gaps(x, centres).min(1)
    inside = gap <= radius
    shares = torch.zeros(len(centres), dtype=torch.float64).index_add_(0, nearest[inside], w[inside])
    return shares, float(w[~inside].sum())


def _quantiles(projected: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Projections (directions, n) in rising order and their cumulative weights."""
    ordered, index = projected.sort(dim=1)
    return ordered, weights[index].cumsum(1)


def masses(n: int, weights: Tensor | None = None, what: str = "points") -> Tensor:
    """(n,) weights that sum to 1, float64; None = equal."""
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    w = weights.detach().cpu().double()
    if w.shape != (n,):
        raise ValueError(f"{n} {what} need as many weights, not {tuple(w.shape)}")
    if not bool((w.isfinite() & (w >= 0)).all()) or not float(w.sum()) > 0:
        raise ValueError("weights must be finite and ≥ 0, and not all 0")
    return w / w.sum()


def as_measure(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Points (n, d) and normalised weights (n,), those of weight 0 left out."""
    if x.ndim != 2 or not len(x):
        raise ValueError(f"points must be (n, d) with n ≥ 1, not {tuple(x.shape)}")
    x = x.detach().cpu().double()
    w = masses(len(x), weights)
    if weights is not None:
        x, w = x[w > 0], w[w > 0]
    if not bool(x.isfinite().all()):
        raise ValueError("points of positive weight must be finite")
    return x, w


def _pair(x: Tensor, weights_x: Tensor | None, y: Tensor, weights_y: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, w = as_measure(x, weights_x)
    y, v = as_measure(y, weights_y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"points must have the same dimension, not {x.shape[1]} and {y.shape[1]}")
    return x, w, y, v
