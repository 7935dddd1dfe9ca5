"""Do the rounds of TRI-TSMC help? How even the paths of each round are, where the answer is known and on digits.

    python benchmarks/twists.py [--skip-digits] [--particles 400] [--groups 6] [--steps 20] [--out runs/twists.json]

A round draws independent paths and weighs them exactly, so its weights say what importance sampling from its sampler is worth: log(1 + χ²) is
minus the log of their effective share, KL that of the weights from even ones, in nats. Both are 0 for a sampler of the target itself. The chain is
linear-Gaussian in one dimension, 20 steps, with a quadratic reward; half of its 4000 particles train. Of digits, nine tenths of the particles
do, so that a round has enough of them to be measured by. The error of log Z is that of each round's own estimate, over the groups.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

import viot
from viot.methods import TriTSMC
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic
from viot.twists import Affine, Direction, Neural, Shift, Slope

LINEAR = {"slope": Slope(), "shift": Shift(), "affine": Affine(), "neural": Neural()}
DIGITS = {"direction": Direction(), "slope, 4×4 cells": Slope(features=4)}


def rounds(name, model, reward, twist, exact, particles, groups, steps, train, lam):
    """One row: what the training of a family told, round by round."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        method = TriTSMC(twist=twist, train=train)
        p = viot.sample(model, reward, method, particles=particles, groups=groups, steps=steps, lam=lam, batch_size=256)
    uneven = -p.training["ess"].log()
    return {
        "task": name[0],
        "family": name[1],
        "paths": particles * train / method.rounds,
        "uneven": uneven.mean(1).tolist(),
        "uneven_se": (uneven.std(1) / groups**0.5).tolist(),
        "kl": p.training["kl"].mean(1).tolist(),
        "tau": p.training["tau"].mean(1).tolist(),
        "log_z_sd": p.training["log_z"].std(1).tolist(),
        "log_z_bias": None if exact is None else (p.training["log_z"].exp().mean(1).log() - exact).tolist(),
        "answer_share": (p.ess.mean() / p.shape[1]).item(),
        "seconds": p.seconds["total"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=400, help="of each group on digits")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--skip-digits", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/twists.json"))
    args = parser.parse_args()
    rows = []
    chain, pull = GaussianMixture([[0.3]], 0.6), Quadratic(center=1.5, precision=2.0)
    for lam in (1.0, 5.0):
        exact = chain.chain_law(20, 1.0).tilt(1.5, 2.0, lam)[1]
        for name, twist in LINEAR.items():
            rows.append(rounds((f"linear-Gaussian, λ = {lam:.0f}", name), chain, pull, twist, exact, 4000, 20, 20, 0.5, lam))
    for name, twist in {} if args.skip_digits else DIGITS.items():
        rows.append(rounds(("digit:7", name), "digits", "digit:7", twist, None, args.particles, args.groups, args.steps, 0.9, 1.0))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(
        "| task | family | log(1 + χ²) of rounds 1, 2, 3 (± s.e.) | KL, nats | τ | ESS of the answer |\n|---|---|---|---|---|---|\n"
    )
    for r in rows:
        uneven = ", ".join(f"{v:.2f} ± {e:.2f}" for v, e in zip(r["uneven"], r["uneven_se"], strict=True))
        kl, tau = (", ".join(f"{v:.2f}" for v in r[name]) for name in ("kl", "tau"))
        sys.stdout.write(f"| {r['task']} | {r['family']} | {uneven} | {kl} | {tau} | {100 * r['answer_share']:.0f} % |\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
