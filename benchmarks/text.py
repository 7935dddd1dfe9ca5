"""What the library adds to a language model's network: steps × sequences per second of `base` with a free reward, against the bare network.

    python benchmarks/text.py [--threads 1] [--particles 256] [--steps 40] [--repeats 3] [--out runs/text.json]

The bare run calls the same network on the same number of rows as often, for the logits of every position, and nothing else; steering asks it
about the masked positions alone, where that is possible, and so may well be faster. The two take turns; times are of this process
(`time.process_time`), which a busy machine disturbs less than the clock on the wall, and are printed for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import viot


def measured(f):
    wall, own = time.perf_counter(), time.process_time()
    f()
    return time.process_time() - own, time.perf_counter() - wall


def bare(model, rows, steps):
    x = model.prior(rows, torch.Generator())
    with torch.no_grad():
        for _ in range(steps):
            model.network(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reviews")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--particles", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, found = viot.load(args.model), {"own": [], "wall": []}
    bare(model, args.particles, 2)
    for i in range(args.repeats):
        alone = measured(lambda: bare(model, args.particles, args.steps))
        steered = measured(
            lambda i=i: viot.sample(
                model, lambda texts: torch.zeros(len(texts)), "base", particles=args.particles, steps=args.steps, seed=i, progress=False
            )
        )
        for name, a, b in zip(found, alone, steered, strict=True):
            found[name].append(a / b)
        rate = args.particles * args.steps / steered[1]
        print(
            f"pair {i + 1}: {rate:.0f} steps × sequences per second, {alone[0] / steered[0]:.3f} of the bare network ({alone[1] / steered[1]:.3f} by the clock)"
        )
    print(
        f"{args.model}, K = {args.particles}, T = {args.steps}: median {statistics.median(found['own']):.3f} of the bare network's throughput"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(vars(args) | found, indent=1, default=str))


if __name__ == "__main__":
    main()
