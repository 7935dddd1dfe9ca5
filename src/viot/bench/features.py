"""What points and pictures are compared in: functions of samples (n, …) to (n, d), by name. A distance in one says nothing of another."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from .. import hub
from ..model import Model
from ..optional import need
from ..registry import Entry, Registry
from ..rewards.clip import pooled
from ..rewards.images import FrozenNetwork, Preprocess, as_videos

#: (n, …) -> (n, d), on the samples' device.
Extractor = Callable[[Tensor], Tensor]

#: Samples that are read at a time: large pictures are many numbers, and so is what a network makes of them.
AT_ONCE = 64
#: The network of CMMD (arXiv 2401.09603), with the bandwidth of its kernel and the factor of its numbers.
CMMD, CMMD_BANDWIDTH, CMMD_SCALE = "openai/clip-vit-large-patch14-336", 10.0, 1000.0
#: Of FID: what torch-fidelity keeps in torch's cache.
INCEPTION = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"

features = Registry("features")


def extractor(kind: str) -> Extractor:
    """Features by name, `clip`, with an argument where they take one, `clip:FOLDER`, or a function of yours, `module:function`.

    Raises ValueError for what nobody has, OSError for weights that are not to be had, ImportError for a package that is missing.
    """
    name, _, argument = kind.partition(":")
    return _made(features[name], argument) if name in features or not argument else _imported(name, argument)


def read(kind: str, samples: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """(n, d) features of samples (n, …), float64 on the CPU; read on the device, some at a time."""
    of = extractor(kind)
    return torch.cat([of(part.to(device)).cpu().double() for part in samples.split(AT_ONCE)])


def summary(kind: str) -> str:
    """What tables say that distances are taken in."""
    name, _, argument = kind.partition(":")
    if name not in features:
        return f"the features of {kind}"
    return features[name].summary + (f" with the weights of {argument}" if argument else "")


def standard_bandwidth(kind: str) -> float | None:
    """The bandwidth that published numbers in these features have; None where there is none."""
    return CMMD_BANDWIDTH if is_clip(kind) else None


def is_clip(kind: str) -> bool:
    return kind.partition(":")[0] == "clip"


def check(kind: str, model: Model, x0: Tensor) -> None:
    """Read states (n, *event_shape), decoded, by these features: a ValueError or TypeError where they do not go with the model's samples."""
    n, group = len(x0), torch.zeros(len(x0), dtype=torch.long)
    with torch.no_grad():
        samples = model.decode(x0.to(model.device), group)
    if not isinstance(samples, Tensor):
        raise TypeError(
            f"features are of points and pictures, and {type(model).__name__} draws texts; leave --features and --reference out"
        )
    try:
        found = read(kind, samples, model.device)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"the features {kind} do not read samples of shape {tuple(samples.shape[1:])}: {error}") from error
    if found.ndim != 2 or len(found) != n:
        raise ValueError(f"features of {n} samples are ({n}, d); {kind} answers with {tuple(found.shape)}")


@cache
def _made(entry: Entry, argument: str) -> Extractor:
    """Weights are read once."""
    try:
        return entry.make(argument) if argument else entry.make()
    except TypeError as error:
        raise ValueError(f"these features take no {argument!r}; write {entry.example}") from error


def _imported(module: str, function: str) -> Extractor:
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        known = ", ".join(features)
        raise ValueError(
            f"there are no features {module!r} ({known}) and no module of that name ({error}); a function of your own is written "
            f"module:function, where Python finds the module (PYTHONPATH)"
        ) from error
    except AttributeError as error:
        raise ValueError(f"the module {module} has no function {function!r}") from error
    if not callable(found):
        raise TypeError(f"{module}:{function} is no function of samples (n, …)")

    return torch.no_grad()(found)


def _network(network: Any, reads: Callable[[Any, Tensor], Tensor]) -> Extractor:
    """A network's answer to samples, which it is moved beside."""

    @torch.no_grad()
    def of(samples: Tensor) -> Tensor:
        return reads(hub.moved_to(samples, network), samples)

    return of


@features.add("points", "the points themselves")
def _points() -> Extractor:
    return lambda samples: samples.flatten(1)


