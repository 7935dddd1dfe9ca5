"""viot steers a frozen diffusion model toward any reward while it samples: π(x₀) ∝ p(x₀) · exp(λ r(x₀))."""

from __future__ import annotations

__version__ = "0.1.0"

from . import methods, rewards, testing
from .calibrate import calibrate, ess, kl
from .kernel import Categorical, Gaussian
from .model import Grid, Model, Prediction
from .models import from_pipeline, load
from .population import Population
from .problem import DeadPopulation, SteeringWarning
from .reward import Reward, Scores
from .sample import prepare, sample

__all__ = [
    "Categorical", "DeadPopulation", "Gaussian", "Grid", "Model", "Population", "Prediction", "Reward", "Scores",
    "SteeringWarning", "calibrate", "ess", "from_pipeline", "kl", "load", "methods", "prepare", "rewards", "sample", "testing",
]  # fmt: skip
