"""Which method draws from the tilted law? A mixture of 40 Gaussians in 30 dimensions under a quadratic reward, at equal network rows.

    OMP_NUM_THREADS=1 python benchmarks/mixture.py [--methods "urge;fkd, schedule = every;…"] [--out runs/mixture.json] [--quick]

The setting of the synthetic experiment of arXiv 2605.17850, whose parameters are not published; these are ours. Means uniform in
[−1.5, 1.5]³⁰, diagonal covariances with entries uniform in [.05, .25], weights ∝ U(.2, 1.2), reward r(x) = −½ · .75 |x − a|² with a uniform in
the cube of the means, all from one generator; λ = 1. Every group is an independent run of K particles and T steps; methods share their
prior draws.

Two references. `data`: the tilted law of the mixture itself, in closed form. `chain`: the tilted law of what a chain of T steps draws, by
importance weighting of very many of its draws; that is the one that weights are exact for. Last, `plain`: the chain and the mixture without
a reward, which says how coarse T steps are. A population is compared as the discrete measure that it is, with its weights.

mmd      kernel exp(−|x − y|²/2h²), h the median distance between two points of the reference
swd      sliced Wasserstein-2 distance, 200 fixed directions
mean     length of the error of the weighted mean
cov      Frobenius norm of the error of the weighted covariance
modes    total variation between the masses that are nearest to the 40 tilted components

`twist` in a method's name is log E[exp(λ r(x0)) | x_t], which is known here and nowhere else: what the method does with the value, and the
guidance, that it would need.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

import viot
from viot.methods import make
from viot.methods.urge import URGE
from viot.metrics.distances import kernel_mean, median_distance, moments, sliced_wasserstein, unit_directions
from viot.models.gaussian import GaussianMixture, MixtureLaw
from viot.rewards import Quadratic

COMPONENTS, DIM, HALF, PRECISION = 40, 30, 1.5, 0.75
METHODS = [
    "base",
    "dps",
    "dps, clip = None",
    "importance",
    "fkd",
    "fkd, schedule = every",
    "gradient-fk",
    "urge",
    "urge, path = scaled",
    "urge, paper",
    "urge, guidance = 1",
    "urge, guidance = 1, path = scaled",
    "urge, guidance = 1, mean = x0",
    "urge, guidance = 1, paper",
    "urge, value = twist",
    "urge, value = twist, guide = twist",
]
#: As in algorithm 1 of arXiv 2605.17850: categorical draws at every step.
PAPER = {"resampling": "multinomial", "ess_threshold": None}
COLUMNS = ("mmd", "swd", "mean", "cov", "modes")


@dataclass(frozen=True)
class GradientFK(URGE):
    """Wrong on purpose: proposals along the gradient whose density nobody divides out, so that the gradient counts twice."""

    name: ClassVar[str] = "gradient-fk"
    guidance: float = 1.0

    @property
    def exact(self):
        return False

    def propose(self, problem, state):
        return super().propose(problem, state).but(log_w=state.log_w)


def posterior(law, x, a, s):
    """log of the responsibilities (n, C) at levels a, s; the mean of each component's x0 is slope · x + rest, with a variance, all (C, D)."""
    v, mu = law.covs.diagonal(dim1=1, dim2=2), law.means
    p = 1 / (a * a * v + s * s)
    log_r = a * x @ (mu * p).T - 0.5 * x.square() @ p.T - 0.5 * (a * a * mu * mu * p - p.log()).sum(1) + law.weights.log()
    return log_r.log_softmax(-1), a * v * p, s * s * mu * p, s * s * v * p


class Diagonal(GaussianMixture):
    """The same denoiser for diagonal covariances and one noise level a call, in matrix products: a hundred times as fast."""

    def denoise(self, x, alpha, sigma):
        log_r, slope, rest, _ = posterior(self.law, x, alpha[0], sigma[0])
        r = log_r.exp()
        return r @ rest + (r @ slope) * x


