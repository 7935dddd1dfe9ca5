"""What a search tree costs beside its network calls, the memory of a large one, and how fast its draws tend to their law.

    OMP_NUM_THREADS=1 python benchmarks/trees.py [speed] [memory] [quality] [--particles 200] [--repeats 4] [--budgets 20,100,500] [--out runs/trees.json]

speed     dts over vasr at equal network rows on the digits, in turns; and Python alone, a stub in place of the network
memory    peak of a process that grows a tree of a million network rows of 28×28 states with a stub
quality   the mean of the draws on a chain whose tilted law is known, over 48 groups
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from pathlib import Path

import torch
from stub import stubbed

import viot
from viot.methods import DTS
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic


def speed(args):
    model, steps = viot.load("digits"), 20
    arms = {"vasr": "vasr", "leaves = 32": DTS(), "leaves = 64": DTS(leaves=64), "leaves = 1": DTS(leaves=1)}
    times, shape = {name: [] for name in arms}, {}
    for i in range(args.repeats):
        for name, method in arms.items():
            if name == "leaves = 1" and i >= 2:
                continue
            start = time.perf_counter()
            p = viot.sample(model, "digit:7", method, particles=args.particles, steps=steps, seed=i, batch_size=64, progress=False)
            times[name].append(time.perf_counter() - start)
            if p.tree is not None:
                below = torch.bincount(p.tree.parent[p.tree.parent >= 0], minlength=len(p.tree))[p.tree.level.bool()]
                shape[name] = {"nodes": len(p.tree), "rollouts": p.reward_rows, "branching": int((below > 1).sum()), "nfe": p.nfe}
            shape.setdefault(name, {"nfe": p.nfe})["clocks"] = p.seconds
            print(f"{name:12s} {times[name][-1]:6.1f} s, {p.nfe} rows, selection {p.seconds['selection']:.2f} s", flush=True)
    found = {name: {"seconds": times[name], **shape[name]} for name in arms}
    for name in arms:
        ratios = [a / b for a, b in zip(times[name], times["vasr"], strict=False)]
        found[name] |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    found["stub"] = {}
    for name, method in {"vasr": "vasr", **{f"leaves = {n}": f"DTS(leaves={n})" for n in (32, 64, 1)}}.items():
        runs = [stubbed(method, 1000, steps) for _ in range(3)]
        found["stub"][name] = {k: statistics.median(r[k] for r in runs) for k in ("seconds", "rollouts", "nfe")}
    return found


def quality(args):
    """Groups are independent runs: the error of a group's mean over draws, its bias and its root mean square."""
    steps, groups = 8, 48
    model, reward = GaussianMixture([[0.3]], 0.6), Quadratic(center=1.5, precision=2.0)
    truth = model.chain_law(steps, 1.0).tilt(1.5, 2.0)[0].mean.item()
    arms = {"importance": "importance", "vasr": "vasr"}
    arms |= {f"dts, α = {a}, leaves = {n}": DTS(alpha=a, leaves=n) for a in (0.8, 0.5) for n in (1, 32, 64)}
    found = {}
    for name, method in arms.items():
        for k in map(int, args.budgets.split(",")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", viot.SteeringWarning)
                p = viot.sample(model, reward, method, particles=k, groups=groups, steps=steps, progress=False)
            error = p.mean(p.samples[..., 0]) - truth
            found.setdefault(name, {})[k] = {
                "bias": error.mean().item(),
                "se": error.std().item() / math.sqrt(groups),
                "rmse": error.square().mean().sqrt().item(),
                "seconds": p.seconds["total"],
                "nodes": len(p.tree) // groups if p.tree is not None else 0,
            }
            print(name, k, found[name][k], flush=True)
    return found


def tables(found):
    if "speed" in found:
        print("\n| method | rows | nodes (that branch) | seconds | over vasr | stub: s per 1000 rollouts |\n|---|---|---|---|---|---|")
        for name, r in found["speed"].items():
            if name == "stub":
                continue
            stub = found["speed"]["stub"][name]
            nodes = f"{r['nodes']} ({r['branching']})" if "nodes" in r else "–"
            print(
                f"| {name} | {r['nfe']} | {nodes} | {statistics.median(r['seconds']):.1f} | {r['ratio']:.2f} ({r['low']:.2f} … {r['high']:.2f}) | "
                f"{1000 * stub['seconds'] / (stub['nfe'] / 20 if name == 'vasr' else stub['rollouts']):.2f} |"
            )
    if "memory" in found:
        print("\n| rows | rollouts | nodes | of them under the root | the tree, MB | peak of the process, MB | seconds |\n|" + "---|" * 7)
        for r in found["memory"]:
            print(
                f"| {r['nfe']} | {r['rollouts']} | {r['nodes']} | {r['roots']} | {r['tree_mb']:.0f} | {r['peak_mb']:.0f} | {r['seconds']:.0f} |"
            )
    if "quality" in found:
        budgets = list(next(iter(found["quality"].values())))
        print("\n| method | " + " | ".join(f"K = {k}" for k in budgets) + " |\n|" + "---|" * (1 + len(budgets)))
        for name, row in found["quality"].items():
            print(f"| {name} | " + " | ".join(f"{r['bias']:+.3f} ± {r['se']:.3f}, {r['rmse']:.3f}" for r in row.values()) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["speed", "memory", "quality"])
    parser.add_argument("--particles", type=int, default=200, help="of the speed runs, at 20 steps")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--budgets", default="20,100,500", help="particles of the quality runs, at 8 steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/trees.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for what in args.what:
        if what == "memory":
            found[what] = [stubbed("DTS()", k, 50) for k in (200, 20_000)]
        else:
            found[what] = {"speed": speed, "quality": quality}[what](args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1))
    tables(found)


if __name__ == "__main__":
    main()
