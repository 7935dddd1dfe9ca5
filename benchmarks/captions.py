"""Do steered pictures show what their caption says? The embedded text-to-image model, methods at equal network rows.

    python benchmarks/captions.py [--budgets 2,4,8,16] [--seeds 2] [--lam 2] [--methods "base;best-of-n;…"] [--out runs/bench/captions.json]
    python benchmarks/captions.py sheet          # docs/figures/captions.png: methods as rows, captions as columns, the same seed

Sixteen captions, K·T rows each. The reward reads the caption off the picture; the judge, another network that nobody steers by, says whether
the picture shows it: everything that the caption says, in one of its readings. "drawn" is the share among draws of the population by weight,
"picked" among the samples of highest reward. Rows are written as they come; run again to go on.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch

import viot
from viot.methods import FKD, VASR, Base, BestOfN, VASRMax
from viot.rewards.captions import judge, score, shown

CAPTIONS = [
    "a seven", "a thin white five", "a thick yellow zero", "a blue four", "two sevens", "two red ones", "two blue fours", "two thin nines",
    "a three above a one", "a red six above a white eight", "a thick two below a green seven", "a yellow five below a thin five",
    "a zero left of a one", "a green eight left of a yellow two", "a thick red three right of a blue one", "a four beside a nine",
]  # fmt: skip
STEPS = 20
METHODS = {
    "base": Base(),
    "best-of-n": BestOfN(n=None),
    "fkd": FKD(schedule=VASR().schedule),
    "fkd, max potential": FKD(schedule=VASR().schedule, potential="max"),
    "vasr": VASR(),
    "vasr-max": VASRMax(),
}


def measured(population):
    """Shares of pictures that show their caption, by the judge, and how far reward and judge agree."""
    drawn, best = population.draw(64, seed=1), population.best(1)
    found = {"drawn": [], "picked": [], "reward": [], "judged": [], "distinct": []}
    for g, index in enumerate(population.config["groups"]):
        text = CAPTIONS[index]
        images = drawn.samples[g]
        found["drawn"].append(shown(judge(), images, [text] * len(images)).float().mean().item())
        found["picked"].append(float(shown(judge(), best.samples[g], [text])[0]))
        found["reward"].append(best.rewards[g, 0].item())
        with torch.no_grad():
            found["judged"].append(score(judge(), best.samples[g], [text]).total[0].item())
        found["distinct"].append(population.roots[g].unique().numel())
    return found


def run(args):
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(r["method"], r["budget"], r["seed"], r["lam"]) for r in rows}
    model = viot.load("captions", prompt=CAPTIONS)
    wanted = [name.strip() for name in args.methods.split(";")] if args.methods else list(METHODS)
    for seed in range(args.seeds):
        for k in map(int, args.budgets.split(",")):
            for name in wanted:
                if (name, k, seed, args.lam) in done:
                    continue
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", viot.SteeringWarning)
                    p = viot.sample(
                        model, "captions", METHODS[name], particles=k, steps=STEPS, lam=args.lam, seed=seed, batch_size=64, progress=False
                    )
                rows.append({"method": name, "budget": k, "seed": seed, "lam": args.lam, "nfe": p.nfe, **measured(p)})
                rows[-1]["seconds"] = time.perf_counter() - start
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.with_suffix(".part").write_text(json.dumps(rows))
                args.out.with_suffix(".part").replace(args.out)
                print(f"{name:20s} K = {k:3d} seed {seed}: drawn {mean(rows[-1]['drawn']):.2f}, picked {mean(rows[-1]['picked']):.2f}")
    table(rows, args.lam)


def mean(values):
    return sum(values) / len(values)


def table(rows, lam):
    """One line per method, shares in percent by budget: drawn / picked."""
    rows = [r for r in rows if r["lam"] == lam]
    budgets = sorted({r["budget"] for r in rows})
    print("\n| method | " + " | ".join(f"K = {k}" for k in budgets) + " | lineages | judge's log p |")
    print("|---" * (len(budgets) + 3) + "|")
    for name in METHODS:
        cells = []
        for k in budgets:
            here = [r for r in rows if r["method"] == name and r["budget"] == k]
            cells.append(
                f"{100 * mean([mean(r['drawn']) for r in here]):.0f} / {100 * mean([mean(r['picked']) for r in here]):.0f}" if here else "–"
            )
        last = [r for r in rows if r["method"] == name and r["budget"] == budgets[-1]]
        if last:
            extra = f"{mean([mean(r['distinct']) for r in last]):.1f} | {mean([mean(r['judged']) for r in last]):.2f}"
            print(f"| {name} | " + " | ".join(cells) + f" | {extra} |")


def sheet(args):
    """The best of each method under each caption, from the same seed."""
    from PIL import Image, ImageDraw, ImageFont

    captions = [CAPTIONS[i] for i in (4, 1, 8, 14, 9, 13, 7, 15)]
    model = viot.load("captions", prompt=captions)
    size, label, head = 96, 110, 46
    rows = [("unsteered", Base()), ("best of 8", BestOfN(n=None)), ("FK steering", METHODS["fkd"]), ("VASR-Max", VASRMax())]
    page = Image.new("RGB", (label + (size + 8) * len(captions), head + (size + 8) * len(rows)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, text in enumerate(captions):
        words, lines = text.split(), [""]
        for word in words:
            lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if font.getlength(f"{lines[-1]} {word}") < size else [*lines, word]
        for j, line in enumerate(lines):
            draw.text((label + (size + 8) * i + size / 2, head - 4 - 15 * (len(lines) - 1 - j)), line, "black", font, anchor="ms")
    for j, (name, method) in enumerate(rows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", viot.SteeringWarning)
            p = viot.sample(model, "captions", method, particles=8, steps=STEPS, lam=args.lam, seed=0, batch_size=64)
        images = p.samples[:, 0] if name == "unsteered" else p.best(1).samples[:, 0]
        draw.text((8, head + (size + 8) * j + size / 2), name, "black", ImageFont.load_default(15), anchor="lm")
        for i, image in enumerate(images):
            tile = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).resize((size, size), Image.Resampling.LANCZOS)
            page.paste(tile, (label + (size + 8) * i, head + (size + 8) * j))
    out = Path(__file__).parents[1] / "docs/figures/captions.png"
    page.save(out, optimize=True)
    print(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["run", "sheet"], default="run")
    parser.add_argument("--budgets", default="2,4,8,16", help="particles K of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lam", type=float, default=2.0)
    parser.add_argument("--methods")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/captions.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args) if args.what == "run" else sheet(args)


if __name__ == "__main__":
    main()