@dataclass(frozen=True)
class Twist:
    """log E[exp(r(x0)) | x_t] under the law of the data, as the value of a state and, by its gradient, as a guidance."""

    law: MixtureLaw
    reward: Quadratic
    needs_grad: ClassVar[bool] = True

    def at(self, x, a, s):
        """(n,): the posterior of every component is a Gaussian, and so is its product with exp(r)."""
        log_r, slope, rest, var = posterior(self.law, x, a, s)
        gap, pull = rest - self.reward.center, self.reward.precision / (1 + self.reward.precision * var)
        quad = x.square() @ (slope * slope * pull).T + 2 * x @ (slope * gap * pull).T + (gap * gap * pull).sum(1)
        return (log_r - 0.5 * quad - 0.5 * torch.log1p(self.reward.precision * var).sum(1)).logsumexp(-1)

    def value(self, problem, state):
        a, s, *_ = problem.grid.coeffs(state.step)
        return problem.fold(self.at(problem.rows(state.x), a, s))

    def __call__(self, x, t, prediction, coeffs):
        return torch.autograd.grad(self.at(x, coeffs.alpha_t, coeffs.sigma_t).sum(), x)[0]


def setting(seed=0):
    """Model and reward."""
    g = torch.Generator().manual_seed(seed)
    means = HALF * (2 * torch.rand(COMPONENTS, DIM, generator=g, dtype=torch.float64) - 1)
    variances = 0.05 + 0.2 * torch.rand(COMPONENTS, DIM, generator=g, dtype=torch.float64)
    weights = 0.2 + torch.rand(COMPONENTS, generator=g, dtype=torch.float64)
    center = HALF * (2 * torch.rand(DIM, generator=g, dtype=torch.float64) - 1)
    return Diagonal(means, torch.diag_embed(variances), weights), Quadratic(center, PRECISION)


def method_of(name, model, reward):
    """An object for "urge, guidance = 1, path = scaled"; the path is the value itself where nothing is said."""
    kind, *settings = [part.strip() for part in name.split(",")]
    pairs = dict(s.split(" = ") for s in settings if s != "paper")
    values = {k: None if v == "None" else float(v) if v[0].isdigit() else v for k, v in pairs.items()}
    values |= PAPER if "paper" in settings else {}
    values |= {"path": pairs.get("path", "value")} if kind in ("urge", "gradient-fk") else {}
    twist = Twist(model.data_law(), reward)
    known = {"value": twist.value, "guide": twist}
    values |= {k: known[k] for k, v in values.items() if v == "twist"}
    return GradientFK(**values) if kind == "gradient-fk" else make(kind, **values)


