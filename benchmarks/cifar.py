"""How good is the embedded model of small photographs? Its numbers, a picture of its draws, and the README's block `<!-- cifar16 -->`.

    python benchmarks/cifar.py --data DIR [--samples 2000] [--steps 50]     (CIFAR-10; downloaded there if absent)

Writes docs/figures/cifar16.png (64 draws, not chosen) and docs/figures/cifar16.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image

import viot
from viot.methods import Base
from viot.metrics import frechet_distance
from viot.rewards.cifar import CLASSES, classifier, judge

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
from figures import paste, read

from cifar10 import load_cifar10

FIGURES = ROOT / "docs/figures"


def sheet(images, columns, scale=4):
    """Images (n, 3, 16, 16) side by side as one PIL image."""
    rows = len(images) // columns
    grid = images[: rows * columns].view(rows, columns, 3, 16, 16).permute(0, 3, 1, 4, 2).reshape(rows * 16, columns * 16, 3)
    picture = Image.fromarray((grid * 255).round().byte().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def quality(model, data, n, steps):
    """Unsteered: what an independent reader makes of the draws, the shares of the classes, and the distance to the test images."""
    images = viot.sample(model, "brightness", Base(), particles=n, steps=steps, lam=0.0, batch_size=64, seed=2024).samples[0]
    p, features = read(judge(), images)
    test, labels = load_cifar10(data, "test", size=16)
    p_real, real = read(judge(), test)
    _, train = read(judge(), load_cifar10(data, size=16)[0][:n])
    with torch.no_grad():
        steering = torch.cat([classifier()(part).argmax(1) for part in test.split(500)])
    sheet(images[:64], 16).save(FIGURES / "cifar16.png")
    training = json.loads((ROOT / "src/viot/models/cifar/training.json").read_text())
    return {
        "samples": n,
        "steps": steps,
        "confident": (p.amax(1) > 0.9).float().mean().item(),
        "confident_real": (p_real.amax(1) > 0.9).float().mean().item(),
        "class_share": dict(zip(CLASSES, (torch.bincount(p.argmax(1), minlength=10) / n).tolist(), strict=True)),
        "frechet": frechet_distance(features, real),
        "frechet_real": frechet_distance(train, real),
        "accuracy": {"classifier": (steering == labels).float().mean().item(), "judge": (p_real.argmax(1) == labels).float().mean().item()},
        "training": training,
    }


def block(found):
    """The README's paragraph on the model."""
    share, training = found["class_share"], found["training"]
    few, many = min(share, key=share.__getitem__), max(share, key=share.__getitem__)
    return (
        f"{training['steps']:,} steps of {training['batch']}, velocity loss {training['test_velocity_loss']:.3f} on the test images; the "
        f"classifier that steers reads {100 * found['accuracy']['classifier']:.1f} % of them right, the judge "
        f"{100 * found['accuracy']['judge']:.1f} %. Of {found['samples']} unsteered samples at {found['steps']} steps the judge reads "
        f"{100 * found['confident']:.0f} % with more than 0.9 confidence (of real test images: {100 * found['confident_real']:.0f} %); class "
        f"shares lie between {100 * share[few]:.1f} % ({few}) and {100 * share[many]:.1f} % ({many}), where the data has 10 % of each. Fréchet "
        f"distance to the test images in its 128 features: {found['frechet']:.2f}; as many real training images have {found['frechet_real']:.2f}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    found = quality(viot.load("cifar16"), args.data, args.samples, args.steps)
    (FIGURES / "cifar16.json").write_text(json.dumps(found, indent=1) + "\n")
    paste("cifar16", block(found))


if __name__ == "__main__":
    main()
