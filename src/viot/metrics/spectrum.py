r"""The MMD in one or two dimensions at a cost linear in the number of points, as the distance between two characteristic functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .distances import as_measure, check_bandwidth, kernel_mean

#: Where a Gaussian density, and a Gaussian kernel, count as 0: exp(−8.5² / 2) is 2·10⁻¹⁶.
ZERO = 8.5
#: Entries at a time, points × frequencies.
SOME = 2**22


class Spectrum:
    r"""The characteristic function of a weighted reference, points (n, 1) or (n, 2) with weights (n,), held for the MMD to it.

    The kernel exp(−|x|² / 2h²) is the characteristic function of ω ~ N(0, I/h²), so that with φ(ω) = Σ w_i exp(i ω·x_i)

        MMD²(x, y) = E |φ_x(ω) − φ_y(ω)|²

    The trapezoid rule on a grid of step s takes that mean to rounding: its error is the kernel at 2π/s less the distance of the points, and s is
    chosen with that beyond `ZERO`. Points of x so far from the reference that their kernel with all of it is 0 are counted among x alone.
    """

    def __init__(self, points: Tensor, weights: Tensor | None, bandwidth: float) -> None:
        points, weights = as_measure(points, weights)
        if points.shape[1] > 2:
            raise ValueError(f"a spectrum is of one or two dimensions, not {points.shape[1]}: its grid grows with their power")
        check_bandwidth(bandwidth)
        low, high = points.amin(0), points.amax(0)
        self.bandwidth, self.centre, self.half = bandwidth, (low + high) / 2, (high - low) / 2 + ZERO * bandwidth
        # Two points of x may be `ZERO` beyond the reference on either side; the period of the grid is longer by another.
        period = float((high - low).amax()) / bandwidth + 3 * ZERO
        step = 2 * math.pi / period
        self.frequencies = step * torch.arange(-math.ceil(ZERO / step), math.ceil(ZERO / step) + 1, dtype=torch.float64)
        density = (-0.5 * self.frequencies.square()).exp() * step / math.sqrt(2 * math.pi)
        self._density = density if points.shape[1] == 1 else density[:, None] * density
        self._reference = self._characteristic(points, weights)

    def mmd(self, x: Tensor, weights: Tensor | None = None) -> float:
        """To points (m, d) with weights (m,); not squared, as `viot.metrics.mmd`."""
        x, w = as_measure(x, weights)
        near = ((x - self.centre).abs() <= self.half).all(1)
        gap = self._characteristic(x[near], w[near]) - self._reference
        squared = float((self._density * (gap.real.square() + gap.imag.square())).sum())
        if not near.all():
            far, mass = x[~near], float(w[~near].sum())
            squared += mass**2 * kernel_mean(far, far, w[~near], w[~near], bandwidth=self.bandwidth)
            if near.any():
                squared += 2 * mass * (1 - mass) * kernel_mean(far, x[near], w[~near], w[near], bandwidth=self.bandwidth)
        return math.sqrt(squared)

    def _characteristic(self, x: Tensor, w: Tensor) -> Tensor:
        """φ at the grid, (F,) or (F, F)."""
        found = torch.zeros_like(self._density, dtype=torch.complex128)
        rows = max(1, SOME // len(self.frequencies))
        for part, mass in zip(((x - self.centre) / self.bandwidth).split(rows), w.split(rows), strict=True):
            first, *second = (torch.polar(torch.ones(1, 1, dtype=torch.float64), at[:, None] * self.frequencies) for at in part.T)
            weighted = first * mass[:, None]
            found += weighted.T @ second[0] if second else weighted.sum(0)
        return found
