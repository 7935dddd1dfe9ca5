"""How likely a text is under an interpolated Kneser–Ney n-gram model, of characters or of words."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..text import as_texts, words

Unit = Literal["characters", "words"]
#: What a table holds: sorted n-grams with their counts, sorted contexts with their totals.
NAMES = ("grams", "counts", "contexts", "totals")
UNITS = {"characters": list, "words": words}


class NGram:
    r"""Interpolated Kneser–Ney (Chen & Goodman 1999, with one discount D_k per order k), from order n down to the uniform law:

        p(w | h) = max(c(h w) − D_k, 0) / c(h) + λ(h) p(w | h without its first token),    λ(h) = 1 − Σ_w max(c(h w) − D_k, 0) / c(h)

    c counts occurrences at the highest order and different left neighbours below it; a text begins with n − 1 start tokens, before which
    nothing stands, so what begins there keeps its occurrences; it closes with an end token. p sums to 1 over the vocabulary: the tokens seen at
    least `min_count` times, the end, and <unk>, which all rarer ones are. One token that is not in the vocabulary counts as one of the rare
    types that were, p(<unk>) / `rare`: else the unknown would be the likeliest of words.

    `NGram.fit(texts, order, unit)`, or `NGram.load(file)`. Tables are int64 tensors; probabilities float64.
    """

    def __init__(
        self, order: int, unit: Unit, vocabulary: Sequence[str], rare: int, discounts: Sequence[float], tables: Sequence[dict[str, Tensor]]
    ) -> None:
        self.order, self.unit, self.rare, self.discounts = order, unit, rare, list(discounts)
        self.vocabulary = list(vocabulary)
        self.tables = [{key: value.long().contiguous() for key, value in table.items()} for table in tables]
        self._ids = {token: i for i, token in enumerate(self.vocabulary)}
        for table, discount in zip(self.tables, self.discounts, strict=True):
            kept = torch.zeros(len(table["contexts"]), dtype=torch.float64)
            at = torch.searchsorted(table["contexts"], table["grams"] // self.base)
            kept.index_add_(0, at, (table["counts"].double() - discount).clamp_min(0))
            table["backoff"] = 1 - kept / table["totals"]

    @property
    def end(self) -> int:
        """The index of the end token; that of <unk> comes after it."""
        return len(self.vocabulary)

    @property
    def size(self) -> int:
        """How many tokens may come next: the vocabulary, the end and <unk>."""
        return len(self.vocabulary) + 2

    @property
    def base(self) -> int:
        """n-grams are written as numbers in this base, whose last digit is the start token."""
        return self.size + 1

    @classmethod
    def fit(cls, texts: Iterable[str], order: int, unit: Unit = "words", *, min_count: int = 1, prune: int = 0) -> NGram:
        """Count the texts.

        order       n: 3 is a trigram model
        min_count   tokens seen less often are <unk>
        prune       n-grams of the highest order that were seen at most so often are left out; their mass goes to the lower order
        """
        if order < 1 or unit not in UNITS:
            raise ValueError(f"an n-gram model has an order ≥ 1 and a unit of {', '.join(UNITS)}, not {order} and {unit!r}")
        split = [UNITS[unit](text) for text in as_texts(list(texts), "NGram")]
        if not split:
            raise ValueError("an n-gram model needs texts to count")
        seen = Counter(token for tokens in split for token in tokens)
        vocabulary = sorted(token for token, times in seen.items() if times >= min_count)
        ids = {token: i for i, token in enumerate(vocabulary)}
        end, unknown, start = len(ids), len(ids) + 1, len(ids) + 2
        if (len(ids) + 3) ** order >= 2**63:
            raise ValueError(f"{len(ids)} tokens are too many for order {order}; raise min_count or lower the order")
        grams: Counter[tuple[int, ...]] = Counter()
        for tokens in split:
            row = [start] * (order - 1) + [ids.get(token, unknown) for token in tokens] + [end]
            grams.update(zip(*(row[i:] for i in range(order)), strict=False))
        counts, discounts, tables = grams, [], []
        for k in range(order, 0, -1):
            discounts.insert(0, _discount(counts))
            tables.insert(0, _table(counts, len(ids) + 3, prune if k == order > 1 else 0))
            lower: Counter[tuple[int, ...]] = Counter()
            for gram, times in counts.items():
                # Nothing stands before the start, so its grams have no left neighbours to tell apart.
                lower[gram[1:]] += times if gram[1:2] == (start,) else 1
            counts = lower
        return cls(order, unit, vocabulary, max(1, len(seen) - len(vocabulary)), discounts, tables)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, the end token last."""
        return [self._ids.get(token, self.end + 1) for token in UNITS[self.unit](text)] + [self.end]

    def log_prob(self, history: Tensor, token: Tensor) -> Tensor:
        """log p(token | history), (m,): history (m, n − 1), the start token `size` where there is none yet; token (m,)."""
        p = torch.full(token.shape, 1 / self.size, dtype=torch.float64)
        context, weight = torch.zeros_like(token), 1
        for k, table in enumerate(self.tables):
            if k:
                context, weight = context + history[:, -k] * weight, weight * self.base
            count, _ = _look_up(table["grams"], table["counts"], context * self.base + token)
            total, seen = _look_up(table["contexts"], table["totals"], context)
            backoff, _ = _look_up(table["contexts"], table["backoff"], context)
            direct = (count.double() - self.discounts[k]).clamp_min(0) / total.clamp_min(1)
            p = torch.where(seen, direct + backoff * p, p)
        return p.log()

    def total(self, texts: Sequence[str]) -> Tensor:
        """−log p of each text with its end, in nats, (n,)."""
        return self._read(texts)[0]

    def nll(self, texts: Sequence[str]) -> Tensor:
        """−log p per token, in nats, (n,). The end is a token too, so an empty text has one."""
        total, tokens = self._read(texts)
        return total / tokens

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [self.encode(text) for text in as_texts(texts, "NGram")]
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.long)
        padded = [[self.size] * (self.order - 1) + row for row in rows]
        grams = [row[i : i + self.order] for row in padded for i in range(len(row) - self.order + 1)]
        flat = torch.tensor(grams, dtype=torch.long).reshape(-1, self.order)
        cost = -self.log_prob(flat[:, :-1], flat[:, -1])
        cost += (flat[:, -1] == self.end + 1) * torch.tensor(self.rare, dtype=torch.float64).log()
        owner = torch.arange(len(rows)).repeat_interleave(sizes)
        return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, cost), sizes

    def fingerprint(self) -> str:
        """A short name of what was counted."""
        mark = hashlib.blake2b(repr((self.order, self.unit, self.rare, self.vocabulary)).encode(), digest_size=6)
        for table in self.tables:
            for name in NAMES:
                mark.update(repr(table[name].tolist()).encode())
        return mark.hexdigest()

    def save(self, file: str | Path) -> None:
        """Write it as safetensors, its settings in the header."""
        letters = json.dumps(self.vocabulary, ensure_ascii=False, separators=(",", ":")).encode()
        tensors = {"vocabulary": torch.tensor(list(letters), dtype=torch.uint8)}
        for k, table in enumerate(self.tables, 1):
            tensors |= {f"{name}.{k}": _narrow(table[name]) for name in NAMES}
        about = {"order": self.order, "unit": self.unit, "rare": self.rare, "discounts": self.discounts}
        save_file(tensors, file, metadata={"ngram": json.dumps(about)})

    @classmethod
    def load(cls, file: str | Path) -> NGram:
        """What `save` wrote."""
        with safe_open(file, framework="pt") as held:
            about = (held.metadata() or {}).get("ngram")
            if about is None:
                raise ValueError(f"{file} holds no n-gram model; NGram.save writes one")
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (no mapping)
        about = json.loads(about)
        tables = [{name: tensors[f"{name}.{k}"] for name in NAMES} for k in range(1, about["order"] + 1)]
        return cls(tables=tables, vocabulary=json.loads(bytes(tensors["vocabulary"].tolist())), **about)


