"""Plan a path through a maze: a diffusion model from another field, trained here on one core, steered around what it never saw.

    python examples/maze.py --out runs/maze        (--updates 2000 for a quick look)

Diffuser (arXiv 2205.09991) plans by denoising whole trajectories. This one learns how people walk through the maze below, from anywhere to
anywhere. Rewards ask for the rest: from A to B, and not through a barrier put up after training. The table races some methods at
equal network calls; maze.svg shows what they do.
"""

import argparse
import heapq
import math
import random
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import viot
from viot.rewards import Sum
from viot.testing import check_model, check_reward

MAZE = """\
+--+--+--+--+--+
|              |
+  +  +--+  +  +
|     |     |  |
+--+--+  +--+  +
|        |     |
+  +  +--+  +  +
|  |  |     |  |
+  +  +  +  +  +
|        |     |
+--+--+--+--+--+""".splitlines()
CELLS, POINTS = len(MAZE) // 2, 32
#: In cells, x to the right and y down. Three ways lead from A to B, equally short; the barrier stands in two of them.
A, B = torch.tensor([0.5, 4.5]), torch.tensor([4.5, 0.5])
BARRIER, RADIUS = torch.tensor([2.5, 2.0]), 0.42
METHODS = ("base", "best-of-n", "importance", "fkd", "vasr", "fvd", "das", "dts")


# -- the maze, and how people walk through it -----------------------------------------------------------------------------------------


def walls():
    """Pieces of wall (n, 4) from (x0, y0) to (x1, y1)."""
    found = []
    for i, row in enumerate(MAZE):
        for j, mark in enumerate(row):
            if mark == "|":
                found.append((j / 3, (i - 1) / 2, j / 3, (i + 1) / 2))
            elif mark == "-" and j % 3 == 1:
                found.append(((j - 1) / 3, i / 2, (j + 2) / 3, i / 2))
    return torch.tensor(found)


WALLS = walls()


def doors():
    """The neighbours of every cell that no wall keeps apart."""
    found = {(x, y): [] for x in range(CELLS) for y in range(CELLS)}
    for x, y in list(found):
        for there, mark in (((x + 1, y), MAZE[2 * y + 1][3 * x + 3]), ((x, y + 1), MAZE[2 * y + 2][3 * x + 1])):
            if mark == " ":
                found[x, y].append(there)
                found[there].append((x, y))
    return found


def routes(n, seed=0):
    """Shortest routes from random cells to every other, when each passage takes its own random time."""
    neighbours, dice, found = doors(), random.Random(seed), []
    while len(found) < n:
        start, seconds, reached = dice.choice(list(neighbours)), {}, {}
        queue = [(0.0, (start,))]
        while queue:
            so_far, route = heapq.heappop(queue)
            if route[-1] in reached:
                continue
            reached[route[-1]] = route
            for cell in neighbours[route[-1]]:
                passage = seconds.setdefault(frozenset((route[-1], cell)), dice.uniform(0.5, 1.5))
                heapq.heappush(queue, (so_far + passage, (*route, cell)))
        found += [route for route in reached.values() if len(route) > 2]
    return found


def walked(routes, generator, wobble=0.1):
    """Routes as they are walked: (n, 32, 2), near the middle of the cells, corners cut."""
    found = []
    for length in sorted({len(route) for route in routes}):
        x = torch.tensor([route for route in routes if len(route) == length]) + 0.5
        x = x + wobble * torch.randn(x.shape, generator=generator)
        dense = F.interpolate(x.mT, size=8 * (length - 1) + 1, mode="linear", align_corners=True)
        smooth = F.avg_pool1d(F.pad(dense, (3, 3), mode="replicate"), 7, 1)
        found.append(F.interpolate(smooth, size=POINTS, mode="linear", align_corners=True).mT)
    return torch.cat(found)


# -- the model ------------------------------------------------------------------------------------------------------------------------


