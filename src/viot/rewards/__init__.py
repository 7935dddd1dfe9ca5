"""Scores by name, and what else can stand for one. One file per family; none knows of models or methods."""

from __future__ import annotations

import math
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
    "cifar",
    "log-probability that a classifier sees one of these classes of CIFAR-10, on pictures averaged down to 16x16",
    cost="0.6 ms per image",
    licence="Apache-2.0, trained on CIFAR-10 (Krizhevsky 2009)",
    example="cifar:cat, cifar:airplane,ship",
)
def _cifar(argument: str) -> Any:
    from .cifar import Cifar

    return Cifar(argument.split(","))


@rewards.add(
    "cifar-resnet",
    "the same by a published ResNet-20 on 32x32, from a file (resnet20-12fca82f.th)",
    cost="1.1 MB, 2 ms per image",
    licence="BSD-2",
    example="cifar-resnet:cat@FILE",
)
def _cifar_resnet(argument: str) -> Any:
    from .cifar import Cifar

    classes, at, file = argument.partition("@")
    if not at or not file:
        raise ValueError(f"cifar-resnet takes classes and the file of its weights, not {argument!r}; write cifar-resnet:cat@FILE")
    return Cifar(classes.split(","), weights=file)


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
    "noisy",
    "another reward plus Gaussian noise of this standard deviation, fresh at every scoring: what does an unreliable one do?",
    cost="that of the other",
    licence="that of the other",
    example="noisy:0.5:digit:7",
)
def _noisy(argument: str = "") -> Any:
    from .combine import Noisy

    sigma, colon, inner = argument.partition(":")
    try:
        sd = float(sigma)
    except ValueError:
        sd = math.nan
    if not colon or not inner or not 0 <= sd < math.inf:
        raise ValueError(f"noisy takes a standard deviation ≥ 0 and a reward, not {argument!r}; write noisy:0.5:digit:7")
    return Noisy(inner, sd)


@rewards.add("quadratic", "−½ |x|²: points near the origin", cost="free", licence="Apache-2.0")
def _quadratic() -> Any:
    from .points import Quadratic

    return Quadratic()


@rewards.add("modes", "log density of the model mixture with its i-th mode weighted e^1.5i", cost="free", licence="Apache-2.0")
def _modes() -> Any:
    from .points import Modes

    return Modes.eight()


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
    "captions-judge",
    "1 where another network reads all that the caption says, else 0: for measuring, not for steering",
    cost="1 ms per image",
    licence="Apache-2.0, trained on MNIST",
)
def _captions_judge() -> Any:
    from .captions import CaptionsJudge

    return CaptionsJudge()


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


@rewards.add("count", "how often a piece of text occurs", cost="free", licence="Apache-2.0", example="count:a")
def _count(wanted: str) -> Any:
    from .text import Count

    return Count(wanted)


@rewards.add("regex", "1 where a regular expression matches, else 0", cost="free", licence="Apache-2.0", example="regex:^mar")
def _regex(pattern: str) -> Any:
    from .text import Regex

    return Regex(pattern)


@rewards.add(
    "length",
    "minus the distance to a length in characters or words",
    cost="free",
    licence="Apache-2.0",
    example="length:6, length:12 words",
)
def _length(argument: str) -> Any:
    from .text import Length

    return Length.parse(argument)


@rewards.add(
    "lexicon", "sum of the weights of the words a file lists", cost="free", licence="Apache-2.0, the file is yours", example="lexicon:FILE"
)
def _lexicon(file: str) -> Any:
    from .text import Lexicon

    return Lexicon.from_file(file)


@rewards.add(
    "reviews",
    "log-probability that a sentence of a film review is positive or negative",
    cost="0.3 ms per text",
    licence="Apache-2.0, trained on rt-polarity (Pang & Lee 2005)",
    example="reviews:positive, reviews:negative",
)
def _reviews(label: str = "positive") -> Any:
    from .readers import Reviews

    return Reviews(label)


@rewards.add(
    "reviews-judge",
    "the same by another kind of reader: for measuring, not for steering",
    cost="0.05 ms per text",
    licence="Apache-2.0, trained on SST-2 (Socher et al. 2013)",
    example="reviews-judge:positive",
)
def _reviews_judge(label: str = "positive") -> Any:
    from .readers import ReviewsJudge

    return ReviewsJudge(label)


@rewards.add(
    "acceptable",
    "log-probability that linguists accept the sentence, weakly",
    cost="0.3 ms per text",
    licence="Apache-2.0, trained on CoLA (Warstadt et al. 2019)",
)
def _acceptable() -> Any:
    from .readers import Acceptable

    return Acceptable()


