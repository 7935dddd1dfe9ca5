"""How long one selection takes, against a plain numpy systematic resampling in the same run, and how it grows with K.

python benchmarks/selection.py [--out runs/selection.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import viot
import viot.models.gaussian
from viot import resample, weights
from viot.methods import FKD, FVD, VASR


def timed(f, repeats=9):
    """Median milliseconds of f(), after one warm-up."""
    f()
    ticks = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        ticks.append(time.perf_counter() - start)
    return 1e3 * statistics.median(ticks)


def numpy_systematic(m):
    """The reference: cumulative sum and searchsorted, one group at a time, as most code has it."""
    for row in m:
        points = (np.arange(len(row)) + np.random.rand()) / len(row)
        np.searchsorted(np.cumsum(row), points)


def select_ms(method, groups, particles):
    """One whole `choose` (weights, masses, ancestors, gather of a scalar state, statistics) on random rewards."""
    problem = viot.prepare(
        viot.models.gaussian.GaussianMixture([[0.0]]), lambda x: x[:, 0], method, particles=particles, groups=groups, steps=10
    ).problem
    rewards = torch.randn(groups, particles, dtype=torch.float64)
    state = method.prepare(problem, problem.start()).but(rewards=rewards, step=5)
    return timed(lambda: method.choose(problem, state), repeats=5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for groups, particles in ((1, 1000), (1, 10_000), (1, 100_000), (1, 1_000_000), (1000, 64)):
        log_m = weights.normalize(torch.randn(groups, particles, dtype=torch.float64))
        m = log_m.exp()
        array = m.numpy()
        reference = timed(lambda array=array: numpy_systematic(array))
        row = {"groups": groups, "particles": particles, "numpy_ms": reference}
        for name in ("systematic", "multinomial", "stratified", "residual", "ssp", "killing", "fleming_viot"):
            scheme = resample.get(name)
            u = torch.rand(groups, max(1, scheme.uniforms(particles)), dtype=torch.float64)
            row[name] = timed(lambda scheme=scheme, u=u, m=m: scheme(m, u))
        for method in (VASR(schedule=(0.5,)), FKD(schedule=(0.5,), ess_threshold=None), FVD(schedule=(0.5,))):
            row[f"{method.name} select"] = select_ms(method, groups, particles)
        rows.append(row)
    columns = list(rows[0])
    print("  ".join(f"{c:>13}" for c in columns))
    for row in rows:
        print("  ".join(f"{row[c]:>13.3g}" if isinstance(row[c], float) else f"{row[c]:>13}" for c in columns))
    print("milliseconds, medians; numpy_ms is the reference of the same run")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
