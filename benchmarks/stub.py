"""A run with a stub in place of the network, in a process of its own: its time, and its memory at the peak, as one line of JSON.

python benchmarks/stub.py METHOD PARTICLES STEPS        METHOD is a name, or an object as Python writes it: DTS(leaves=1)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import viot
from viot import methods


class Stub:
    """28 × 28 pixels, of which a call halves each."""

    event_shape, dtype, device = (1, 28, 28), torch.float32, torch.device("cpu")

    def grid(self, steps):
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * torch.pi / 2
        return viot.Grid(t[:-1], t.cos(), t.sin())

    def prior(self, n, generator):
        return torch.randn(n, 1, 28, 28, generator=generator)

    def predict(self, x, t, group):
        return viot.Prediction(x * 0.5)

    def decode(self, x0, group):
        return x0


def stubbed(method, particles, steps):
    """What a process that runs this file says."""
    command = [sys.executable, "-W", "ignore", __file__, method, str(particles), str(steps)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    name, particles, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    method = eval(name, vars(methods)) if "(" in name else name
    start = time.perf_counter()
    p = viot.sample(Stub(), lambda x: x.flatten(1).mean(1) * 50, method, particles=particles, steps=steps, batch_size=64, progress=False)
    found = {"seconds": time.perf_counter() - start, "nfe": p.nfe, "rollouts": p.reward_rows}
    # Not getrusage: a child's maximum starts from its parent's.
    found["peak_mb"] = next(
        int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    if p.tree is not None:
        size = sum(v.numel() * v.element_size() for v in p.tree.tensors().values()) / 2**20
        found |= {"nodes": len(p.tree), "leaves": len(p.tree.leaves), "tree_mb": size, "roots": int((p.tree.level == 1).sum())}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
