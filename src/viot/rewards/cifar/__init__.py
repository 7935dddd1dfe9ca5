"""What a small classifier reads in a photograph of CIFAR-10's classes. The judge beside it is for measuring only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from ...hub import embedded, moved_to, state_dict
from ...registry import unknown
from ..images import as_pictures
from .nets import SIDE, Classifier, Judge, ResNet20

FOLDER = Path(__file__).parent
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@cache
def classifier() -> Classifier:
    """The reward's classifier: images (n, 3, 16, 16) in [0, 1] -> logits (n, 10)."""
    return embedded(Classifier(), FOLDER / "classifier.safetensors")


@cache
def judge() -> Judge:
    """Another architecture, trained on other augmentations: the referee, not to be steered by. Larger pictures are averaged down to 16x16."""
    return embedded(Judge(), FOLDER / "judge.safetensors")


@cache
def resnet20(file: str) -> ResNet20:
    """The network of a published file, 32x32 images -> logits; OSError or ValueError if it is not there or holds another one."""
    if not Path(file).expanduser().is_file():
        raise OSError(f"there is no {file}; give the ResNet-20 of github.com/akamaster/pytorch_resnet_cifar10 as cifar-resnet:cat@FILE")
    net = ResNet20()
    try:
        # It was saved from several devices at once.
        net.load_state_dict({key.removeprefix("module."): value for key, value in state_dict(Path(file).expanduser()).items()})
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold the weights of CIFAR's ResNet-20: {str(error).splitlines()[-1].strip()}") from error
    return net.eval().requires_grad_(False)


class Cifar:
    """r(x) = max over `wanted` of log p(c | x): for one class its log-probability. At most 0.

    wanted    names of CIFAR-10's classes
    weights   the file of a published ResNet-20 (8.3 % error on the test images), which reads 32x32; None = the classifier that comes with the
              package, which reads 16x16 and pictures of a multiple of that, averaged down
    """

    differentiable = True

    def __init__(self, wanted: Sequence[str], weights: str | Path | None = None) -> None:
        for name in wanted:
            if name not in CLASSES:
                raise unknown("class of CIFAR-10", name, CLASSES)
        if not wanted:
            raise ValueError(f"wanted must name classes of CIFAR-10: {', '.join(CLASSES)}")
        self.wanted = sorted({CLASSES.index(name) for name in wanted})
        self.network: nn.Module = classifier() if weights is None else resnet20(str(weights))
        self.side = SIDE if weights is None else 2 * SIDE
        named = ",".join(CLASSES[c] for c in self.wanted)
        self.name = f"cifar:{named}" if weights is None else f"cifar-resnet:{named}@{weights}"

    def __call__(self, samples: Tensor) -> Tensor:
        high, wide = (*as_pictures(samples, self.name).shape[-2:], 0, 0)[:2]
        if samples.ndim != 4 or samples.shape[1] != 3 or high != wide or high % self.side:
            raise ValueError(
                f"the reward {self.name} reads colour pictures (n, 3, {self.side}, {self.side}), or a multiple of that, not "
                f"{tuple(samples.shape)}; use it with the model 'cifar16' or 'google/ddpm-cifar10-32'"
            )
        return F.log_softmax(moved_to(samples, self.network)(samples), -1)[:, self.wanted].amax(-1)