@rewards.add(
    "ngram",
    "mean log-probability per letter of a name, or per word of a film review",
    cost="0.3 ms per text",
    licence="Apache-2.0, trained on a list of first names and on rt-polarity",
    example="ngram:names, ngram:reviews",
)
def _ngram(name: str) -> Any:
    from .readers import Fluency

    return Fluency(name)


@rewards.add(
    "classifier",
    "log-probability of a label by a text classifier of the hub",
    cost="0.5 GB, 0.1 s per text on one core (RoBERTa base)",
    licence="the checkpoint's",
    example="classifier:ORG/MODEL:LABEL",
)
def _classifier(argument: str) -> Any:
    from .language import Classifier

    checkpoint, _, label = argument.rpartition(":")
    if not checkpoint or not label:
        raise ValueError(f"classifier takes a checkpoint and a label, not {argument!r}; write classifier:ORG/MODEL:LABEL")
    return Classifier(checkpoint, label)


@rewards.add(
    "toxicity",
    "log-probability that a text is toxic, or not: low (SkolkovoInstitute/roberta_toxicity_classifier)",
    cost="0.5 GB, 0.1 s per text on one core",
    licence="the checkpoint's",
    example="toxicity, toxicity:low",
)
def _toxicity(label: str | None = None) -> Any:
    from .language import preset

    return preset("toxicity", label)


@rewards.add(
    "cola",
    "log-probability that linguists accept the sentence (textattack/roberta-base-CoLA)",
    cost="0.5 GB, 0.1 s per text on one core",
    licence="the checkpoint's",
)
def _cola(label: str | None = None) -> Any:
    from .language import preset

    return preset("cola", label)


@rewards.add(
    "sentiment",
    "log-probability of a sentiment, learnt from tweets (cardiffnlp/twitter-roberta-base-sentiment)",
    cost="0.5 GB, 0.1 s per text on one core",
    licence="the checkpoint's",
    example="sentiment:positive, sentiment:negative, sentiment:neutral",
)
def _sentiment(label: str | None = None) -> Any:
    from .language import preset

    return preset("sentiment", label)


@rewards.add(
    "formality",
    "log-probability that a text is formal, or informal (cointegrated/roberta-base-formality)",
    cost="0.5 GB, 0.1 s per text on one core",
    licence="the checkpoint's",
    example="formality, formality:informal",
)
def _formality(label: str | None = None) -> Any:
    from .language import preset

    return preset("formality", label)


@rewards.add(
    "perplexity",
    "minus ln 2 times the nats per token of a causal language model of the hub",
    cost="0.5 GB, 0.2 s per text on one core (GPT-2)",
    licence="the checkpoint's",
    example="perplexity:ORG/MODEL",
)
def _perplexity(checkpoint: str) -> Any:
    from .language import Perplexity

    return Perplexity(checkpoint)


@rewards.add("gpt2-perplexity", "the same by GPT-2", cost="0.5 GB, 0.2 s per text on one core", licence="MIT, not gated")
def _gpt2_perplexity() -> Any:
    from .language import Perplexity

    return Perplexity("gpt2", name="gpt2-perplexity")


@rewards.add(
    "sum",
    "several rewards at once, each with a weight",
    cost="that of its members",
    licence="that of its members",
    example="sum:0.5*digit:4+0.5*digit:9",
)
def _sum(argument: str) -> Any:
    from .combine import Sum, spelled

    told = spelled(argument)
    return Sum([name for _, name in told], [weight for weight, _ in told])


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
    "captions": ("Captions", "CaptionsJudge"),
    "cifar": ("Cifar",),
    "clip": ("ClipScore", "PickScore"),
    "combine": ("Sum", "Min", "Product", "Noisy"),
    "digits": ("Digits",),
    "hps": ("HPS",),
    "imagereward": ("ImageReward",),
    "inverse": ("Deblurring", "Inpainting", "Likelihood", "SuperResolution"),
    "judge": ("Judge",),
    "language": ("Classifier", "Perplexity"),
    "pixels": ("Brightness", "Jpeg"),
    "points": ("Modes", "Quadratic"),
    "readers": ("Acceptable", "Fluency", "Reviews", "ReviewsJudge"),
    "text": ("Count", "Length", "Lexicon", "Regex"),
}

__all__ = [
    "HPS", "Acceptable", "Aesthetic", "Brightness", "CaptionsJudge", "Cifar", "Classifier", "ClipScore", "Count", "Deblurring", "Digits", "Fluency", "ImageReward",
    "Inpainting", "Jpeg", "Judge", "Length", "Lexicon", "Likelihood", "Min", "Modes", "Noisy", "Perplexity", "PickScore", "Product", "Quadratic",
    "Regex", "Reviews", "ReviewsJudge", "Reward", "Scores", "Sum", "SuperResolution", "as_reward", "rewards",
]  # fmt: skip
