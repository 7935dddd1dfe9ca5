"""What the rules of TReASURe are worth: calls of a branch, children that differ, scores of completions, and reward for network calls.

    OMP_NUM_THREADS=1 python benchmarks/treasure.py [calls] [children] [scores] [reward] [options] [--groups 40] [--branch 4] [--out runs/treasure.json]

calls     network rows of b children by UnmaskBranch (one), and where each child walks the ancestral chain until its first token appears, at n masks
          and a chance h with which a step reveals each: b / p, p = 1 − (1 − h)^n, is what theorem 1 of arXiv 2509.23146 says
children  how many of b children of one call differ from each other and from their parent, by ancestral steps and by UnmaskBranch
scores    a child's score by its parent's likeliest completion, and by the mean of S random ones, against the mean reward of all sequences that
          contain it: bias, noise (standard deviation of a repeated score), error in all, and how often the best of b children is found.
          On strings of a Markov chain whose joint law is enumerated
reward    the best sequence by network rows, with best-of-n and FK steering at as many: on that chain and on first names (letters a), with what
          the model thinks of the answer (mean log p over random orders, nats per name) and how many of a group's first four differ
options   the same for other settings, on names at 96 rows, with as many beams as these afford
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

import viot
from viot.kernel import Categorical
from viot.methods import FKD, BestOfN, TReASURe
from viot.methods.brood import born
from viot.model import Coeffs
from viot.rng import Draw, Rng

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from masked import MarkovTokens

V, L = 5, 7


def chain():
    """Strings of a Markov chain with some rare moves, and a reward for pairs of neighbours."""
    generator = torch.Generator().manual_seed(3)
    first = torch.rand(V, generator=generator, dtype=torch.float64) + 0.1
    move = torch.rand(V, V, generator=generator, dtype=torch.float64) ** 2 + 0.02
    worth = torch.zeros(V, V, dtype=torch.float64)
    worth[0, 3], worth[3, 0], worth[2, 4], worth[4, 1], worth[1, 1] = 1.0, 0.7, 1.4, 0.4, -0.5
    world = MarkovTokens((first / first.sum()).tolist(), (move / move.sum(1, keepdim=True)).tolist(), length=L)

    def reward(texts):
        tokens = torch.tensor([["abcde".index(c) for c in text] for text in texts])
        return worth[tokens[:, :-1], tokens[:, 1:]].sum(-1)

    return world, reward


def reached(model, masked, n, seed):
    """n states of plain draws of a model of names with so many masks left: their texts with masks put back at random."""
    x0 = viot.sample(model, lambda s: torch.zeros(len(s)), "base", particles=n, steps=12, seed=seed, progress=False).x0[0]
    places = torch.rand(x0.shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :masked]
    return x0.scatter(-1, places, model.mask_id)


def step_of(h, t=0.9):
    """The levels of a step that reveals each mask with chance h."""
    return Coeffs(1 - t, t, 1 - t * (1 - h), t * (1 - h))


def draws(seed):
    return Draw(Rng(seed), [0], 0, "propose")


def calls(args):
    model, kernel, rows = viot.load("names"), Categorical(27), []
    for masked in (12, 6, 2):
        for h in (0.01, 0.05, 0.2):
            x, spent, draw = reached(model, masked, args.branch * 64, 1), 0, draws(1)
            waiting = torch.ones(len(x), dtype=torch.bool)
            while bool(waiting.any()):
                now = x[waiting]
                prediction = model.predict(
                    now, torch.full((len(now),), masked / 12, dtype=torch.float64), torch.zeros(len(now), dtype=torch.long)
                )
                spent += len(now)
                x[waiting] = kernel.step(now, prediction, step_of(h), 1.0, draw)[0]
                waiting &= (x == 27).sum(-1) == masked
            p = 1 - (1 - h) ** masked
            rows.append({"masked": masked, "h": h, "naive": spent / 64, "theorem": args.branch / p, "branch": 1})
    return rows


def children(args):
    model, kernel, rows, trials = viot.load("names"), Categorical(27), [], 200
    for masked in (12, 6, 2):
        x = reached(model, masked, trials, 2)
        prediction = model.predict(x, torch.full((trials,), masked / 12, dtype=torch.float64), torch.zeros(trials, dtype=torch.long))
        copies = prediction.map(lambda v: v.repeat_interleave(args.branch, 0))
        row = {"masked": masked}
        for h in (0.01, 0.05, 0.2):
            born_by_step = kernel.step(x.repeat_interleave(args.branch, 0), copies, step_of(h), 1.0, draws(2))[0].view(
                trials, args.branch, -1
            )
            different = [len({tuple(c) for c in mine.tolist()} - {tuple(p.tolist())}) for p, mine in zip(x, born_by_step, strict=True)]
            row[f"h = {h}"] = sum(different) / trials
        at = (x == 27).double().argmax(-1, keepdim=True)
        brood = born(x, prediction.x0, prediction.logits, at, torch.full_like(at, args.branch), None, 27, None, 0)
        row["UnmaskBranch"] = len({(p, *y) for p, y in zip(brood.parent.tolist(), brood.x.tolist(), strict=True)}) / trials
        rows.append(row)
    return rows


def scores(args):
    world, reward = chain()
    strings = torch.cartesian_prod(*[torch.arange(V)] * L)
    rewards, joint, generator = reward(world.strings()), world.joint.flatten(), torch.Generator().manual_seed(0)
    repeats, rows = 64, []
    for masked in (6, 4, 2):
        found = {name: [] for name in ("resubstitute", "own", 1, 4, 16)}
        for _ in range(args.groups):
            x0 = strings[torch.multinomial(joint, 1, generator=generator)]
            places = torch.randperm(L, generator=generator)[:masked]
            x = x0.clone()
            x[0, places] = world.mask
            prediction = world.predict(x, None, None)
            brood = born(x, prediction.x0, prediction.logits, places[None, :1], torch.tensor([[args.branch]]), None, world.mask, None, 0)
            fits = ((brood.x[:, None] == world.mask) | (strings == brood.x[:, None])).all(-1) * joint
            truth = (fits @ rewards) / fits.sum(-1)

            def score(y):
                return rewards[(y * V ** torch.arange(L - 1, -1, -1)).sum(-1)]

            kids = len(brood.x)
            spread = prediction.map(lambda v: v.repeat_interleave(kids, 0))  # noqa: B023
            guesses = world.kernel.guess(brood.x, spread, draws(int(torch.randint(2**30, (), generator=generator))), repeats * 16)
            sampled = score(guesses).view(kids, repeats, 16)
            estimates = {"resubstitute": score(brood.fill)[:, None].expand(-1, repeats)}
            estimates["own"] = score(world.predict(brood.x, None, None).x0)[:, None].expand(-1, repeats)
            estimates |= {n: sampled[..., :n].mean(-1) for n in (1, 4, 16)}
            for name, value in estimates.items():
                error = value - truth[:, None]
                best = (truth[value.argmax(0)] == truth.max()).double().mean()
                found[name].append([error.mean(1).square().mean(), value.var(1, correction=0).mean(), error.square().mean(), best])
        for name, values in found.items():
            bias, noise, error, best = torch.tensor(values).mean(0).tolist()
            rows.append({"masked": masked, "score": str(name), "bias": bias**0.5, "noise": noise**0.5, "error": error**0.5, "best": best})
    return rows


def opinion(model, x0, orders=8):
    """Mean log p (n,) of names x0 (n, length), one letter after the other in random orders: at most log p, in nats."""
    n, length = x0.shape
    x0, total = x0.repeat_interleave(orders, 0), 0.0
    order = torch.rand(x0.shape, generator=torch.Generator().manual_seed(0)).argsort(-1)
    x = torch.full_like(x0, model.mask_id)
    for j in range(length):
        at = order[:, j : j + 1]
        t = torch.full((len(x),), (length - j) / length, dtype=torch.float64)
        p = model.predict(x, t, torch.zeros(len(x), dtype=torch.long)).logits.double().log_softmax(-1)
        token = x0.gather(-1, at)
        total = total + p.gather(1, at[..., None].expand(-1, -1, p.shape[-1]))[:, 0].gather(-1, token)[:, 0]
        x = x.scatter(-1, at, token)
    return total.view(n, orders).mean(-1)


def tasks():
    """Model, reward and log p of finished sequences."""
    world, pairs = chain()
    names = viot.load("names")
    joint = world.joint.log()
    return {
        "chain": (world, pairs, lambda x0: joint[tuple(x0.T)]),
        "names, letters a": (names, "count:a", lambda x0: opinion(names, x0)),
    }


def raced(args, task, name, method, particles):
    """One row: the first sequence of each group, what it cost, and what the model thinks of it."""
    model, score, log_p = tasks()[task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        p = viot.sample(model, score, method, particles=particles, groups=args.groups, steps=model.event_shape[0], lam=2.0, progress=False)
    # (By its own order of rank where the model's opinion counts.)
    best = p if isinstance(method, TReASURe) else p.best(1)
    first = best.rewards[:, 0]
    row = {
        "task": task,
        "method": name,
        "rows": p.nfe / args.groups,
        "rewarded": p.reward_rows / args.groups,
        "reward": first.mean().item(),
        "se": (first.std() / args.groups**0.5).item(),
        "log p": log_p(best.x0[:, 0]).mean().item(),
        "differ": sum(len(set(texts)) for texts in p.best(4).samples) / args.groups if p.shape[1] >= 4 else None,
    }
    print(row, flush=True)
    return row


def reward(args):
    rows = []
    for task, (model, _, _) in tasks().items():
        steps = model.event_shape[0]
        for width, branch in ((1, 4), (2, 4), (4, 2), (4, 4), (8, 4), (8, 6)):
            one = TReASURe(width=width, branch=branch, beams=1)
            particles = -(-one.price(steps)[0] // steps)
            arms = {f"M = {width}, K = {branch}": one, "… faithful = 1": TReASURe(width=width, branch=branch, beams=1, faithful=1.0)}
            if branch == 4:
                arms |= {f"best of {particles}": BestOfN(n=None), f"fkd, {particles} particles": FKD(schedule="every")}
            rows += [raced(args, task, name, method, particles) for name, method in arms.items()]
    return rows


OPTIONS = [
    {}, {"positions": 2}, {"positions": 4}, {"order": "confident"}, {"order": "entropy"}, {"shared": True}, {"expand": "sample"}, {"reveal": 2},
    {"reveal": 3}, {"score": "own", "width": 2}, {"score": "samples"}, {"prune": "resample"}, {"prune": "resample", "branch": 1, "expand": "sample"},
    {"faithful": 0.2}, {"faithful": 1.0}, {"width": 2}, {"width": 8}, {"dedupe": False, "positions": 4},
]  # fmt: skip


def options(args):
    shown = [(", ".join(f"{k} = {v}" for k, v in given.items()) or "as it comes", TReASURe(**given)) for given in OPTIONS]
    return [raced(args, "names, letters a", name, method, 8) for name, method in shown]


def table(name, rows):
    head = list(rows[0])
    print(f"\n{name}\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        cells = ("–" if (v := row.get(k)) is None else f"{v:.3g}" if isinstance(v, float) else str(v) for k in head)
        print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"calls": calls, "children": children, "scores": scores, "reward": reward, "options": options}
    parser.add_argument("what", nargs="*", default=list(kinds))
    parser.add_argument("--groups", type=int, default=40, help="independent runs, or states, of each row")
    parser.add_argument("--branch", type=int, default=4, help="children, where one number is looked at")
    parser.add_argument("--out", type=Path, default=Path("runs/treasure.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for what in args.what:
        found[what] = kinds[what](args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1))
    for name, rows in found.items():
        table(name, rows)


if __name__ == "__main__":
    main()