def _discount(counts: Counter[tuple[int, ...]]) -> float:
    """D = n1 / (n1 + 2 n2) of how many grams were counted once and twice; kept from 0 and 1, where every token would go to one side."""
    times = Counter(counts.values())
    return min(0.95, max(0.05, times[1] / max(1, times[1] + 2 * times[2])))


def _table(counts: Counter[tuple[int, ...]], base: int, prune: int) -> dict[str, Tensor]:
    """Sorted grams with their counts and sorted contexts with their totals; contexts with nothing left are left out."""
    kept, totals, alive = [], Counter[int](), set()
    for gram, times in counts.items():
        number = 0
        for digit in gram:
            number = number * base + digit
        totals[number // base] += times
        if times > prune:
            kept.append((number, times))
            alive.add(number // base)
    grams = torch.tensor(sorted(kept), dtype=torch.long).reshape(-1, 2)
    contexts = torch.tensor(sorted((c, n) for c, n in totals.items() if c in alive), dtype=torch.long).reshape(-1, 2)
    return {"grams": grams[:, 0], "counts": grams[:, 1], "contexts": contexts[:, 0], "totals": contexts[:, 1]}


def _look_up(keys: Tensor, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the wanted keys, 0 where there are none, and where there are."""
    if not len(keys):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    found = keys[at] == wanted
    return torch.where(found, values[at], 0), found


def _narrow(values: Tensor) -> Tensor:
    """The smallest type of whole numbers that holds them."""
    high = int(values.max()) if len(values) else 0
    return next(values.to(t).contiguous() for t in (torch.uint8, torch.int16, torch.int32, torch.int64) if high <= torch.iinfo(t).max)
