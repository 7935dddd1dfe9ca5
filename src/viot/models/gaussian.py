r"""Models whose every law is known: Gaussian mixtures of any dimension, with E[x0 | x_t] in closed form.

Two laws must not be confused. The *data* law is the mixture itself, which the diffusion reaches as T → ∞. The *chain* law is that of the
x_0 that a run of T steps with noise η really draws, which differs visibly at T = 50; methods are exact for the chain. Both can be tilted:
`data_law().tilt(…)` and `chain_law(T, η).tilt(…)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernel import Gaussian
from ..model import Grid, Prediction


@dataclass(frozen=True)
class MixtureLaw:
    """A Gaussian mixture: weights (C,), means (C, D), covariances (C, D, D), float64."""

    weights: Tensor
    means: Tensor
    covs: Tensor

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self.weights @ self.means

    @property
    def cov(self) -> Tensor:
        """(D, D)"""
        gap = self.means - self.mean
        return torch.einsum("c,cij->ij", self.weights, self.covs + gap[:, :, None] * gap[:, None, :])

    def tilt(self, center: Tensor | float, precision: Tensor | float, lam: float = 1.0) -> tuple[MixtureLaw, float]:
        """The law ∝ p(x) exp(λ r(x)) of r(x) = −½ (x − center)ᵀ L (x − center), and log Z = log E_p[exp(λ r)].

        `precision` L is a number, (D,) or (D, D). Proposition: the product of a Gaussian mixture and a Gaussian is one.
        """
        d = self.means.shape[1]
        a = torch.as_tensor(center, dtype=torch.float64).expand(d)
        big_l = lam * _matrix(precision, d)
        p_inv = torch.linalg.inv(self.covs)
        covs = torch.linalg.inv(p_inv + big_l)
        means = torch.einsum("cij,cj->ci", covs, torch.einsum("cij,cj->ci", p_inv, self.means) + big_l @ a)

        def quad(x: Tensor, m: Tensor) -> Tensor:
            return torch.einsum("ci,...ij,cj->c", x, m, x) if m.ndim == 2 else torch.einsum("ci,cij,cj->c", x, m, x)

        log_c = 0.5 * (torch.logdet(covs) - torch.logdet(self.covs))
        log_c = log_c - 0.5 * (quad(self.means, p_inv) + a @ big_l @ a - quad(means, p_inv + big_l))
        log_w = self.weights.log() + log_c
        log_z = log_w.logsumexp(0)
        return MixtureLaw((log_w - log_z).exp(), means, covs), log_z.item()

    def log_density(self, x: Tensor) -> Tensor:
        """log p (n,) at x (n, D)."""
        gap = x[:, None] - self.means
        quad = torch.einsum("nci,cij,ncj->nc", gap, torch.linalg.inv(self.covs), gap)
        norm = 0.5 * torch.logdet(2 * torch.pi * self.covs)
        return (self.weights.log() - norm - 0.5 * quad).logsumexp(-1)


@dataclass(frozen=True)
class GridLaw:
    """A one-dimensional law by its density on a fine grid: what quadrature of a chain leaves. `x`, `p` (N,), p·dx sums to 1."""

    x: Tensor
    p: Tensor

    def expect(self, f: Callable[[Tensor], Tensor]) -> float:
        return float((self.p * f(self.x)).sum() / self.p.sum())

    @property
    def mean(self) -> float:
        return self.expect(lambda x: x)

    @property
    def var(self) -> float:
        return self.expect(lambda x: (x - self.mean) ** 2)

    def tilt(self, reward: Callable[[Tensor], Tensor], lam: float = 1.0) -> tuple[GridLaw, float]:
        """The law ∝ p exp(λ r) and log Z, for any reward of the points (N,)."""
        w = self.p * (lam * reward(self.x)).exp()
        return GridLaw(self.x, w / w.sum() * self.p.sum()), math.log(float(w.sum() / self.p.sum()))


def _matrix(value: Tensor | float, d: int) -> Tensor:
    matrix = torch.as_tensor(value, dtype=torch.float64)
    return matrix if matrix.ndim == 2 else torch.diag(matrix.expand(d))


class GaussianMixture:
    """A diffusion model of a Gaussian mixture whose denoiser is exact; one component makes the linear-Gaussian chain.

    means (C, D); covs a number, (C,), (C, D, D) or (D, D); weights (C,) or None for equal. x_t = cos(πt/2) x0 + sin(πt/2) ε, float64.
    """

    differentiable = True
    kernel = Gaussian()
    prior_std = 1.0

    def __init__(self, means: object, covs: object = 1.0, weights: object = None, dtype: torch.dtype = torch.float64) -> None:
        mu = torch.as_tensor(means, dtype=torch.float64)
        if mu.ndim != 2:
            raise ValueError(f"means must be (components, dimensions), not {tuple(mu.shape)}")
        c, d = mu.shape
        cov = torch.as_tensor(covs, dtype=torch.float64)
        if cov.ndim < 2:
            cov = cov.expand(c)[:, None, None] * torch.eye(d, dtype=torch.float64)
        w = torch.ones(c) if weights is None else torch.as_tensor(weights)
        self.law = MixtureLaw((w / w.sum()).double(), mu, cov.expand(c, d, d))
        self.event_shape, self.dtype, self.device = (d,), dtype, torch.device("cpu")
        self.config = {"weights": self.law.weights.tolist(), "means": mu.tolist(), "covs": self.law.covs.tolist(), "dtype": str(dtype)}

    def grid(self, steps: int) -> Grid:
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        alphas, sigmas = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
        alphas[0], sigmas[0] = 0.0, 1.0
        return Grid(t[:-1], alphas, sigmas)

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, *self.event_shape, generator=generator, dtype=self.dtype)

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        t = t.to(torch.float64)
        return Prediction(self.denoise(x.double(), torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)).to(x.dtype))

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x_t = x], (n, D), at levels alpha, sigma (n,)."""
        levels, where = torch.unique(torch.stack([alpha, sigma], 1), dim=0, return_inverse=True)
        law, eye = self.law, torch.eye(x.shape[1], dtype=torch.float64)
        out = torch.zeros_like(x)
        for i, (a, s) in enumerate(levels):
            rows = torch.nonzero(where == i)[:, 0]
            marginal = a * a * law.covs + s * s * eye
            gap = x[rows][:, None] - a * law.means
            solved = torch.linalg.solve(marginal, gap[..., None])[..., 0]
            post = law.means + a * torch.einsum("cij,ncj->nci", law.covs, solved)
            log_r = law.weights.log() - 0.5 * torch.logdet(marginal) - 0.5 * (gap * solved).sum(-1)
            out = out.index_put((rows,), torch.einsum("nc,nci->ni", log_r.softmax(-1), post))
        return out

    def decode(self, x0: Tensor, group: Tensor) -> Tensor:
        return x0

    # -- what is known ------------------------------------------------------------------------------------------------------------

    def data_law(self) -> MixtureLaw:
        """The law that the diffusion was "trained" on: the T → ∞ limit of the chain."""
        return self.law

    def chain_law(self, steps: int, eta: float = 1.0) -> MixtureLaw:
        """The exact law of x_0 under the chain of `steps` steps with noise η, from N(0, I). One component only: the recursion
        m' = A m + B, V' = A V Aᵀ + std² I of a linear-Gaussian chain.
        """
        if len(self.law.weights) > 1:
            raise ValueError("a mixture's chain has no closed form; use chain_density(steps, eta) in one dimension")
        grid, d = self.grid(steps), self.event_shape[0]
        eye = torch.eye(d, dtype=torch.float64)
        mu, cov = self.law.means[0], self.law.covs[0]
        m, v = torch.zeros(d, dtype=torch.float64), eye
        for j in range(steps):
            a_t, s_t, a_s, s_s = grid.coeffs(j)
            gain = a_t * cov @ torch.linalg.inv(a_t**2 * cov + s_t**2 * eye)
            tau = max(0.0, 1 - (a_t * s_s / (a_s * s_t)) ** 2)
            std2 = (eta * s_s) ** 2 * tau
            toward = math.sqrt(max(0.0, s_s**2 - std2)) / s_t
            # x0 = mu + gain (x − a_t mu);  mean = a_s x0 + toward (x − a_t x0)
            keep = a_s - toward * a_t
            a = keep * gain + toward * eye
            m, v = a @ m + keep * (mu - gain @ mu * a_t), a @ v @ a.T + std2 * eye
        return MixtureLaw(torch.ones(1, dtype=torch.float64), m[None], v[None])

    def chain_density(self, steps: int, eta: float = 1.0, span: float = 8.0, points: int = 1601) -> GridLaw:
        """The law of x_0 under the chain, by quadrature of the same kernel; one dimension, 0 < η ≤ 1, x in [−span, span].

        The last step has no noise: x_0 = E[x0 | x_1] maps the grid on which the density of x_1 lives, so the points are unevenly spaced.
        """
        if self.event_shape != (1,) or not eta > 0:
            raise ValueError("chain_density is for one dimension and η > 0")
        grid = self.grid(steps)
        x = torch.linspace(-span, span, points, dtype=torch.float64)
        p = torch.exp(-(x**2) / 2)
        none = torch.zeros(points, dtype=torch.long)
        for j in range(steps):
            t = grid.times[j].expand(points)
            mean, std = self.kernel.moments(x[:, None], self.predict(x[:, None], t, none), grid.coeffs(j), eta)
            if float(std) == 0:
                return GridLaw(mean[:, 0], p / p.sum())
            k = torch.exp(-((x[:, None] - mean[:, 0]) ** 2) / (2 * float(std) ** 2))
            p = (k / k.sum(0).clamp_min(1e-300)) @ p
            p = p / p.sum()
        return GridLaw(x, p)
