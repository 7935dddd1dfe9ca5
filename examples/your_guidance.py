"""A guidance of your own, and one that is learned: what moves the proposal never moves the target.

    python examples/your_guidance.py

The model is a Gaussian mixture whose tilted law is known, so that one can see it: the weighted mean stays where it belongs, whatever the
guidance, and the effective sample size says what the guidance is worth.
"""

import torch

import viot
from viot.methods import URGE, TriTSMC
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic

MODEL = GaussianMixture([[-1.0, 0.0], [1.5, 1.0]], 0.3)
REWARD = Quadratic(center=torch.tensor([1.0, 2.0]), precision=1.0)


def toward_the_center(x_t, t, prediction, *, coeffs):
    """The gradient of the reward of the clean guess x0, by the slope that x0 has in x_t within one component."""
    variance, alpha, sigma = 0.3, coeffs.alpha_t, coeffs.sigma_t
    slope = alpha * variance / (alpha**2 * variance + sigma**2)
    return slope * (torch.tensor([1.0, 2.0]) - prediction.x0)


def astray(x_t, t, prediction):
    return 0.5 * torch.sin(3 * x_t)


def main():
    settings = {"particles": 2000, "steps": 40, "progress": False}
    learned = TriTSMC(twist="slope").learn(MODEL, REWARD, particles=500, steps=40)
    guides = {"none": None, "toward the center": toward_the_center, "astray": astray, "learned": learned}
    for name, guide in guides.items():
        # Weighed at the end alone, so that the guidance is all there is to see.
        population = viot.sample(MODEL, REWARD, URGE(guide=guide, path="terminal"), **settings)
        mean = ", ".join(f"{m:.2f}" for m in population.mean(population.samples)[0])
        print(f"{name:18} mean ({mean})   ESS {population.ess.item():5.0f} of 2000   log Z {population.log_z.item():.3f}")


if __name__ == "__main__":
    main()
