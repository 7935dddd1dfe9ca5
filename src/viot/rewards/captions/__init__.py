"""Does a picture of the `captions` model show what its caption says? Read by a small network; the judge beside it is for measuring only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...hub import embedded, moved_to
from ...reward import Scores
from . import nets
from .grammar import Reading, parse

FOLDER = Path(__file__).parent


@cache
def reader() -> nets.Reader:
    """The reward's network: images (n, 3, 48, 48) in [0, 1] -> log-probabilities of layout, digits, colours and strokes."""
    return embedded(nets.reader(), FOLDER / "reader.safetensors")


@cache
def judge() -> nets.Reader:
    """Another architecture, trained on deformed pictures: the referee, not to be steered by. Shapes as `reader`."""
    return embedded(nets.judge(), FOLDER / "judge.safetensors")


class Captions:
    """r(x, caption) = log p(the caption is true of x), by a network that reads layout, digits, colours and strokes. At most 0.

    Where several pictures would make the caption true ("two sevens": side by side or stacked), their probabilities add up. Parts:
    `layout`, `digits` and `style` (colours and strokes said) of the likeliest of them. `caption` stands for the model's prompts if given.
    """

    differentiable = True

    def __init__(self, caption: str | None = None) -> None:
        self.caption = caption
        self.name = "captions" if caption is None else f"captions:{caption}"
        self.asks = ("prompts",) if caption is None else ()
        if caption is not None:
            parse(caption)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt that is not in the language."""
        for prompt in prompts:
            parse(prompt)

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Scores:
        texts = prompts if self.caption is None else [self.caption] * len(samples)
        if texts is None:
            raise ValueError("the reward captions needs one prompt per sample, or a caption of its own: captions:two sevens")
        return score(reader(), samples, texts)


class CaptionsJudge:
    """1 where the judge reads everything that the caption says, in one of its readings, else 0 (`shown`): for measuring, not for steering."""

    name, differentiable, asks = "captions-judge", False, ("prompts",)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt that is not in the language."""
        for prompt in prompts:
            parse(prompt)

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return shown(moved_to(samples, judge()), _pictures(samples), prompts).double()


def score(net: nets.Reader, samples: Tensor, captions: Sequence[str]) -> Scores:
    """The reward by a given reader: samples (n, 3, 48, 48) in [0, 1] and n captions."""
    _pictures(samples)
    read = moved_to(samples, net)(samples)
    rows = [_parts({name: value[i] for name, value in read.items()}, caption) for i, caption in enumerate(captions)]
    return Scores(torch.stack([total for total, _ in rows]), {k: torch.stack([parts[k] for _, parts in rows]) for k in PARTS})


def _pictures(samples: Tensor) -> Tensor:
    if samples.ndim != 4 or tuple(samples.shape[1:]) != (3, nets.SIZE, nets.SIZE):
        raise ValueError(
            f"the captions reward reads pictures (n, 3, {nets.SIZE}, {nets.SIZE}), not {tuple(samples.shape)}; use it with the model "
            f"'captions'"
        )
    return samples


def shown(net: nets.Reader, samples: Tensor, captions: Sequence[str]) -> Tensor:
    """Which pictures (n,) show what their caption says: everything said is what the network finds likeliest, in one of the readings."""
    with torch.no_grad():
        read = {name: value.argmax(1).tolist() for name, value in net(samples).items()}
    return torch.tensor([any(_is({k: v[i] for k, v in read.items()}, way) for way in parse(text)) for i, text in enumerate(captions)])


PARTS = ("layout", "digits", "style")


def _parts(read: dict[str, Tensor], caption: str) -> tuple[Tensor, dict[str, Tensor]]:
    """log p of the caption, and of its likeliest reading's parts, from one picture's log-probabilities."""
    ways = []
    for way in parse(caption):
        layout = read["layout"][way.layout]
        digits, style = torch.zeros_like(layout), torch.zeros_like(layout)
        for place, thing in enumerate(way.things):
            digits = digits + read[f"digit{place}"][thing.digit]
            for what, value in (("colour", thing.colour), ("stroke", thing.stroke)):
                if value is not None:
                    style = style + read[f"{what}{place}"][value]
        ways.append(torch.stack([layout, digits, style]))
    table = torch.stack(ways)
    totals = table.sum(1)
    return torch.logsumexp(totals, 0), dict(zip(PARTS, table[totals.argmax()].unbind(), strict=True))


def _is(read: dict[str, int], way: Reading) -> bool:
    return read["layout"] == way.layout and all(
        read[f"digit{place}"] == thing.digit
        and thing.colour in (None, read[f"colour{place}"])
        and thing.stroke in (None, read[f"stroke{place}"])
        for place, thing in enumerate(way.things)
    )
