"""Distances between sets of samples, in whatever features they are given, and diversity within one."""

from __future__ import annotations

import torch
from torch import Tensor

from .text import cosine, distinct, ngram_kernel, vendi


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """‖μ_x − μ_y‖² + Tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½) between features x (n, d) and y (m, d).

    The squared Wasserstein-2 distance of the two Gaussians (FID's formula). A number only means something beside others in the same features
    and with similar n: it is biased upwards for few samples.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features must be (n, d) and (m, d) with n, m ≥ 2, not {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.double(), y.double()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    # The eigenvalues of a product of two positive semidefinite matrices are real and ≥ 0; rounding may say otherwise.
    cross = torch.linalg.eigvals(cov_x @ cov_y).real.clamp_min(0).sqrt().sum()
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + cov_x.trace() + cov_y.trace() - 2 * cross)


def pairwise_distance(x: Tensor) -> float:
    """Mean Euclidean distance between two different rows of features (n, d): how diverse a set is."""
    if len(x) < 2:
        return 0.0
    return float(torch.pdist(x.flatten(1).double()).mean())


__all__ = ["cosine", "distinct", "frechet_distance", "ngram_kernel", "pairwise_distance", "vendi"]