class Planner(nn.Module):
    """Diffusion of paths. A state is the path's coefficients in the principal components of the training paths, so that noise is smooth."""

    dtype, device, differentiable = torch.float32, torch.device("cpu"), True

    def __init__(self, paths, components=16, width=160):
        super().__init__()
        self.event_shape = (components,)
        flat = paths.flatten(1)
        _, spread, basis = torch.pca_lowrank(flat, components, niter=4)
        # Half whitened: small components are not lost in the noise, and large ones still come first.
        scale = spread.sqrt() * (spread.mean() / len(flat)).sqrt()
        self.register_buffer("middle", flat.mean(0))
        self.register_buffer("basis", basis * scale)
        self.states = (flat - self.middle) @ (basis / scale)
        layers = [nn.Linear(components + 8, width), nn.SiLU()]
        for _ in range(3):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, components))

    def velocity(self, x, t):
        """α ε − σ x0, for α = cos t and σ = sin t."""
        waves = t[:, None] * torch.arange(1, 5)
        return self.net(torch.cat([x, waves.cos(), waves.sin()], 1))

    def learn(self, updates, batch=256, rate=5e-3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=0.0, fused=True)
        for i in range(updates):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, i / 100) * (1 - i / updates)
            x0 = self.states[torch.randint(len(self.states), (batch,), generator=generator)]
            t = torch.rand(batch, generator=generator) * math.pi / 2
            alpha, sigma, noise = t.cos()[:, None], t.sin()[:, None], torch.randn(x0.shape, generator=generator)
            loss = F.mse_loss(self.velocity(alpha * x0 + sigma * noise, t), alpha * noise - sigma * x0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return self

    # What viot asks for: four methods.

    def grid(self, steps):
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * math.pi / 2
        return viot.Grid(times=t[:-1], alphas=t.cos(), sigmas=t.sin())

    def prior(self, n, generator):
        return torch.randn(n, *self.event_shape, generator=generator)

    def predict(self, x, t, group):
        t = t.float()
        return viot.Prediction(x0=t.cos()[:, None] * x - t.sin()[:, None] * self.velocity(x, t))

    def decode(self, x0, group):
        return (self.middle + x0 @ self.basis.mT).unflatten(1, (POINTS, 2))


def train(updates, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Planner(walked(routes(20000, seed), torch.Generator().manual_seed(seed))).learn(updates, seed=seed)


# -- what is wanted, in cells ---------------------------------------------------------------------------------------------------------


def between(paths, pieces):
    """Paths with `pieces` times as many segments: (n, 31 · pieces + 1, 2)."""
    return F.interpolate(paths.mT, size=(POINTS - 1) * pieces + 1, mode="linear", align_corners=True).mT


def to_walls(points):
    """Distance (n, m) of points (n, m, 2) to the nearest wall."""
    points = points[..., None, :]
    gap = F.relu(torch.maximum(WALLS[:, :2] - points, points - WALLS[:, 2:]))
    return (gap.square().sum(-1) + 1e-12).sqrt().amin(-1)


def to_barrier(points):
    return (points - BARRIER).norm(dim=-1) - RADIUS


def goal(paths):
    """From A to B: minus how far off the two ends are."""
    return -(paths[:, 0] - A).norm(dim=-1) - (paths[:, -1] - B).norm(dim=-1)


def obstacle(paths):
    """Minus how deep the path is in walls and in the barrier, with a margin, summed along it."""
    points = between(paths, 2)
    return -(F.relu(0.1 - to_walls(points)) + F.relu(0.1 - to_barrier(points))).sum(-1)


def arrives(paths):
    """From the cell of A to the cell of B? (n,) bool."""
    return ((paths[:, 0] - A).abs().amax(-1) < 0.5) & ((paths[:, -1] - B).abs().amax(-1) < 0.5)


def free(paths):
    """Through no wall and around the barrier? Looked at more closely than the reward does. (n,) bool."""
    points = between(paths, 12)
    return (to_walls(points) > 0.02).all(-1) & (to_barrier(points) > 0).all(-1)


def safely(paths):
    return arrives(paths) & free(paths)


WISH = Sum({"goal": goal, "obstacle": obstacle}, weights=[1, 4])


# -- the race, and the picture --------------------------------------------------------------------------------------------------------


def share(population, wanted):
    """Weighted share of draws (groups,) for which `wanted` holds."""
    held = torch.stack([wanted(paths) for paths in population.samples])
    return population.mean(held.double())


def race(planner, methods=METHODS, reward=WISH, particles=256, steps=32, groups=8, lam=12.0, seed=0):
    """Populations by method, at equal network calls. λ is in nats per cell."""
    found = {}
    for method in methods:
        with warnings.catch_warnings():
            # Importance weighting is as hopeless here as it warns.
            warnings.simplefilter("ignore", viot.SteeringWarning)
            found[method] = viot.sample(
                planner, reward, method, particles=particles, steps=steps, groups=groups, lam=lam, seed=seed, progress=False
            )
    return found


def picture(panels, file, cell=58):
    """One maze beside the other, each with grey paths under coloured ones: (title, text, grey, coloured, with the barrier?)."""
    side, margin = cell * CELLS, 26
    width, height = len(panels) * (side + 2 * margin), side + 2 * margin + 46
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" fill="none">',
        f'<rect width="{width}" height="{height}" rx="10" fill="#fbfaf7"/>',
    ]
    for i, (title, text, grey, coloured, barred) in enumerate(panels):
        out.append(
            f'<g transform="translate({i * (side + 2 * margin) + margin} {margin + 46})" stroke-linecap="round" stroke-linejoin="round">'
        )
        out.append(f'<text y="-38" font-size="17" font-weight="600" fill="#222">{title}</text>')
        out.append(f'<text y="-17" font-size="13.5" fill="#666">{text}</text>')
        if barred:
            x, y = (BARRIER * cell).tolist()
            out.append(
                f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{RADIUS * cell:.1f}" fill="#1c1d1f" fill-opacity=".13" stroke="#1c1d1f" stroke-opacity=".55" stroke-dasharray="4 4"/>'
            )
        out += [_line(path, cell, "#8b8d90", 1.1, 0.42) for path in grey]
        out += [_line(path, cell, _colour(path), 1.6, 0.45) for path in coloured]
        pieces = "".join(f"M{x0:.0f} {y0:.0f}L{x1:.0f} {y1:.0f}" for x0, y0, x1, y1 in (WALLS * cell).tolist())
        out.append(f'<path d="{pieces}" stroke="#1c1d1f" stroke-width="4"/>')
        if len(coloured):
            for name, place in (("A", A), ("B", B)):
                x, y = (place * cell).tolist()
                out.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="11" fill="#fbfaf7" stroke="#1c1d1f" stroke-width="2"/>')
                out.append(
                    f'<text x="{x:.0f}" y="{y + 4.5:.1f}" font-size="13" font-weight="700" fill="#1c1d1f" text-anchor="middle">{name}</text>'
                )
        out.append("</g>")
    Path(file).write_text("\n".join([*out, "</svg>"]) + "\n")


def _line(path, cell, colour, width, opacity):
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (path * cell).tolist())
    return f'<polyline points="{points}" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'


