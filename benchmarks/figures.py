"""Regenerate the README's figures and the numbers between its markers, from the embedded digits model.

    python benchmarks/figures.py --data DIR       (MNIST, for the distance; downloaded there if absent)

Writes docs/figures/steering.svg, docs/figures/digits.png, docs/figures/digits.json and the README's block `<!-- digits -->`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image

import viot
from viot.methods import FKD, VASR, Base
from viot.metrics import frechet_distance
from viot.rewards.digits import judge

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
from mnist import load_mnist

FIGURES = ROOT / "docs/figures"


@torch.no_grad()
def read(judge, images):
    """A judge's class probabilities (n, 10) and features (n, d)."""
    pairs = [(judge(chunk).softmax(1), judge.features(chunk)) for chunk in images.split(500)]
    return torch.cat([p for p, _ in pairs]), torch.cat([f for _, f in pairs])


def sheet(images, columns):
    """Images (n, 1, 28, 28) side by side as one PIL image, dark on light."""
    rows = len(images) // columns
    grid = images[: rows * columns].view(rows, columns, 28, 28).permute(0, 2, 1, 3).reshape(rows * 28, columns * 28)
    return Image.fromarray(((1 - grid) * 255).byte().numpy())


def quality(model, data, n, steps):
    """How good the embedded model is, unsteered: an independent reader's confidence, class balance, distance to MNIST."""
    population = viot.sample(model, "brightness", Base(), particles=n, steps=steps, lam=0.0, batch_size=64, seed=2024)
    images = population.samples[0]
    p, features = read(judge(), images)
    test, labels = load_mnist(data, "test")
    p_real, real = read(judge(), test)
    train = read(judge(), load_mnist(data, "train")[0][: len(test)])[1]
    share = torch.bincount(p.argmax(1), minlength=10).double() / n
    found = {
        "samples": n,
        "steps": steps,
        "confident": (p.amax(1) > 0.9).float().mean().item(),
        "confident_real": (p_real.amax(1) > 0.9).float().mean().item(),
        "class_share": share.tolist(),
        "class_share_real": (torch.bincount(labels, minlength=10).double() / len(labels)).tolist(),
        "frechet": frechet_distance(features, real),
        "frechet_real": frechet_distance(train[:n], real),
    }
    sheet(images, 20).crop((0, 0, 560, 280)).resize((1120, 560), Image.Resampling.NEAREST).save(FIGURES / "digits.png")
    return found


def hero(model, seed=0, shown=16):
    """Rows of draws: unsteered, and steered toward a seven by two methods, at the same budget."""
    rows = []
    for label, method in (("unsteered", Base()), ("FK steering", FKD(schedule=VASR().schedule)), ("VASR", VASR())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", viot.SteeringWarning)
            p = viot.sample(model, "digit:7", method, particles=64, steps=40, seed=seed)
        drawn = p.draw(64, seed=1).samples[0]
        sevens = (read(judge(), drawn)[0].argmax(1) == 7).float().mean().item()
        rows.append((label, drawn[:shown], f"{100 * sevens:.0f} % sevens", f"{int(p.surviving_lineages[0])} of 64 lineages"))
    width, height, cell = 1000, 62 * len(rows) + 40, 44
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">',
        f'<rect width="{width}" height="{height}" rx="10" fill="#fbfaf7"/>',
    ]
    for i, (label, images, sevens, lineages) in enumerate(rows):
        y = 20 + 62 * i
        buffer = io.BytesIO()
        sheet(images, shown).save(buffer, format="PNG")
        png = base64.b64encode(buffer.getvalue()).decode()
        strong = ' font-weight="600"' if label == "VASR" else ""
        out += [
            f'<text x="24" y="{y + 28}" font-size="17" fill="#222"{strong}>{label}</text>',
            f'<image x="136" y="{y}" width="{cell * shown}" height="{cell}" href="data:image/png;base64,{png}" image-rendering="pixelated"/>',
            f'<text x="{136 + cell * shown + 16}" y="{y + 18}" font-size="15" fill="#222"{strong}>{sevens}</text>',
            f'<text x="{136 + cell * shown + 16}" y="{y + 38}" font-size="13" fill="#666">{lineages}</text>',
        ]
    (FIGURES / "steering.svg").write_text("\n".join([*out, "</svg>"]) + "\n")


def block(found):
    """The README's paragraph on the digits model."""
    share = found["class_share"]
    return (
        f"Of {found['samples']} unsteered samples at {found['steps']} steps, an independent classifier reads "
        f"**{100 * found['confident']:.0f} %** with more than 0.9 confidence (of real test digits: {100 * found['confident_real']:.0f} %). "
        f"Class shares lie between {100 * min(share):.1f} % and {100 * max(share):.1f} % (MNIST: {100 * min(found['class_share_real']):.1f} "
        f"to {100 * max(found['class_share_real']):.1f} %). Fréchet distance to the MNIST test set in that classifier's 96 features: "
        f"{found['frechet']:.2f}; as many real training digits have {found['frechet_real']:.2f}."
    )


def paste(name, text):
    """Put the text between the README's marks of that name."""
    readme = ROOT / "README.md"
    whole = readme.read_text()
    readme.write_text(re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{text}\n{m[2]}", whole, flags=re.DOTALL))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/mnist")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    model = viot.load("digits")
    hero(model)
    found = quality(model, args.data, args.samples, args.steps)
    (FIGURES / "digits.json").write_text(json.dumps(found, indent=1) + "\n")
    paste("digits", block(found))


if __name__ == "__main__":
    main()