@features.add("pixels", "the pixels themselves")
def _pixels() -> Extractor:
    def of(samples: Tensor) -> Tensor:
        if samples.ndim < 4:
            raise ValueError(f"the features pixels are of pictures (n, C, H, W), not of points {tuple(samples.shape)}; points are `points`")
        return samples.flatten(1)

    return of


@features.add("thumbnail", "the pixels of pictures averaged to 16 × 16")
def _thumbnail() -> Extractor:
    def of(samples: Tensor) -> Tensor:
        if samples.ndim < 4:
            raise ValueError(
                f"the features thumbnail are of pictures (n, C, H, W), not of points {tuple(samples.shape)}; points are `points`"
            )
        size = [min(16, side) for side in samples.shape[-2:]]
        return F.adaptive_avg_pool2d(samples.flatten(1, -3).float(), size).flatten(1)

    return of


@features.add("digits-judge", "the 96 features of a classifier of digits that steers nobody")
def _digits_judge() -> Extractor:
    from ..rewards.digits import judge

    return _network(judge(), lambda net, samples: net.features(samples))


@features.add("cifar-judge", "the 128 features of a classifier of CIFAR-10, on pictures averaged down to 16x16, that steers nobody")
def _cifar_judge() -> Extractor:
    from ..rewards.cifar import judge

    return _network(judge(), lambda net, samples: net.features(samples))


@features.add("captions-judge", "the 864 features of a reader of captioned digits that steers nobody")
def _captions_judge() -> Extractor:
    from ..rewards.captions import judge

    return _network(judge(), lambda net, samples: net.features(samples))


class ClipEmbeddings(FrozenNetwork):
    """Unit embeddings (n, d) of images (n, C, H, W) by a CLIP model; of a video the mean over its frames."""

    name = "clip"

    def __init__(self, checkpoint: str = CMMD) -> None:
        network: Any = hub.pretrained("CLIPVisionModelWithProjection", checkpoint, "--features clip:FOLDER")
        super().__init__(network, Preprocess(network.config.image_size), torch.float32)

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        pixels, frames = self.prepared(samples)
        return F.normalize(pooled(self.network(pixel_values=pixels)), dim=-1).unflatten(0, (-1, frames)).mean(1)


@features.add(
    "clip",
    "unit embeddings of CLIP (ViT-L/14 at 336 pixels)",
    cost="1.7 GB, 4 s per image on one core",
    licence="MIT, not gated",
    example="clip, clip:FOLDER",
)
def _clip(checkpoint: str = CMMD) -> Extractor:
    return ClipEmbeddings(checkpoint)


@features.add(
    "inception",
    "the 2048 features of InceptionV3 as FID reads them (torchmetrics)",
    cost="91 MB",
    licence="Apache-2.0",
    example="inception, inception:FILE",
)
def _inception(file: str | None = None) -> Extractor:
    fid = need("torchmetrics.image.fid", "metrics")
    place = Path(file) if file else Path(torch.hub.get_dir()) / "checkpoints" / Path(INCEPTION).name
    if not place.is_file():
        raise OSError(f"the weights of InceptionV3 are not at {place}: put {INCEPTION} there, or write --features inception:FILE")
    state = hub.state_dict(place)
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity opens any pickle: it is given one of ours, of these tensors alone.
        copy = Path(folder) / "inception.pth"
        torch.save(state, copy)
        try:
            # The published resizing, whose numbers papers report.
            network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(copy), antialias=False)
        except (ModuleNotFoundError, TypeError) as error:
            raise ImportError("the features inception need torch-fidelity and torchmetrics ≥ 1.9: pip install 'viot[metrics]'") from error
        except RuntimeError as error:
            raise ValueError(f"{place} does not hold the weights of FID's InceptionV3") from error

    def reads(net: Any, samples: Tensor) -> Tensor:
        videos = as_videos(samples, "inception")
        frames = videos.shape[1]
        # Eight bits: it reads what a file would hold.
        pixels = (videos.flatten(0, 1).expand(-1, 3, -1, -1) * 255).round().clamp(0, 255).to(torch.uint8)
        return net(pixels).unflatten(0, (-1, frames)).mean(1)

    return _network(network, reads)


__all__ = ["ClipEmbeddings", "Extractor", "check", "extractor", "features", "is_clip", "read", "standard_bandwidth", "summary"]