def _colour(path):
    """Blue for the way on the left, over green, to orange for that on the right."""
    way = float(((path[:, 0] + path[:, 1]).mean() / CELLS - 0.75) / 0.5)
    stops = [(0, 114, 178), (0, 158, 115), (213, 94, 0)]
    at = min(max(way, 0.0), 1.0) * 2
    low = stops[min(int(at), 1)], stops[min(int(at), 1) + 1]
    return "#" + "".join(f"{round(a + (b - a) * (at - min(int(at), 1))):02x}" for a, b in zip(*low, strict=True))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/maze"), help="where maze.svg goes")
    parser.add_argument("--updates", type=int, default=14000, help="of the network in training")
    parser.add_argument("--particles", type=int, default=256)
    parser.add_argument("--groups", type=int, default=8, help="independent populations for each method")
    parser.add_argument("--methods", default=",".join(METHODS))
    args = parser.parse_args(arguments)

    began = time.perf_counter()
    planner = train(args.updates)
    check_model(planner)
    check_reward(WISH, planner.decode(planner.states[:16], None))
    print(f"trained for {args.updates} updates in {time.perf_counter() - began:.0f} s")
    found = race(planner, args.methods.split(","), particles=args.particles, groups=args.groups)
    print("method        arrives    free    both ± s.e.   best of each   lineages   seconds")
    for method, population in found.items():
        both, best = share(population, safely), share(population.best(1), safely)
        print(
            f"{method:12} {share(population, arrives).mean():8.0%} {share(population, free).mean():7.0%} {both.mean():7.0%} ± "
            f"{both.std() / len(both) ** 0.5:3.0%} {best.mean():14.0%} {population.surviving_lineages.double().mean():10.0f} "
            f"{population.seconds['total']:9.1f}"
        )

    args.out.mkdir(parents=True, exist_ok=True)
    base = race(planner, ["base"], particles=48, groups=1)["base"].samples[0]
    toward, around = (race(planner, ["vasr"], r, particles=2 * args.particles, groups=args.groups)["vasr"] for r in (goal, WISH))
    shown = [p.draw(48 // args.groups, seed=1).samples.flatten(0, 1) for p in (toward, around)]
    there, unharmed = share(toward, arrives).mean(), share(around, safely).mean()
    panels = [
        ("What the model has learnt", "draws without a wish", base, base[:0], False),
        ("From A to B", f"steered by the goal: {there:.0%} arrive", base, shown[0], False),
        ("Around a new barrier", f"and by the obstacle: {unharmed:.0%} arrive unharmed", base, shown[1], True),
    ]
    picture(panels, args.out / "maze.svg")
    print(f"wrote {args.out / 'maze.svg'}")
    return planner, found, toward, around


if __name__ == "__main__":
    main()
