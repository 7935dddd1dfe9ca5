"""Steer by a reward of your own: a function, one that reads the prompt, one without a gradient, two at once.

    python examples/your_reward.py

A reward scores each sample on its own: samples -> (n,). Here the samples are pictures of digits, (n, channels, 28, 28) in [0, 1]; of a
diffusers pipeline they would be its pictures in the same form, of a text model a list of strings.
"""

import zlib

import torch

import viot
from viot.rewards import Min, Sum
from viot.testing import check_reward


def symmetric(images):
    """A function. This one has a gradient, so `tds`, `das` and `dps` can follow it as well."""
    return -20 * (images - images.flip(-1)).abs().flatten(1).mean(1)


def red_if_asked(images, prompts):
    """It names `prompts`, and receives one per sample: the mean of red over the others, where the caption says red."""
    red = images[:, 0] - images[:, 1:].mean(1)
    asked = torch.tensor([1.0 if "red" in prompt else -1.0 for prompt in prompts])
    return 200 * asked * red.flatten(1).mean(1)


def compressible(images):
    """Any Python at all: minus the bytes that zlib needs, by hundreds. It has no gradient, and `vasr` asks for none."""
    pixels = (images * 15).byte().flatten(1).tolist()
    return torch.tensor([-len(zlib.compress(bytes(row))) / 100 for row in pixels])


def main():
    check_reward(compressible, torch.rand(8, 1, 28, 28))
    captions = viot.load("captions", prompt=["a red seven", "a blue seven"])
    both = Sum({"three": "digit:3", "symmetric": symmetric}, weights=[1.0, 2.0])
    runs = {
        "a function": ("digits", symmetric, 2.0),
        "with prompts": (captions, red_if_asked, 1.0),
        "no gradient": ("digits", compressible, 10.0),
        "the sum of two": ("digits", both, 1.0),
        "the worse of two": ("digits", Min({"three": "digit:3", "small": compressible}), 2.0),
    }
    found = {}
    for name, (model, reward, lam) in runs.items():
        before, after = (viot.sample(model, reward, m, particles=16, steps=8, lam=lam, progress=False) for m in ("base", "vasr"))
        found[name] = before, after
        parts = ", ".join(f"{part} {after.mean(scores).mean():.2f}" for part, scores in after.parts.items())
        print(f"{name:16} {before.mean().mean():7.2f} -> {after.mean().mean():6.2f}   log Z {after.log_z.mean():6.2f}   {parts}")
    return found


if __name__ == "__main__":
    main()
