"""How different the samples of a set are from each other. A steered set can be perfect and all the same: say this beside the reward."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from .distances import as_measure, masses


def cosine(features: Tensor) -> Tensor:
    """(m, m) cosines between features (m, d), in float64. Features of length 0 have cosine 0 with everything but themselves."""
    if features.ndim != 2:
        raise ValueError(f"features must be (m, d), not {tuple(features.shape)}")
    unit = F.normalize(features.detach().cpu().double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(1.0)


def pairwise_distance(x: Tensor, weights: Tensor | None = None, metric: Literal["euclidean", "cosine"] = "euclidean") -> float:
    """Mean distance between two different rows of features (n, …), the pair (i, j) counting w_i w_j: how diverse a set is. 0 of one row.

    metric   "cosine": 1 − cos, between 0 and 2. Papers that report "CLIP diversity" mean one or the other: say which
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric is 'euclidean' or 'cosine', not {metric!r}")
    if len(x) < 2:
        return 0.0
    points, w = as_measure(x.flatten(1), weights)
    pairs = 1 - float(w @ w)
    if len(points) < 2 or not pairs > 0:
        return 0.0
    if metric == "cosine":
        return float(w @ (1 - cosine(points)) @ w) / pairs
    total = sum(
        float(mass @ torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist") @ w)
        for part, mass in zip(points.split(512), w.split(512), strict=True)
    )
    return total / pairs


def vendi(kernel: Tensor, weights: Tensor | None = None) -> float:
    """The Vendi score (arXiv 2210.02410), exp(−Tr K/m ln K/m): how many different samples there are, from 1 (all alike) to m (nothing alike).

    kernel    (m, m), symmetric, positive semidefinite, ones on the diagonal: `ngram_kernel(texts)`, `cosine(embeddings)`
    weights   (m,) ≥ 0, such as a population's: K/m becomes √w K √w with w that sums to 1 (arXiv 2210.02410, section 3). None = equal
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
        raise ValueError(f"the kernel must be (m, m) with m ≥ 1, not {tuple(kernel.shape)}")
    k = kernel.detach().cpu().double()
    if not bool(k.isfinite().all()) or not torch.allclose(k, k.T, atol=1e-6):
        raise ValueError("the kernel must be finite and symmetric")
    if not torch.allclose(k.diagonal(), torch.ones(len(k), dtype=k.dtype), atol=1e-6):
        raise ValueError("the kernel must have ones on its diagonal: a sample is like itself")
    root = masses(len(k), weights, "samples").sqrt()
    spectrum = torch.linalg.eigvalsh(root[:, None] * k * root)
    if float(spectrum[0]) < -1e-6:
        raise ValueError(f"the kernel must be positive semidefinite; it has the eigenvalue {float(spectrum[0]) * len(k):.3g}")
    return float(torch.special.entr(spectrum.clamp_min(0)).sum().exp())


__all__ = ["cosine", "pairwise_distance", "vendi"]
