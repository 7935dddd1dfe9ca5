"""The small networks that read a text, and how a text becomes numbers for them: words and pieces of words, hashed, so that any text has some."""

from __future__ import annotations

import zlib
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..text import words

#: Rows of the embedding tables; row 0 is nothing.
BAG, WORDS, ENDINGS = 2**15, 2**13, 2**12
START = "<s>"


def bucket(text: str, size: int) -> int:
    """1 … size − 1, by what the text is."""
    return zlib.crc32(text.encode()) % (size - 1) + 1


@lru_cache(1 << 16)
def _pieces(word: str) -> list[int]:
    """The word, and its runs of 3 to 5 characters, its ends marked."""
    marked = f"<{word}>"
    runs = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1) if n < len(marked)]
    return [bucket(word, BAG), *(bucket(f"c{run}", BAG) for run in runs)]


@lru_cache(1 << 16)
def _pair(word: str) -> tuple[int, int]:
    return bucket(word, WORDS), bucket(f"-{word[-3:]}", ENDINGS)


def bag(text: str) -> list[int]:
    """What `Bag` reads: every word, its pieces, and every two neighbours."""
    tokens = words(text)
    pairs = [bucket(f"{a} {b}", BAG) for a, b in zip(["<", *tokens], [*tokens, ">"], strict=True)]
    return [i for token in tokens for i in _pieces(token)] + pairs


def sequence(texts: list[list[str]]) -> Tensor:
    """What `Convolution` reads: (n, length, 2), of every word its index and that of its ending; 0 after the text."""
    rows = [[_pair(token) for token in (START, *tokens)] for tokens in texts]
    longest = max(map(len, rows), default=0)
    return torch.tensor([row + [(0, 0)] * (longest - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), longest, 2)


class Bag(nn.Module):
    """The mean of embeddings of hashed words, their pieces and pairs, and a linear layer (fastText, arXiv 1607.01759): -> logits (n, 2)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BAG, width, mode="mean")
        self.out = nn.Linear(width, 2)

    def forward(self, rows: list[list[int]]) -> Tensor:
        flat = torch.tensor([i for row in rows for i in row], dtype=torch.long)
        starts = torch.tensor([0, *(len(row) for row in rows)])[:-1].cumsum(0)
        return self.out(self.table(flat, starts))

    def read(self, texts: list[str]) -> Tensor:
        return self([bag(text) for text in texts])


class Convolution(nn.Module):
    """Embedded words and endings, convolutions over 2, 3 and 5 of them, the largest answer of each (arXiv 1408.5882): -> logits (n, 2)."""

    def __init__(self, width: int = 32, features: int = 96, spans: tuple[int, ...] = (2, 3, 5), dropout: float = 0.3) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.endings = nn.Embedding(ENDINGS, width, padding_idx=0)
        self.spans = nn.ModuleList(nn.Conv1d(width, features, span, padding=span // 2) for span in spans)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(features * len(spans), 2)

    def forward(self, x: Tensor) -> Tensor:
        there = (x[..., 0] > 0)[:, None]
        embedded = self.dropout(self.words(x[..., 0]) + self.endings(x[..., 1])).mT
        # After the text stand zeros, as if it were the longest: padding changes nothing.
        found = [torch.relu(span(embedded)[..., : x.shape[1]]).masked_fill(~there, 0.0).amax(2) for span in self.spans]
        return self.out(self.dropout(torch.cat(found, 1)))

    def read(self, texts: list[str]) -> Tensor:
        return self(sequence([words(text) for text in texts]))
