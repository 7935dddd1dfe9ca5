"""Rewards of points in space, for models whose every law is known."""

from __future__ import annotations

import torch
from torch import Tensor


class Quadratic:
    """r(x) = −½ (x − center)ᵀ L (x − center), with `precision` L a number, (D,) or (D, D): `GaussianMixture` laws tilt by it in closed form."""

    differentiable = True

    def __init__(self, center: object = 0.0, precision: object = 1.0) -> None:
        self.center = torch.as_tensor(center, dtype=torch.float64)
        self.precision = torch.as_tensor(precision, dtype=torch.float64)
        self.name = "quadratic"

    def __call__(self, samples: Tensor) -> Tensor:
        gap = samples.double() - self.center.to(samples.device)
        precision = self.precision.to(samples.device)
        pulled = gap @ precision if precision.ndim == 2 else gap * precision
        return -0.5 * (gap * pulled).sum(-1)
