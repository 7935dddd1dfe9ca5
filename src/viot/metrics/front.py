"""Several rewards at once: which answers none other beats, and how much they dominate together. More is better in every coordinate."""

from __future__ import annotations

import torch
from torch import Tensor


def nondominated(points: Tensor) -> Tensor:
    """(n,) which points of (n, d) no other one dominates: is as good in every coordinate and better in one. Equal points stay together."""
    x = _finite(points)
    as_good = (x[None] >= x[:, None]).all(-1)
    better = (x[None] > x[:, None]).any(-1)
    return ~(as_good & better).any(1)


def hypervolume(points: Tensor, reference: Tensor | tuple[float, float]) -> float:
    """The area that points (n, 2) dominate above a reference point, exactly (Zitzler & Thiele 1998): a union of rectangles, each from the
    reference point to a point. Points that do not exceed the reference in both coordinates dominate none of it.

    Numbers compare at the same reference point only; a front of many points has more than one of few.
    """
    x, low = _finite(points), torch.as_tensor(reference, dtype=torch.float64)
    if x.shape[1] != 2 or low.shape != (2,) or not bool(low.isfinite().all()):
        raise ValueError(
            f"a hypervolume is of points (n, 2) and a finite reference point (2,), not {tuple(x.shape)} and {tuple(low.shape)}"
        )
    x = x[(x > low).all(1)]
    area, height = 0.0, float(low[1])
    # From the right to the left: what is higher than all to its right adds a slab as wide as it reaches.
    for a, b in sorted(x.tolist(), reverse=True):
        area += max(0.0, b - height) * (a - float(low[0]))
        height = max(height, b)
    return area


def _finite(points: Tensor) -> Tensor:
    x = points.detach().cpu().double()
    if x.ndim != 2 or not bool(x.isfinite().all()):
        raise ValueError(f"points must be finite and (n, d), not {tuple(x.shape)}")
    return x


__all__ = ["hypervolume", "nondominated"]
