"""Prompts are encoded once: what stands in for a pipeline's `encode_prompt`."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Keywords that hold one text per row. Others with a prompt in their name (a system's, a template) go with all rows.
TEXT = re.compile(r"(negative_)?prompt(_\d)?")


def count_of(parameters: Iterable[str]) -> str | None:
    """The parameter that says how many samples a prompt has, by whatever name."""
    return next((name for name in parameters if name.startswith("num_") and name.endswith("_per_prompt")), None)


class Uneven(Exception):
    """Prompts whose encodings can't stand beside each other: they can't share a call."""


class _Unknown(Exception):
    """A value that no key can be made of."""


class Encoder:
    """A pipeline's `encode_prompt` that encodes every prompt once, by itself, and answers from memory."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.encode = pipe, pipe.encode_prompt
        self.parameters = inspect.signature(self.encode).parameters
        self.count = count_of(self.parameters)
        self.parts = [name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]
        self.known: dict[Any, list[Any]] = {}
        self.ways: dict[Any, list[str]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rest = dict(zip(self.parameters, args, strict=False)) | kwargs
        repeats = rest.get(self.count, 1) if self.count is not None else 1
        columns = {n: [v] if isinstance(v, str) else v for n, v in rest.items() if TEXT.fullmatch(n) and isinstance(v, (str, list))}
        # A prompt and what goes with it: texts for one prompt go with every prompt.
        rows = len(columns.get("prompt", ()))
        columns = {n: v * rows if len(v) == 1 else v for n, v in columns.items()}
        others = {n: v for n, v in rest.items() if n not in columns}
        try:
            about = _key({n: v for n, v in others.items() if n != self.count})
        except _Unknown:
            about = None
        # Tensors with a row for each prompt can't be taken apart: which row is whose is the pipeline's knowledge.
        given = any(isinstance(v, Tensor) and ("prompt" in n or "embeds" in n or v.shape[:1] != (1,)) for n, v in others.items())
        if about is None or given or not rows or any(len(v) != rows or not all(isinstance(x, str) for x in v) for v in columns.values()):
            return self.encode(*args, **kwargs)
        about = (about, self._where("device" in rest))
        texts = list(zip(*columns.values(), strict=True))
        distinct = list(dict.fromkeys(texts))

        def encoded(rows: list[tuple[str, ...]], times: int = 1) -> list[Any]:
            count = {} if self.count is None else {self.count: times}
            with torch.no_grad():
                found = self.encode(**others | count, **dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
            return list(found) if isinstance(found, tuple) else [found]

        for row in distinct:
            self._remember((about, row), lambda row=row: encoded([row]))
        pieces = [self.known[about, row] for row in distinct]
        index = [distinct.index(row) for row in texts for _ in range(repeats)]
        if len(index) == 1:
            return _answer(pieces[0])
        if about not in self.ways:
            # What doubles with a second prompt is the prompts' own; what stays the same (positions, say) is shared.
            self.ways[about] = [_way(one, two) for one, two in zip(pieces[0], encoded(distinct[:1] * 2), strict=True)]
        ways = self.ways[about]
        if "other" not in ways:
            self._remember((about, tuple(distinct)), lambda: _check_even(pieces, ways))
            return _answer([_pick([piece[i] for piece in pieces], index) if way == "rows" else pieces[0][i] for i, way in enumerate(ways)])
        if len(distinct) > 1:
            raise Uneven
        return _answer(self._remember((about, distinct[0], len(texts), repeats), lambda: encoded(texts, repeats)))

    def _remember(self, key: Any, make: Callable[[], list[Any]]) -> list[Any]:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def _where(self, told: bool) -> tuple[Any, ...]:
        """The pipeline's precision and, if no argument says it, its device: one that has moved encodes anew."""
        first = (next(iter(getattr(self.pipe, name).parameters()), None) for name in self.parts if getattr(self.pipe, name) is not None)
        return (None if told else str(self.pipe._execution_device), *(None if weight is None else weight.dtype for weight in first))


def _answer(found: list[Any]) -> Any:
    return tuple(found) if len(found) > 1 else found[0]


def _way(one: Any, two: Any) -> str:
    """How an output of the encoder depends on the number of prompts: "rows", "same", or "other"."""
    if isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim:
        if len(one) == 1 and two.shape == (2, *one.shape[1:]):
            return "rows"
        return "same" if one.shape == two.shape and torch.equal(one, two) else "other"
    if isinstance(one, list) and isinstance(two, list):
        return "rows" if len(one) == 1 and len(two) == 2 else "other"
    return "same" if type(one) is type(two) and bool(one == two) else "other"


def _check_even(pieces: list[list[Any]], ways: list[str]) -> list[Any]:
    """Raises Uneven unless these prompts' encodings have the same shapes, and the same of what all rows share."""
    for i, way in enumerate(ways):
        for piece in pieces:
            one, two = pieces[0][i], piece[i]
            if type(one) is not type(two) or (isinstance(one, Tensor) and one.shape != two.shape):
                raise Uneven
            if way == "same" and _way(one, two) != "same":
                raise Uneven
    return []


def _pick(pieces: list[Any], index: list[int]) -> Any:
    """The rows of one output of an encoder, put together from those of the prompts that occur."""
    if isinstance(pieces[0], list):
        return [pieces[i][0] for i in index]
    if len(pieces) == 1:
        return pieces[0].expand(len(index), *pieces[0].shape[1:])
    return torch.cat(pieces)[torch.tensor(index, device=pieces[0].device)]


def _key(value: Any) -> Any:
    """Something hashable that is the same for equal values, pictures and tensors by their contents."""
    if value is None or isinstance(value, (str, int, float, torch.device, torch.dtype)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_key(v) for v in value)
    if isinstance(value, dict):
        return tuple((name, _key(v)) for name, v in sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy()
    if callable(raw := getattr(value, "tobytes", None)):
        shape = getattr(value, "shape", None) or getattr(value, "size", None)
        data: Any = raw()
        return type(value).__name__, shape, hashlib.blake2b(data, digest_size=8).hexdigest()
    raise _Unknown


def said(value: Any) -> Any:
    """A keyword's value for the record: plain ones as they are, others by their type and a hash of their contents."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [said(v) for v in value]
    if isinstance(value, dict):
        return {str(name): said(v) for name, v in value.items()}
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {hashlib.blake2b(value.detach().cpu().float().numpy().tobytes(), digest_size=6).hexdigest()}"
    try:
        return " ".join(map(str, _key(value)))
    except _Unknown:
        return type(value).__name__
