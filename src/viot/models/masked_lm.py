r"""Masked diffusion language models: a network that says what stands behind each mask, as a Model over tokens.

    x_t = x0 with every token masked with probability σ_t = 1 − α_t;      p(x0_ℓ | x_t) = softmax(network(x_t))_ℓ   where x_t is masked

SUBS parameterisation (MDLM, arXiv 2406.07524, section 3.2.3): the mask is never drawn, and what is revealed stays. Everything that moves a
state is in the kernel, `viot.Categorical`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernel import Categorical, double
from ..model import Grid, Prediction
from .tokens import NOTHING, Tokenizer, as_rows, before_told
from .unet import digest


class MaskedLM:
    """A network over tokens as a Model: tokens (n, length) -> logits (n, length, vocabulary).

    network      tokens -> logits; with `timed`, (tokens, t) -> logits, t (n,) the share that is masked. What it returns is written to
    at_masks     the network is called with (tokens, masked), masked (n, length) bool, and returns (m, vocabulary) for those m positions alone:
                 the others are never asked about, and the head of a small network is a third of its work
    tokenizer    text -> ids -> pieces of text, see `viot.models.tokens`
    length       of every sequence
    mask_id      the token that stands for nothing yet. The network may have a logit for it, which is never used
    barred       tokens that are never drawn, beside the mask: "unknown word" and the like
    end_id       the token that ends a text and fills what is left of the sequence; None if texts have the full length
    padded       what follows the end of a text is end tokens and nothing else, as in all that the network was trained on: so no other token is
                 drawn behind an end that is revealed, and no end before another token that is
    prompt       what is given: a text that begins with it, or one with free places, "[MASK:3]a", "one [MASK:*] two"; a list makes one group
                 each. Given tokens stay. A text can't end before a given token
    order        "random": the ancestral sampler of MDLM, each mask by itself. Or as many per step, as evenly as they can be: "first-hitting"
                 anywhere (one per step when steps = length: the law of infinitely many ancestral steps, arXiv 2409.02908), "confidence"
                 where the network is surest, "left" from the left
    remask       largest probability of a token to be masked again in a step (ReMDM-cap, arXiv 2503.00307)
    block        tokens per block, revealed one block after the other from the left (semi-autoregressive, LLaDA); not with order="random"
    temperature  divides the logits; with top_p, the least likely tokens of total probability 1 − top_p are never drawn. Both make another
                 model, to which all weights refer
    start        tokens (prompts, length) that stand in place of what the tokenizer makes of the prompts, `tokens.NOTHING` where a row has no
                 place; its first `skip` columns are no part of a text (what comes before it: a chat template, a token that begins texts)
    cached       ask the network once about rows that are equal or were there in the step before. Needs a network without `timed`.
                 Spends fewer network rows than the budget (ddpm_cache of MDLM), most of all with more steps than tokens
    """

    dtype = torch.long
    differentiable = False

    def __init__(
        self,
        network: Callable[..., Tensor],
        tokenizer: Tokenizer,
        *,
        length: int,
        mask_id: int,
        end_id: int | None = None,
        barred: Sequence[int] = (),
        padded: bool = False,
        prompt: str | list[str] | None = None,
        order: Any = "random",
        remask: float = 0.0,
        block: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        timed: bool = False,
        at_masks: bool = False,
        start: Tensor | None = None,
        skip: int = 0,
        cached: bool = False,
        device: str | torch.device = "cpu",
        config: dict[str, Any] | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, not {temperature}: at 0 nothing is drawn, and there is nothing to steer")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is a share of probability in (0, 1], not {top_p}")
        if block is not None and block < 1:
            raise ValueError(f"a block holds at least one token, not {block}")
        if block is not None and order == "random":
            raise ValueError('blocks are revealed by a counted order: give order="first-hitting", "confidence" or "left" with block')
        if at_masks and timed:
            raise ValueError("a network is called with the masked positions or with the time, not with both: choose at_masks or timed")
        if padded and end_id is None:
            raise ValueError("padded says what follows the end of a text, and there is no end_id")
        if cached and timed:
            raise ValueError("a network that is told the time has no answer to keep for the next step: leave cached out")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if prompts is not None and not (isinstance(prompts, (list, tuple)) and all(isinstance(p, str) for p in prompts)):
            raise TypeError(f"prompt takes a text or a list of texts, one per group, not {prompt!r}")
        if prompts is not None and not prompts:
            raise ValueError("prompt is an empty list; give one text per group, or leave it out")
        self.network, self.tokenizer, self.timed, self.at_masks, self.timeless = network, tokenizer, timed, at_masks, cached
        self.length, self.mask_id, self.end_id, self.device = length, mask_id, end_id, torch.device(device)
        self.event_shape, self.prompts, self.block, self.temperature, self.top_p = (length,), prompts, block, temperature, top_p
        self.barred, self.padded = (mask_id, *barred), padded
        self.kernel = Categorical(mask_id, order=order, remask=remask)
        self.skip, given = skip, as_rows(prompts, tokenizer, length, mask_id, end_id) if start is None else start
        self.start = given.to(self.device)
        self.endless = before_told(self.start, mask_id, end_id)
        settings = {"prompt": prompts, "order": order, "remask": remask, "block": block, "temperature": temperature, "top_p": top_p}
        # Retrained is another model, whose runs go on from nobody else's checkpoint.
        weights = {"weights": digest(network, sums=False)} if isinstance(network, torch.nn.Module) else {}
        self.config = {**(config or {}), "length": length, "cached": cached, "padded": padded, **weights, **settings}

    # -- the contract -------------------------------------------------------------------------------------------------------------

    def grid(self, steps: int) -> Grid:
        """Equal steps of the share that is revealed: the log-linear schedule of MDLM. Times are the shares that are masked."""
        if self.block is not None and steps < (n := self.count()):
            raise ValueError(
                f"{n} blocks are revealed one after the other in at least {n} steps, not {steps}: give steps ≥ {n}, or larger blocks"
            )
        revealed = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return Grid(1 - revealed[:-1], revealed, 1 - revealed)

    def prior(self, n: int, generator: torch.Generator, group: Tensor | None = None) -> Tensor:
        """Masks, and what the prompt of each row's group gives. Nothing is drawn."""
        return self._rows(self.start, torch.zeros(n, dtype=torch.long) if group is None else group).clone()

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        logits = self._answer(x, t)
        if logits.is_inference() or 0 in logits.stride():
            # Not ours to write to.
            logits = logits.clone()
        for token in self.barred:
            if token < logits.shape[-1]:
                logits[..., token] = -torch.inf
        if self.padded:
            self._ended(logits, x, group)
        elif self.end_id is not None and bool(self.endless.any()):
            logits[..., self.end_id].masked_fill_(self._rows(self.endless, group), -torch.inf)
        extra: dict[str, Tensor] = {}
        if self.temperature != 1 or self.top_p < 1:
            # Where it is sure is the network's own matter (LLaDA): a low temperature would be sure of everything.
            extra["sure"] = logits.softmax(-1).amax(-1)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_p < 1:
            logits = nucleus(logits, self.top_p)
        if self.kernel.remask:
            extra["given"] = self._rows(self.start != self.mask_id, group)
        if self.block is not None:
            extra["block"] = self._rows(self.blocks(), group)
        # Tokens have no mean. The fill of the masks is the kernel's guess, made where somebody asks for it: it costs a pass over all logits.
        return Prediction(x, logits=logits, extra=extra)

    def _answer(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's logits (rows, length, vocabulary); 0 where it was not asked."""
        if not self.at_masks:
            return self.network(x, t) if self.timed else self.network(x)
        masked = x == self.mask_id
        found = self.network(x, masked)
        return found.new_zeros(*x.shape, found.shape[-1]).index_put_((masked,), found)

    def _ended(self, logits: Tensor, x: Tensor, group: Tensor) -> None:
        """What ends have been revealed of x (rows, length), and what has been that is none, put into the logits of the masks around."""
        behind = (x == self.mask_id) & self._over(x, group)
        ahead = before_told(x, self.mask_id, self.end_id) & ~behind
        logits[behind] = -torch.inf
        logits[(*behind.nonzero(as_tuple=True), self.end_id)] = 0.0
        logits[(*ahead.nonzero(as_tuple=True), self.end_id)] = -torch.inf

    def _over(self, x: Tensor, group: Tensor) -> Tensor:
        """(rows, length) bool: the free places from the first end on that stands in one of them."""
        free = self._rows(self.start == self.mask_id, group)
        return free & (((x == self.end_id) & free).cumsum(1) > 0)

    def decode(self, x0: Tensor, group: Tensor) -> list[str]:
        """Each text up to its first end token; a mask that is still there shows as an underscore."""
        return ["".join(pieces) for pieces in self.pieces(x0)]

    # -- more ---------------------------------------------------------------------------------------------------------------------

    def pieces(self, x0: Tensor) -> list[list[str]]:
        """The piece of text that each token (rows, length) stands for, "" from the first end token on; joined, they are the text."""
        out = []
        for row in x0.cpu().tolist():
            n = row.index(self.end_id, self.skip) if self.end_id in row[self.skip :] else len(row)
            text = row[self.skip : n]
            shown = self.tokenizer.pieces([token if token != self.mask_id else -1 for token in text])
            shown = ["_" if token == self.mask_id else piece for token, piece in zip(text, shown, strict=True)]
            out.append([""] * self.skip + shown + [""] * (len(row) - n))
        return out

    def encode(self, texts: list[str], group: Tensor | None = None) -> Tensor:
        """Tokens (n, length) of whole texts, followed by end tokens; `group` (n,) tells what comes before them, where that differs."""
        starts = self._rows(self.start, torch.zeros(len(texts), dtype=torch.long) if group is None else group)
        end = [] if self.end_id is None else [self.end_id]
        rows = []
        for text, start in zip(texts, starts.cpu().tolist(), strict=True):
            row, room = self.tokenizer.encode(text), sum(token != NOTHING for token in start[self.skip :])
            if len(row) > room or (len(row) < room and not end):
                raise ValueError(f"{text!r} has {len(row)} tokens, and a text of this model has {room}")
            rows.append(start[: self.skip] + row + end * (room - len(row)) + [NOTHING] * (self.length - self.skip - room))
        return torch.tensor(rows).to(self.device)

    def nll(
        self, x0: Tensor, group: Tensor | None = None, draws: int = 16, generator: torch.Generator | None = None, batch_size: int = 256
    ) -> Tensor:
        """An upper bound on −log p(x0 | what is given) in nats per text, (rows,) float64, estimated without bias from `draws` network calls of
        each, `batch_size` rows at a time. +inf where a text is not what is given.

        E over k = 1 … n, evenly, and over which k of the n free tokens are masked, of (n/k) Σ −log p (the form of LLaDA, arXiv 2502.09992,
        eq. 6, equal to MDLM's integral over t). The k are spread out over the draws.
        """
        generator = generator or torch.Generator().manual_seed(0)
        of = torch.zeros(len(x0), dtype=torch.long) if group is None else group.cpu()
        start = self._rows(self.start, of)
        free = start == self.mask_id
        if self.padded:
            # What was drawn behind an end, in the same step with it, is no part of the text.
            x0 = torch.where(self._over(x0, of), self.end_id or 0, x0)
        n, total = free.sum(1).cpu(), torch.zeros(len(x0), dtype=torch.float64)
        for i in range(draws):
            u = (i + torch.rand(len(x0), generator=generator, dtype=torch.float64)) / draws
            k = (u * n).floor().long().clamp_max(n - 1) + 1
            rank = torch.where(free.cpu(), torch.rand(free.shape, generator=generator), 2.0).argsort(1).argsort(1)
            hidden = (rank < k[:, None]).to(x0.device)
            for begin in range(0, len(x0), batch_size):
                part = slice(begin, begin + batch_size)
                total[part] += self._missed(x0[part], hidden[part], (k / n)[part], of[part]) * (n / k)[part]
        total[((x0 != start) & ~free).any(1).cpu()] = torch.inf
        return total / draws

    def _missed(self, x0: Tensor, hidden: Tensor, t: Tensor, group: Tensor) -> Tensor:
        """Σ −log p of what is hidden of x0 (rows, length), by one network call."""
        x = torch.where(hidden, self.mask_id, x0)
        with torch.no_grad():
            logits = self.predict(x, t.to(x0.device), group.to(x0.device)).logits
        assert logits is not None
        row, position = hidden.nonzero(as_tuple=True)
        log_p = double(logits[row, position]).log_softmax(-1).gather(-1, x0[row, position][:, None].to(logits.device))[:, 0]
        return -torch.zeros(len(x0), dtype=torch.float64).index_add_(0, row.cpu(), log_p.cpu())

    def count(self) -> int:
        """The number of blocks that hold free places, of the prompt that has most."""
        return max(len(blocks[free].unique()) for blocks, free in zip(self.blocks(), self.start == self.mask_id, strict=True))

    def blocks(self) -> Tensor:
        """(prompts, length) the number of each position's block: free places from the left, `block` at a time."""
        assert self.block is not None
        free = self.start == self.mask_id
        return ((free.cumsum(-1) - 1).clamp_min(0) // self.block).long()

    def _rows(self, table: Tensor, group: Tensor) -> Tensor:
        """What belongs to the prompt of each row, from a table (prompts, …)."""
        return table[group.to(table.device) % len(table)]


def nucleus(logits: Tensor, share: float) -> Tensor:
    """Logits (…, vocabulary) with −inf outside of the likeliest tokens whose probabilities first sum to `share`."""
    p, order = logits.float().softmax(-1).sort(-1, descending=True)
    # What comes before a token, without it: the likeliest one always stays.
    out = p.cumsum(-1) - p >= share
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)
