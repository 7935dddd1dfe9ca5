"""Scores by name, and what else can stand for one. One file per family; none knows of models or methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..registry import Registry
from ..reward import Reward, Scores

rewards = Registry("reward")


@rewards.add(
    "digit",
    "log-probability that a classifier reads the digit",
    cost="0.1 ms per image",
    licence="Apache-2.0, trained on MNIST",
    example="digit:7",
)
def _digit(argument: str) -> Any:
    from .digits import Digits

    return Digits([_number(argument)])


@rewards.add(
    "digits",
    "best log-probability over a set of digits",
    cost="0.1 ms per image",
    licence="Apache-2.0, trained on MNIST",
    example="digits:even",
)
def _digits(argument: str) -> Any:
    from .digits import Digits

    sets = {"even": [0, 2, 4, 6, 8], "odd": [1, 3, 5, 7, 9]}
    return Digits(sets[argument] if argument in sets else [_number(a) for a in argument.split(",")])


@rewards.add(
    "jpeg",
    "minus the JPEG size in kilobytes: smooth, compressible images",
    cost="0.1 ms per image",
    licence="Apache-2.0",
    example="jpeg, jpeg:75",
)
def _jpeg(argument: str = "95") -> Any:
    from .pixels import Jpeg

    if not argument.isdecimal():
        raise ValueError(f"jpeg takes a quality from 1 to 100, not {argument!r}; write jpeg or jpeg:75")
    return Jpeg(int(argument))


@rewards.add("brightness", "mean pixel value", cost="free", licence="Apache-2.0")
def _brightness() -> Any:
    from .pixels import Brightness

    return Brightness()


@rewards.add(
    "captions",
    "log-probability that the picture shows what the caption says (model captions)",
    cost="1 ms per image",
    licence="Apache-2.0, trained on MNIST",
    example="captions, captions:two sevens",
)
def _captions(argument: str | None = None) -> Any:
    from .captions import Captions

    return Captions(argument)


@rewards.add(
    "clip",
    "how well the image fits the prompt, or one text: cosine of CLIP embeddings",
    cost="1.7 GB, 2 s per image on one core",
    licence="MIT, not gated",
    example="clip, clip:a photo of a cat, clip:ORG/MODEL",
)
def _clip(argument: str = "") -> Any:
    import re

    from .clip import ClipScore

    # A checkpoint is one word with a slash, as names of the hub and folders are; anything else is the text.
    first, _, rest = argument.partition(":")
    if "/" in first and not re.search(r"\s", first):
        return ClipScore(first, rest or None)
    return ClipScore(text=argument or None)


@rewards.add(
    "aesthetic",
    "LAION's aesthetic predictor: how much people like the look",
    cost="1.7 GB, 2 s per image on one core",
    licence="MIT, its head Apache-2.0, not gated",
)
def _aesthetic(checkpoint: str = "openai/clip-vit-large-patch14") -> Any:
    from .aesthetic import Aesthetic

    return Aesthetic(checkpoint)


@rewards.add(
    "pickscore",
    "PickScore: which image users would pick for the prompt",
    cost="3.9 GB, 4 s per image on one core",
    licence="MIT, not gated",
)
def _pickscore(checkpoint: str = "yuvalkirstain/PickScore_v1") -> Any:
    from .clip import PickScore

    return PickScore(checkpoint)


@rewards.add(
    "hps",
    "human preference score v2.1 for image and prompt",
    cost="2 GB, 4 s per image on one core",
    licence="Apache-2.0, not gated",
    example="hps, hps:2.0",
)
def _hps(version: str = "2.1") -> Any:
    from .hps import HPS

    return HPS(version)


@rewards.add(
    "imagereward",
    "ImageReward: human preference, by a network that reads image and prompt together",
    cost="1.8 GB, 3 s per image on one core",
    licence="Apache-2.0, not gated",
)
def _imagereward(checkpoint: str = "THUDM/ImageReward") -> Any:
    from .imagereward import ImageReward

    return ImageReward(checkpoint)


@rewards.add(
    "inpainting",
    "fills the transparent part of a picture (log-likelihood of the rest; lam 1 is the posterior)",
    cost="20 ms per image of 512 × 512 on one core",
    licence="Apache-2.0",
    example="inpainting:FILE.png",
)
def _inpainting(file: str) -> Any:
    from .inverse import Inpainting

    return Inpainting.from_file(file)


@rewards.add(
    "superresolution",
    "finds large pictures for a small one (log-likelihood; the factor is that of the sizes)",
    cost="5 ms per image of 512 × 512 on one core",
    licence="Apache-2.0",
    example="superresolution:FILE.png",
)
def _superresolution(file: str) -> Any:
    from .inverse import SuperResolution

    return SuperResolution.from_file(file)


@rewards.add(
    "deblurring",
    "finds sharp pictures for a blurred one (log-likelihood; SD is that of the Gaussian blur in pixels)",
    cost="0.2 s per image of 512 × 512 on one core",
    licence="Apache-2.0",
    example="deblurring:2:FILE.png",
)
def _deblurring(argument: str) -> Any:
    from .inverse import Deblurring

    blur, _, file = argument.partition(":")
    try:
        sd = float(blur)
    except ValueError:
        sd = 0.0
    if not file or not 0 < sd < float("inf"):
        raise ValueError(f"deblurring takes a blur in pixels > 0 and a picture, not {argument!r}; write deblurring:2:FILE.png")
    return Deblurring.from_file(file, sd)


@rewards.add(
    "judge",
    "0 to 10 from a vision-language model behind an OpenAI-compatible endpoint",
    cost="one request per sample",
    licence="the endpoint's",
    example="judge:MODEL, judge:MODEL@http://localhost:8000/v1",
)
def _judge(argument: str) -> Any:
    from .judge import Judge

    model, at, url = argument.rpartition("@")
    return Judge(model, base_url=url) if at and url.startswith("http") else Judge(argument)


def _number(text: str) -> int:
    if text not in {str(i) for i in range(10)}:
        raise ValueError(f"a digit is one of 0 … 9, not {text!r}; write digit:7, digits:even, digits:odd or digits:1,2,3")
    return int(text)


def as_reward(reward: str | Callable) -> Callable:
    """A reward from its name ("digit:7"), or the callable itself."""
    if callable(reward):
        return reward
    if not isinstance(reward, str):
        raise TypeError(f"a reward is a callable(samples) -> (n,) or a name, not {reward!r}")
    name, _, argument = reward.partition(":")
    entry = rewards[name]
    try:
        made = entry.make(argument) if argument else entry.make()
    except TypeError as error:
        raise ValueError(f"the reward {reward!r} is not spelled right; write {entry.example}") from error
    if not isinstance(getattr(made, "name", None), str):
        made.name = reward
    return made


def __getattr__(name: str) -> Any:
    """The classes of every family, imported when first asked for."""
    import importlib

    for module, names in _FAMILIES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_FAMILIES = {
    "aesthetic": ("Aesthetic",),
    "captions": ("Captions",),
    "clip": ("ClipScore", "PickScore"),
    "combine": ("Sum", "Min", "Product", "Noisy"),
    "digits": ("Digits",),
    "hps": ("HPS",),
    "imagereward": ("ImageReward",),
    "inverse": ("Deblurring", "Inpainting", "Likelihood", "SuperResolution"),
    "judge": ("Judge",),
    "pixels": ("Brightness", "Jpeg"),
    "points": ("Quadratic",),
}

__all__ = [
    "HPS", "Aesthetic", "Brightness", "ClipScore", "Deblurring", "Digits", "ImageReward", "Inpainting", "Jpeg", "Judge", "Likelihood",
    "Min", "Noisy", "PickScore", "Product", "Quadratic", "Reward", "Scores", "Sum", "SuperResolution", "as_reward", "rewards",
]  # fmt: skip
