"""A vision-language model as the judge: it is shown the sample and the prompt, and answers with a number from 0 to 10."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .endpoint import OPENAI, Endpoint
from .images import as_videos, one_per_sample

QUESTION = (
    "How good a picture of the following is this, in what it shows and in how it looks? {prompt}\n"
    "Answer with one number from 0 (the worst) to 10 (the best) and nothing else."
)
#: PNG's colour types by the number of channels.
COLOUR = {1: 0, 3: 2, 4: 6}


class Judge:
    """r = the number, 0 to 10, that a model behind an OpenAI-compatible endpoint gives the sample. Not differentiable.

    model       its name at the endpoint
    question    what it is asked; `{prompt}` stands for the sample's prompt. Without it the reward needs no prompts
    base_url    of the endpoint, up to and with `/v1`; None = the environment's OPENAI_BASE_URL, else OpenAI's own. vLLM, Ollama, LM Studio,
                llama.cpp and most vendors offer one
    key_from    the environment variable that holds the key: sent to `base_url` alone, read at every request and never kept. Local servers
                mostly want none
    cache       a file of answers (JSON lines, appended to): what was asked before is not asked again, in later runs either
    workers     requests under way at once
    timeout     seconds that one request may take
    retries     how many more times a request is tried after 408, 409, 425, 429, a 5xx, a time-out or a broken connection, with pauses of `wait`,
                2 · `wait`, 4 · `wait`, … seconds up to a minute, or what the server's Retry-After says
    frames      of a video so many, evenly spaced, are shown in one question
    options     further fields of the request; `{"temperature": 0}` unless given

    Samples are images (n, C, H, W), videos (n, F, C, H, W), or a list of n texts. One question is asked per distinct sample and prompt, and scores
    keep the samples' order, whatever that of the answers. An answer without exactly one number in range scores NaN: a fault, counted by the library.
    A request that keeps failing, or that the server refuses, raises ConnectionError: no score is made up for it.
    """

    differentiable = False

    def __init__(
        self,
        model: str,
        question: str = QUESTION,
        *,
        base_url: str | None = None,
        key_from: str = "OPENAI_API_KEY",
        cache: str | Path | None = None,
        workers: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        wait: float = 1.0,
        frames: int = 4,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not model:
            raise ValueError("the judge needs the name of a model, such as judge:gpt-4o-mini, or judge:qwen2.5-vl@http://localhost:8000/v1")
        if frames < 1:
            raise ValueError(f"the judge is shown at least one frame of a video, not {frames}")
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        if url == OPENAI and not os.environ.get(key_from):
            raise ValueError(
                f"the judge would ask {OPENAI}, which needs a key in the environment variable {key_from}; for a server of your own give its "
                f"address: judge:{model}@http://localhost:8000/v1, or OPENAI_BASE_URL"
            )
        self.endpoint = Endpoint(url, key_from, workers, timeout, retries, wait)
        self.model, self.question, self.frames = model, question, frames
        self.options = {"temperature": 0} if options is None else dict(options)
        self.cache = None if cache is None else Path(cache)
        self.asks = ("prompts",) if "{prompt}" in question else ()
        # Another question is another reward.
        mark = "" if question == QUESTION else "#" + hashlib.blake2b(question.encode(), digest_size=3).hexdigest()
        self.name = f"judge:{model}{mark}"
        self.answers = self._read()
        self._told = False

    def __call__(self, samples: Tensor | Sequence[str], prompts: Sequence[str] | None = None) -> Tensor:
        shown = self._shown(samples)
        questions = [self.question] * len(shown)
        if self.asks:
            questions = [self.question.replace("{prompt}", p) for p in one_per_sample(prompts, len(shown), self.name)]
        keys = [self._key(parts, question) for parts, question in zip(shown, questions, strict=True)]
        new = {k: partial(self._body, parts, q) for k, parts, q in zip(keys, shown, questions, strict=True) if k not in self.answers}
        found = {}
        for key, text in self.endpoint.ask_all(new) if new else ():
            found[key] = text
            # What cannot be read now is asked again when it is scored again.
            if not math.isnan(number(text)):
                self._keep(key, text)
        texts = [found[k] if k in found else self.answers[k] for k in keys]
        scores = [number(text) for text in texts]
        strange = next((text for text, score in zip(texts, scores, strict=True) if math.isnan(score)), None)
        if strange is not None and not self._told:
            self._told = True
            warnings.warn(
                f"the judge {self.model} answered {strange[:200]!r}, which is not one number from 0 to 10; it scores NaN, as will others like it",
                UserWarning,
                stacklevel=2,
            )
        return torch.tensor(scores, dtype=torch.float64)

    def _shown(self, samples: Any) -> list[list[bytes | str]]:
        """Of each sample its parts: pictures as PNG files, or a text."""
        if isinstance(samples, (list, tuple)) and all(isinstance(s, str) for s in samples):
            return [[s] for s in samples]
        videos = as_videos(samples, self.name, tuple(COLOUR))
        chosen = torch.linspace(0, videos.shape[1] - 1, min(self.frames, videos.shape[1])).round().long().tolist()
        levels = videos[:, chosen].detach().float().nan_to_num(nan=0.0).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        return [[png(frame) for frame in video] for video in levels]

    def _body(self, parts: list[bytes | str], question: str) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(part).decode()}})
        return {"model": self.model, "messages": [{"role": "user", "content": content}], **self.options}

    def _key(self, parts: list[bytes | str], question: str) -> str:
        mark = hashlib.sha256(repr((self.endpoint.url, self.model, sorted(self.options.items()), question)).encode())
        for part in parts:
            mark.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
        return mark.hexdigest()

    def _read(self) -> dict[str, str]:
        answers = {}
        if self.cache is not None and self.cache.exists():
            for line in self.cache.read_text(encoding="utf-8").splitlines():
                try:
                    held = json.loads(line)
                    answers[held["key"]] = held["answer"]
                except (ValueError, LookupError, TypeError):
                    # A line that an interrupted run left half written.
                    continue
        return answers

    def _keep(self, key: str, text: str) -> None:
        self.answers[key] = text
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "model": self.model, "answer": text}) + "\n")


def number(text: str) -> float:
    """The one number from 0 to 10 in an answer, or NaN: "7", "7.5/10", "I give it 7 out of 10.", not "between 6 and 8"."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    # The scale itself is no score.
    text = re.sub(r"(/|\bof)\s*10(\.0+)?\b", "", text)
    text = re.sub(r"\b0\s*(to|-|–)\s*10\b", "", text)
    found = re.findall(r"[-−]?\d+(?:[.,]\d+)?", text)
    if len(found) != 1:
        return math.nan
    value = float(found[0].replace("−", "-").replace(",", "."))
    return value if 0 <= value <= 10 else math.nan


def png(image: Tensor) -> bytes:
    """One image (C, H, W), uint8 on the CPU with 1, 3 or 4 channels, as a PNG file."""
    channels, height, width = image.shape
    # Every row begins with the number of its filter: 0, none.
    rows = torch.cat([image.new_zeros(height, 1), image.permute(1, 2, 0).reshape(height, -1)], 1).contiguous()
    pixels = zlib.compress(ctypes.string_at(rows.data_ptr(), rows.numel()))
    about = struct.pack(">IIBBBBB", width, height, 8, COLOUR[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", about), (b"IDAT", pixels), (b"IEND", b""))
    )
