"""Rewards of points in space, for models whose every law is known."""

from __future__ import annotations

import math

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


class Modes:
    """r(x) = log Σ_i w_i N(x; centre_i, std² I): some modes are worth more than others. `centres` (C, D), `weights` (C,) > 0 of any sum."""

    differentiable = True

    def __init__(self, centres: object, weights: object, std: float) -> None:
        self.centres = torch.as_tensor(centres, dtype=torch.float64)
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if self.centres.ndim != 2 or self.weights.shape != self.centres.shape[:1] or not bool((self.weights > 0).all()) or not std > 0:
            raise ValueError(
                f"modes need centres (C, D), as many weights > 0 and a std > 0, not {tuple(self.centres.shape)}, {self.weights.tolist()} and {std}"
            )
        self.std = float(std)
        self.name = "modes"

    @classmethod
    def eight(cls) -> Modes:
        """The eight modes of the model `mixture`, the i-th of weight exp(1.5 i), i = 1 … 8 (arXiv 2506.20701, F.2)."""
        i = torch.arange(8, dtype=torch.float64)
        angle = i * (2 * torch.pi / 8)
        return cls(4 * torch.stack([angle.cos(), angle.sin()], 1), (1.5 * (i + 1)).exp(), 0.3)

    def __call__(self, samples: Tensor) -> Tensor:
        centres, weights = self.centres.to(samples.device), self.weights.to(samples.device)
        gap = (samples.double()[:, None] - centres).square().sum(-1)
        norm = centres.shape[1] / 2 * math.log(2 * math.pi * self.std**2)
        return (weights.log() - gap / (2 * self.std**2)).logsumexp(-1) - norm
