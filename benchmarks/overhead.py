"""What steering costs beside the network: wall time of viot.sample over the bare UNet calls of the same run, in turns.

    python benchmarks/overhead.py [--threads 2] [--repeats 5] [--out runs/overhead.json]

The bare run is a loop of T calls of the same network on the same number of rows, and nothing else. Also: memory at K = 4096 in slices, and
what compiling and bfloat16 bring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from stub import stubbed

import viot

K, T = 64, 20


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def bare(model, rows=K, steps=T):
    x = torch.randn(rows, *model.event_shape)
    times = model.grid(steps).times
    with torch.no_grad():
        for t in times:
            _ = model.network(F.pixel_unshuffle(x, model.patch), t.expand(rows)).sample


def overhead(repeats):
    model = viot.load("digits")
    found = {}
    for method in ("base", "fkd", "vasr", "vasr-max", "fvd"):
        ratios = []
        for i in range(repeats + 1):
            steered = seconds(
                lambda i=i, method=method: viot.sample(model, "digit:7", method, particles=K, steps=T, seed=i, progress=False)
            )
            alone = seconds(lambda: bare(model))
            if i:  # the first pair warms up
                ratios.append(steered / alone)
        found[method] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        print(
            f"{method:10s} wall time of sample / bare network calls: {found[method]['median']:.3f}  ({min(ratios):.3f} … {max(ratios):.3f})"
        )
    return found


def precision(repeats):
    """Network time per image: eager float32 is the reference."""
    found = {}
    reference = viot.load("digits")
    for name, settings in {
        "bfloat16": {"autocast": torch.bfloat16},
        "compiled": {"compile": True},
        "compiled bfloat16": {"compile": True, "autocast": torch.bfloat16},
    }.items():
        model = viot.load("digits", **settings)
        x, group = torch.randn(K, *model.event_shape), torch.zeros(K, dtype=torch.long)
        t = model.grid(T).times[5].expand(K)
        with torch.no_grad():
            first = seconds(lambda model=model, x=x, t=t, group=group: model.predict(x, t, group))
            ratios = []
            for _ in range(repeats * 4):
                a = seconds(lambda model=model, x=x, t=t, group=group: model.predict(x, t, group))
                b = seconds(lambda x=x, t=t, group=group: reference.predict(x, t, group))
                ratios.append(b / a)
            difference = (model.predict(x, t, group).x0 - reference.predict(x, t, group).x0).abs().mean().item()
        found[name] = {"speedup": statistics.median(ratios), "first_call_seconds": first, "mean_x0_difference": difference}
        print(f"{name:18s} {found[name]['speedup']:.2f} × eager float32 (first call {first:.0f} s, mean |Δx0| {difference:.1e})")
    eager = statistics.median(seconds(lambda: bare(reference, K, 4)) for _ in range(repeats)) / 4 / K * 1e3
    print(f"eager float32: {eager:.2f} ms per image")
    return found | {"eager_ms_per_image": eager}


def peak(particles):
    """Peak memory in MB of a run of this many particles, a stub in place of the network, slices of 64 rows."""
    return stubbed("vasr", particles, 10)["peak_mb"]


def memory():
    small, large = peak(64), peak(4096)
    state = (4096 - 64) * 28 * 28 * 4 / 2**20
    print(
        f"memory: {small:.0f} MB at K = 64, {large:.0f} MB at K = 4096: {(large - small) / state:.1f} × the {state:.1f} MB that x_t itself grew by"
    )
    return {"k64_mb": small, "k4096_mb": large, "state_mb": state, "ratio": (large - small) / state}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out what takes minutes to compile")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {"overhead": overhead(args.repeats), "memory": memory()}
    if not args.no_compile:
        found["precision"] = precision(args.repeats)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
