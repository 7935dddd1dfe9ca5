"""How diverse a set of texts is. A steered set can be perfect and all the same: say this beside the reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from ..rewards.text import as_texts, words


def ngrams(text: str, n: int, characters: bool = False) -> list[tuple[str, ...]]:
    """Every run of n words (as `viot.rewards.text.words` splits them), or of n characters."""
    if n < 1:
        raise ValueError(f"an n-gram has n ≥ 1, not {n}")
    units = list(text) if characters else words(text)
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


def distinct(texts: Sequence[str], n: int = 1, *, characters: bool = False) -> float:
    """Distinct-n (arXiv 1510.03055): different n-grams of all texts / n-grams of all texts. 0 if no text has n words.

    It falls as texts grow longer or more: compare sets of the same size only.
    """
    found = [gram for text in as_texts(texts, "distinct") for gram in ngrams(text, n, characters)]
    return len(set(found)) / len(found) if found else 0.0


def ngram_kernel(texts: Sequence[str], n: int = 1, *, characters: bool = False) -> Tensor:
    """(m, m) cosines of the texts' n-gram counts, for `vendi`. Texts too short for any n-gram are like each other and like no other."""
    counts = [Counter(ngrams(text, n, characters)) for text in as_texts(texts, "ngram_kernel")]
    places = {gram: i for i, gram in enumerate({gram: None for count in counts for gram in count})}
    table = torch.zeros(len(counts), len(places) + 1, dtype=torch.float64)
    for row, count in zip(table, counts, strict=True):
        for gram, times in count.items():
            row[places[gram]] = times
        row[-1] = not count
    return cosine(table)


def cosine(features: Tensor) -> Tensor:
    """(m, m) cosines between features (m, d), in float64. Features of length 0 have cosine 0 with everything but themselves."""
    if features.ndim != 2:
        raise ValueError(f"features must be (m, d), not {tuple(features.shape)}")
    unit = F.normalize(features.detach().cpu().double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(1.0)


def vendi(kernel: Tensor, weights: Tensor | None = None) -> float:
    """The Vendi score (arXiv 2210.02410), exp(−Tr K/m ln K/m): how many different samples there are, from 1 (all alike) to m (nothing alike).

    kernel    (m, m), symmetric, positive semidefinite, ones on the diagonal: `ngram_kernel(texts)`, `cosine(embeddings)`
    weights   (m,) ≥ 0, such as a population's: K/m becomes √w K √w with w that sums to 1 (arXiv 2210.02410, section 3). None = equal
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
        raise ValueError(f"the kernel must be (m, m) with m ≥ 1, not {tuple(kernel.shape)}")
    k = kernel.detach().cpu().double()
    if not bool(k.isfinite().all()) or not torch.allclose(k, k.T, atol=1e-6):
        raise ValueError("the kernel must be finite and symmetric")
    if not torch.allclose(k.diagonal(), torch.ones(len(k), dtype=k.dtype), atol=1e-6):
        raise ValueError("the kernel must have ones on its diagonal: a sample is like itself")
    w = torch.ones(len(k), dtype=k.dtype) if weights is None else weights.detach().cpu().double()
    if w.shape != k.shape[:1]:
        raise ValueError(f"{len(k)} samples need as many weights, not {tuple(w.shape)}")
    if not bool((w.isfinite() & (w >= 0)).all()) or not float(w.sum()) > 0:
        raise ValueError("weights must be finite and ≥ 0, and not all 0")
    root = (w / w.sum()).sqrt()
    spectrum = torch.linalg.eigvalsh(root[:, None] * k * root)
    if float(spectrum[0]) < -1e-6:
        raise ValueError(f"the kernel must be positive semidefinite; it has the eigenvalue {float(spectrum[0]) * len(k):.3g}")
    return float(torch.special.entr(spectrum.clamp_min(0)).sum().exp())


__all__ = ["cosine", "distinct", "ngram_kernel", "ngrams", "vendi"]