def run(model, reward, method, particles, groups, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        return viot.sample(model, reward, method, particles=particles, groups=groups, steps=steps, batch_size=5000, progress=False)


def draws(law, n, generator):
    """n independent draws of a mixture of diagonal Gaussians."""
    which = torch.multinomial(law.weights, n, replacement=True, generator=generator)
    std = law.covs.diagonal(dim1=1, dim2=2).sqrt()[which]
    return law.means[which] + std * torch.randn(n, DIM, generator=generator, dtype=torch.float64)


class Reference:
    """A law to compare with: equally weighted points for the two distances, its moments and the masses of its modes."""

    def __init__(self, points, centers, mean, cov, modes):
        self.points, self.centers, self.mean, self.cov, self.modes = points, centers, mean, cov, modes
        self.bandwidth = median_distance(points)
        self.own = kernel_mean(points, points, bandwidth=self.bandwidth)
        self.directions = unit_directions(200, DIM)

    @classmethod
    def of_law(cls, law: MixtureLaw, centers, n, generator):
        found = draws(law, n, generator)
        # Masses by the same rule of the nearest centre; the moments are known.
        many = draws(law, 20 * n, generator)
        return cls(found, centers, law.mean, law.cov, masses(many, None, centers))

    @classmethod
    def of_points(cls, x, weights, centers, n, generator):
        index = torch.multinomial(weights, n, replacement=True, generator=generator)
        return cls(x[index], centers, *moments(x, weights), masses(x, weights, centers))

    def measure(self, x, weights=None):
        mean, cov = moments(x, weights)
        cross = kernel_mean(x, self.points, weights, bandwidth=self.bandwidth)
        own = kernel_mean(x, x, weights, weights, bandwidth=self.bandwidth)
        return {
            "mmd": max(0.0, own + self.own - 2 * cross) ** 0.5,
            "swd": sliced_wasserstein(x, self.points, weights, directions=self.directions),
            "mean": float((mean - self.mean).norm()),
            "cov": float((cov - self.cov).norm()),
            "modes": float((masses(x, weights, self.centers) - self.modes).abs().sum() / 2),
        }

    def beside(self, other):
        """How far two references are apart: by their points in the two distances, else by what is known better."""
        return other.measure(self.points) | {
            "mean": float((self.mean - other.mean).norm()),
            "cov": float((self.cov - other.cov).norm()),
            "modes": float((self.modes - other.modes).abs().sum() / 2),
        }


def masses(x, weights, centers):
    """The share of the points that is nearest to each centre."""
    w = torch.full((len(x),), 1 / len(x), dtype=torch.float64) if weights is None else weights
    nearest = torch.cat([torch.cdist(part, centers).argmin(1) for part in x.split(50_000)])
    return torch.zeros(len(centers), dtype=torch.float64).index_add_(0, nearest, w / w.sum())


def chain(model, reward, paths, steps, particles=10_000):
    """x (paths, D) of the plain chain and log λ r of each, in groups that no method's run uses."""
    found = [run(model, reward, "importance", particles, [1000 + g], steps) for g in range(math.ceil(paths / particles))]
    return torch.cat([p.x0[0] for p in found]), torch.cat([p.rewards[0] for p in found])


def compared(sets, references):
    """{reference: {column: one number per set}} of sets of (points, weights)."""
    each = {name: [reference.measure(x, w) for x, w in sets] for name, reference in references.items()}
    return {name: {c: [m[c] for m in found] for c in COLUMNS} for name, found in each.items()}


def pm(values, digits=3):
    """Mean ± standard error over groups."""
    v = torch.tensor(values, dtype=torch.float64)
    return f"{v.mean():.{digits}f} ± {v.std() / math.sqrt(len(v)):.{digits}f}"


def table(rows, reference, columns=COLUMNS):
    print(
        f"\n| {reference} | " + " | ".join(columns) + " | ESS | lineages | log Z | rows, with gradient |\n|" + "---|" * (5 + len(columns))
    )
    for r in rows:
        if reference in r:
            ess, lineages = (f"{sum(r[k]) / len(r[k]):.0f}" if k in r else "–" for k in ("ess", "lineages"))
            log_z = pm(r["log_z"], 2) if r.get("log_z") and not math.isnan(r["log_z"][0]) else "–"
            spent = f"{r['nfe']}, {r['grad_rows']}" if "nfe" in r else "–"
            print(f"| {r['method']} | {' | '.join(pm(r[reference][c]) for c in columns)} | {ess} | {lineages} | {log_z} | {spent} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=";".join(METHODS), help="names between semicolons")
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--paths", type=int, default=500_000, help="draws of the plain chain behind the reference `chain`; 0 = without it")
    parser.add_argument("--points", type=int, default=5000, help="of a reference, for the two distances")
    parser.add_argument("--seed", type=int, default=0, help="of the mixture")
    parser.add_argument("--quick", action="store_true", help="a small one, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/mixture.json"))
    args = parser.parse_args()
    if args.quick:
        args.particles, args.steps, args.groups, args.paths, args.points = 200, 20, 3, 20_000, 1000
    torch.set_num_threads(args.threads)
    begun = time.perf_counter()
    model, reward = setting(args.seed)
    law, g = model.data_law(), torch.Generator().manual_seed(1)
    tilted, log_z = law.tilt(reward.center, reward.precision)
    share = math.exp(2 * log_z - law.tilt(reward.center, reward.precision, 2.0)[1])
    top = ", ".join(f"{v:.2f}" for v in tilted.weights.sort(descending=True).values[:6])
    print(f"data law: log Z {log_z:.3f}, ESS of base draws {100 * share:.2f} %, largest modes of the tilted law {top}", flush=True)
    references = {"data": Reference.of_law(tilted, tilted.means, args.points, g)}
    found = {"settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}, "log_z": log_z, "base_ess_share": share}
    if args.paths:
        x, log_w = chain(model, reward, args.paths, args.steps)
        weights = log_w.softmax(0)
        references["chain"] = Reference.of_points(x, weights, tilted.means, args.points, g)
        # By the groups of the run, whose spread says how good the whole is.
        pieces = log_w.view(-1, 10_000).exp().mean(1)
        found["chain"] = {
            "log_z": pieces.mean().log().item(),
            "se": (pieces.std() / pieces.mean() / math.sqrt(len(pieces))).item(),
            "ess": 1 / weights.square().sum().item(),
            "seconds": time.perf_counter() - begun,
            "to_data": references["chain"].beside(references["data"]),
        }
        print(
            "chain: log Z {log_z:.3f} ± {se:.3f} from an ESS of {ess:.0f}, {seconds:.0f} s; ".format(**found["chain"])
            + "its distance from the data's: "
            + ", ".join(f"{c} {v:.3f}" for c, v in found["chain"]["to_data"].items()),
            flush=True,
        )
    for name, reference in references.items():
        found.setdefault("bandwidth", {})[name] = reference.bandwidth
    # What an independent sampler of the tilted data law would get: the floor of sampling.
    rows = [
        {
            "method": "exact draws",
            "ess": [args.particles] * args.groups,
            **compared([(draws(tilted, args.particles, g), None) for _ in range(args.groups)], {"data": references["data"]}),
        }
    ]
    if args.paths:
        exact = [x[torch.multinomial(weights, args.particles, replacement=True, generator=g)] for _ in range(args.groups)]
        rows[0]["chain"] = compared([(e, None) for e in exact], {"chain": references["chain"]})["chain"]
        del x, log_w, weights
    # The floor of discretisation: the plain chain against the plain law.
    plain = Reference.of_law(law, law.means, args.points, g)
    rows.append(
        {"method": "exact draws, λ = 0", **compared([(draws(law, args.particles, g), None) for _ in range(args.groups)], {"plain": plain})}
    )
    for name in [n.strip() for n in args.methods.split(";")]:
        start = time.perf_counter()
        p = run(model, reward, method_of(name, model, reward), args.particles, args.groups, args.steps)
        row = {
            "method": name,
            "ess": p.ess.tolist(),
            "lineages": p.surviving_lineages.tolist(),
            "log_z": p.log_z.tolist(),
            "selections": len(p.trace["step"]),
            "nfe": p.nfe // args.groups,
            "grad_rows": p.grad_rows // args.groups,
            "seconds": p.seconds["total"],
        }
        sets = list(zip(p.x0, p.weights, strict=True))
        rows.append(row | compared(sets, references))
        if name == "base":
            rows.append({"method": "base, λ = 0"} | compared(sets, {"plain": plain}))
        print(f"{name}: {p.seconds['total']:.0f} s, {time.perf_counter() - start:.0f} s with the distances", flush=True)
    found |= {"rows": rows, "seconds": time.perf_counter() - begun}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))
    print("\nh: " + ", ".join(f"{name} {h:.2f}" for name, h in found["bandwidth"].items()) + f"; {found['seconds']:.0f} s in all")
    for reference in (*references, "plain"):
        table(rows, reference)


if __name__ == "__main__":
    main()
