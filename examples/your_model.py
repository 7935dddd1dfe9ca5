"""Steer a model of your own: four methods, no base class.

    python examples/your_model.py

The model here is a random-walk bridge whose denoiser is known; yours would call a network in `predict`.
"""

import torch

import viot
from viot.testing import check_model, check_reward


class Ring:
    """Points near a circle of radius 2: the denoiser is the posterior mean over 64 points of it."""

    event_shape, dtype, device = (2,), torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        angle = torch.arange(64) * (2 * torch.pi / 64)
        self.points = 2 * torch.stack([angle.cos(), angle.sin()], 1)

    def grid(self, steps):
        angle = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * torch.pi / 2
        return viot.Grid(times=angle[:-1], alphas=angle.cos(), sigmas=angle.sin())

    def prior(self, n, generator):
        return torch.randn(n, 2, generator=generator)

    def predict(self, x, t, group):
        alpha, sigma = t.cos().float(), t.sin().float()
        gap = x[:, None] - alpha[:, None, None] * self.points
        weight = torch.softmax(-gap.square().sum(-1) / (2 * sigma[:, None] ** 2), -1)
        return viot.Prediction(x0=weight @ self.points)

    def decode(self, x0, group):
        return x0


def north(points):
    """A reward: (n, 2) -> (n,)."""
    return 2 * points[:, 1]


def main():
    model = Ring()
    check_model(model)
    check_reward(north, torch.randn(32, 2))
    for method in ("base", "vasr", "fvd", "fkd"):
        population = viot.sample(model, north, method, particles=256, steps=40, progress=False)
        east, up = population.mean(population.samples)[0].tolist()
        print(f"{method:5s} mean ({east:+.2f}, {up:+.2f})   ESS {population.ess.item():.0f}   log Z {population.log_z.item():.2f}")


if __name__ == "__main__":
    main()
