"""Do gradients restore pictures? Test digits of MNIST from partial, small or blurred measurements, methods at equal network rows.

    OMP_NUM_THREADS=1 python benchmarks/inverse.py --data DIR [--tasks "inpainting;…"] [--methods "dps;tds;…"] [--out runs/inverse.json]
    OMP_NUM_THREADS=1 python benchmarks/inverse.py --data DIR --tune "dps, ζ = 2;tds, clip = None;…"      # on training pictures

One group per picture, K particles of T steps each, λ = 1, noise 0.05. Per picture, in dB against the clean one: the weighted mean of the
particles and one weighted draw. The residual is ‖y − A x‖ / √(numbers measured) of the draw in units of the noise: about 1 where the
measurement is explained and no better. Rows are written as they come; run again to go on.

A method is a name of METHODS, or any with settings: "dps, ζ = 4", "tds, mean = score, clip = None, schedule = every".
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from pathlib import Path

import torch

import viot
from viot.methods import make
from viot.rewards.inverse import Deblurring, Inpainting, SuperResolution

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from mnist import load_mnist

MASK = torch.ones(28, 28)
MASK[8:20, 8:20] = 0
TASKS = {
    "inpainting": lambda y: Inpainting(y, MASK),  # a hole of 12×12 in the middle
    "superresolution": lambda y: SuperResolution(y, 4),
    "deblurring": lambda y: Deblurring(y, 2.0),
}
METHODS = ["base", "importance", "vasr", "dps", "tds", "tds, mean = x0", "das", "das, mean = x0"]
#: The best of 0.5, 1, 2, 4, 8, 16 and 32 on eight training pictures, two particles.
ZETA = {"inpainting": 8, "superresolution": 32, "deblurring": 16}


def method_of(name):
    """An object for "tds, clip = None, schedule = every"."""
    kind, *settings = [part.strip() for part in name.split(",")]
    pairs = dict(s.split(" = ") for s in settings)
    values = {"ζ": "zeta"}
    return make(kind, **{values.get(k, k): None if v == "None" else float(v) if v[0].isdigit() else v for k, v in pairs.items()})


def psnr(x, clean):
    return -10 * (x - clean).square().flatten(-3).mean(-1).clamp_min(1e-12).log10()


def restored(model, task, name, clean, args):
    """One row: a run of all pictures side by side."""
    y = TASKS[task](None).measure(clean, torch.Generator().manual_seed(1))
    reward = TASKS[task](y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        p = viot.sample(
            model, reward, method_of(name), particles=args.particles, groups=len(clean), steps=args.steps, batch_size=64, progress=False
        )
    drawn = p.draw(1, seed=1).samples[:, 0]
    measured = int(MASK.sum()) if task == "inpainting" else y[0].numel()
    return {
        "mean": psnr(p.mean(p.samples), clean).tolist(),
        "draw": psnr(drawn, clean).tolist(),
        "residual": (reward.residual(drawn, torch.arange(len(clean))) / math.sqrt(measured) / reward.noise).tolist(),
        "ess": p.ess.tolist(),
        "lineages": p.surviving_lineages.tolist(),
        "nfe": p.nfe // len(clean),
        "grad_rows": p.grad_rows // len(clean),
        "seconds": p.seconds["total"],
    }


def spread(values, digits=1):
    """Mean ± standard error over pictures."""
    v = torch.tensor(values, dtype=torch.float64)
    return f"{v.mean():.{digits}f} ± {v.std() / math.sqrt(len(v)):.{digits}f}"


def table(rows, tasks):
    for task in tasks:
        print(
            f"\n| {task} | mean of the particles, dB | a draw, dB | residual / noise | ESS | lineages | rows, with gradient |\n"
            + "|---" * 7
            + "|"
        )
        for r in rows:
            if r["task"] == task:
                ess, lineages = (sum(r[k]) / len(r[k]) for k in ("ess", "lineages"))
                print(
                    f"| {r['method']} | {spread(r['mean'])} | {spread(r['draw'])} | {spread(r['residual'], 2)} | {ess:.1f} | {lineages:.1f} | "
                    f"{r['nfe']}, {r['grad_rows']} |"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/mnist")
    parser.add_argument("--tasks", default=";".join(TASKS))
    parser.add_argument("--methods", help="names between semicolons")
    parser.add_argument("--tune", help="likewise, but on training pictures")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/inverse.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tasks = [t.strip() for t in args.tasks.split(";")]
    split = "train" if args.tune else "test"
    clean = load_mnist(args.data, split)[0][: args.pictures]
    model = viot.load("digits")
    settings = {"pictures": args.pictures, "particles": args.particles, "steps": args.steps, "split": split}
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for task in tasks:
        for name in [n.strip() for n in (args.tune or args.methods or ";".join([*METHODS, f"dps, ζ = {ZETA[task]}"])).split(";")]:
            if any(r["task"] == task and r["method"] == name and r["settings"] == settings for r in rows):
                continue
            rows.append({"task": task, "method": name, "settings": settings, **restored(model, task, name, clean, args)})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(rows))
            print(
                f"{task}, {name}: {spread(rows[-1]['mean'])} dB, residual {spread(rows[-1]['residual'], 2)}, {rows[-1]['seconds']:.0f} s",
                flush=True,
            )
    table([r for r in rows if r["settings"] == settings], tasks)


if __name__ == "__main__":
    main()
