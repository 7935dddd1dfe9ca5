"""What the exactness tests share: chains whose tilted law is known, and estimates with their standard errors over many groups.

Every group is an independent run, so a thousand groups of sixteen particles are a thousand repeats of a small particle system. For a method
that is exact at *every* K, both Ẑ and Ẑ · (weighted mean of f) are unbiased; that is what is checked, not a large-K approximation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

import viot
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic

STEPS = 8
MODEL = GaussianMixture([[0.3]], 0.6)
REWARD = Quadratic(center=1.5, precision=2.0)


def law(steps=STEPS, eta=1.0, lam=1.0):
    """The tilted law of the chain itself: mean, second moment, Z."""
    tilted, log_z = MODEL.chain_law(steps, eta).tilt(1.5, 2.0, lam)
    mean, var = tilted.mean.item(), tilted.cov.item()
    return Truth(torch.tensor(log_z).exp().item(), mean, var + mean**2)


@dataclass
class Truth:
    z: float
    first: float
    second: float


def run(method, *, groups=2000, particles=16, steps=STEPS, lam=1.0, seed=0, model=MODEL, reward=REWARD):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        return viot.sample(model, reward, method, particles=particles, groups=groups, steps=steps, lam=lam, seed=seed, progress=False)


def z_scores(population, truth):
    """How many standard errors Ẑ, the mean and the second moment lie from the truth: small for an unbiased method at any K.

    The moments are ratios Σ_g Ẑ_g m_g / Σ_g Ẑ_g over groups, whose bias is of order 1/G, not 1/K.
    """
    z = population.log_z.exp()
    x = population.samples[..., 0]
    root = len(z) ** 0.5
    scores = [(z.mean() - truth.z) / (z.std() / root)]
    for f, exact in ((x, truth.first), (x**2, truth.second)):
        gap = z * (population.mean(f) - exact)
        scores.append(gap.mean() / (gap.std() / root))
    return torch.stack(scores)


def is_exact(population, truth, tolerance=4.0):
    return bool((z_scores(population, truth).abs() < tolerance).all())
