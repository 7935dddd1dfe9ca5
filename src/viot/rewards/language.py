"""Texts scored by published networks: what a classifier takes them for, and how likely a language model finds them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from .. import hub
from ..registry import unknown
from .text import as_texts

#: What the text side of the literature steers by (FK steering, arXiv 2501.06848), with its labels: name -> checkpoint, {label: index}.
PRESETS: dict[str, tuple[str, dict[str, int]]] = {
    "toxicity": ("SkolkovoInstitute/roberta_toxicity_classifier", {"high": 1, "low": 0}),
    "cola": ("textattack/roberta-base-CoLA", {"acceptable": 1, "unacceptable": 0}),
    "sentiment": ("cardiffnlp/twitter-roberta-base-sentiment", {"positive": 2, "neutral": 1, "negative": 0}),
    "formality": ("cointegrated/roberta-base-formality", {"formal": 1, "informal": 0}),
}
#: Where models trained on many documents in a row say that one ends.
END_OF_DOCUMENT = "<|endoftext|>"
#: Texts at once: logits over a vocabulary are large.
ROWS = 16


def first_document(text: str) -> str:
    """The first document of a text that is not blank."""
    return next((part for part in text.split(END_OF_DOCUMENT) if part.strip()), "")


class Network:
    """What the two rewards share: a frozen network of the hub with its tokenizer, read in single documents of at most `tokens` tokens.

    A text has no device, so the network stays where it is put: `device`, or where it was loaded or given.
    """

    differentiable = False
    name: str
    #: Whether `read` needs the tokenizer to pad.
    pads = True

    def __init__(
        self, kind: str, checkpoint: str, instead: str, revision: str | None, tokens: int, dtype: torch.dtype | str,
        device: torch.device | str | None, model: nn.Module | None, tokenizer: Any,
    ) -> None:  # fmt: skip
        if tokens < 1:
            raise ValueError(f"at least one token of a text must be read, not {tokens}")
        dtype = hub.dtype_of(dtype)
        network: Any = hub.pretrained(kind, checkpoint, instead, revision) if model is None else model
        self.tokenizer = hub.pretrained("AutoTokenizer", checkpoint, instead, revision) if tokenizer is None else tokenizer
        self.network = network.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self.checkpoint, self.tokens, self.precision = checkpoint, tokens, torch.promote_types(dtype, torch.float32)
        #: The commit that was loaded, where the hub said so.
        self.revision: str | None = getattr(network.config, "_commit_hash", None) or revision

    def fingerprint(self) -> str:
        """The revision and what sets this reward apart from another of its name."""
        return f"{self.revision or 'local'} {self.tokens} tokens {next(self.network.parameters()).dtype}".replace("torch.", "")

    def __call__(self, samples: list[str]) -> Tensor:
        texts = [first_document(text) for text in as_texts(samples, self.name)]
        # Each text is read once, beside others of its length: little padding, and repetitions are free.
        order = sorted(set(texts), key=lambda text: (len(text), text))
        known: dict[str, float] = {}
        rows = ROWS if self.tokenizer.pad_token_id is not None or not self.pads else 1
        with torch.no_grad():
            for i in range(0, len(order), rows):
                part = order[i : i + rows]
                known |= dict(zip(part, self.read(part).double().tolist(), strict=True))
        return torch.tensor([known[text] for text in texts], dtype=torch.float64)

    def read(self, texts: list[str]) -> Tensor:
        """Scores (m,) of at most `ROWS` texts."""
        raise NotImplementedError


class Classifier(Network):
    """r = log p(label | text) of a text classifier: log-softmax of its logits, or log-sigmoid if its labels do not exclude each other.

    checkpoint   an AutoModelForSequenceClassification with its tokenizer: a repository of the hub or a folder; nobody's code is run
    label        which one: its name in the checkpoint's configuration, in any case, or its index
    revision     a branch, tag or commit of the repository
    tokens       texts are cut after so many (FK steering: 50)
    dtype        the network computes in it
    device       where it computes; None = where it was loaded
    name         what to call the reward; None = classifier:CHECKPOINT:LABEL
    model, tokenizer   ready-made ones instead of the checkpoint's

    Of a text only the first document is read: up to <|endoftext|>. Scores are float64 (n,) on the CPU, at most 0. ValueError for a label that
    the classifier doesn't have, OSError for weights that are not to be had.
    """

    def __init__(
        self,
        checkpoint: str,
        label: str | int,
        *,
        revision: str | None = None,
        tokens: int = 50,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        name: str | None = None,
        model: nn.Module | None = None,
        tokenizer: Any = None,
    ) -> None:
        kind, instead = "AutoModelForSequenceClassification", "classifier:FOLDER:LABEL"
        super().__init__(kind, checkpoint, instead, revision, tokens, dtype, device, model, tokenizer)
        config: Any = self.network.config
        self.index = _index(label, {int(i): str(known) for i, known in config.id2label.items()}, checkpoint)
        self.exclusive = getattr(config, "problem_type", None) != "multi_label_classification"
        if self.exclusive and len(config.id2label) < 2:
            raise ValueError(f"{checkpoint} has a single output: it gives a number, and is no classifier")
        self.name = name or f"classifier:{checkpoint}:{label}"

    def fingerprint(self) -> str:
        return f"label {self.index} {super().fingerprint()}"

    def read(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=len(texts) > 1, truncation=True, max_length=self.tokens, return_tensors="pt")
        logits = self.network(**{k: v.to(self.network.device) for k, v in tokens.items()}).logits.to(self.precision)
        return (logits.log_softmax(-1) if self.exclusive else F.logsigmoid(logits))[:, self.index]


def _index(label: str | int, known: dict[int, str], checkpoint: str) -> int:
    """Which output the label is: by its name first, since a name may be a number."""
    named = {name.lower(): i for i, name in known.items()}
    if isinstance(label, str) and label.lower() in named:
        return named[label.lower()]
    if str(label).isdecimal() and int(label) in known:
        return int(label)
    listed = ", ".join(f"{i} {name}" for i, name in sorted(known.items()))
    raise ValueError(f"{checkpoint} has no label {label!r}; its labels are {listed}; a name or an index will do")


def preset(name: str, label: str | None = None) -> Classifier:
    """One of `PRESETS`: `preset("sentiment", "negative")`. Without a label the first of its list."""
    checkpoint, labels = PRESETS[name]
    chosen = next(iter(labels)) if label is None else label
    if chosen not in labels:
        raise unknown(f"label of {name}", chosen, labels)
    return Classifier(checkpoint, labels[chosen], name=name if label is None else f"{name}:{label}")


class Perplexity(Network):
    """r = −factor · (mean over tokens of −log p(token | those before)), of a causal language model; with the default, −ln 2^(mean nats).

    checkpoint   an AutoModelForCausalLM with its tokenizer: a repository of the hub or a folder; nobody's code is run
    factor       ln 2 is FK steering's convention (arXiv 2501.06848: minus the logarithm of 2 to the mean cross-entropy in nats), so that its
                 λ = 10 means the same; 1.0 is the mean log-likelihood per token in nats
    revision, tokens, dtype, device, name, model, tokenizer   as in `Classifier`

    A beginning-of-text token is put before the text and is not scored. Of a text only the first document is read, up to <|endoftext|>,
    without the spaces around it, and at most `tokens` tokens. An empty text has no tokens: it is scored by one, the end of the text at once, so that it stays finite. The score is
    a mean, so dull and repetitive texts score best: say what the diversity is (`viot.metrics.text`).
    """

    pads = False

    def __init__(
        self,
        checkpoint: str = "gpt2",
        factor: float = math.log(2),
        *,
        revision: str | None = None,
        tokens: int = 50,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        name: str | None = None,
        model: nn.Module | None = None,
        tokenizer: Any = None,
    ) -> None:
        if not 0 < factor < math.inf:
            raise ValueError(f"factor must be finite and > 0, not {factor}")
        super().__init__("AutoModelForCausalLM", checkpoint, "perplexity:FOLDER", revision, tokens, dtype, device, model, tokenizer)
        self.factor = float(factor)
        end, begin = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        if end is None and begin is None:
            raise ValueError(f"the tokenizer of {checkpoint} has neither a token to begin nor one to end a text with; a score needs one")
        self.begin, self.end = end if begin is None else begin, begin if end is None else end
        self.name = name or f"perplexity:{checkpoint}"

    def fingerprint(self) -> str:
        return f"factor {self.factor:.6g} {super().fingerprint()}"

    def read(self, texts: list[str]) -> Tensor:
        found = self.tokenizer([text.strip() for text in texts], add_special_tokens=False, truncation=True, max_length=self.tokens)[
            "input_ids"
        ]
        rows = [[self.begin, *(ids or [self.end])] for ids in found]
        longest = max(map(len, rows))
        device = self.network.device
        # Padded on the right, where a causal model doesn't look from: any token will do.
        x = torch.tensor([row + [self.begin] * (longest - len(row)) for row in rows], device=device)
        there = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        log_p = self.network(input_ids=x, attention_mask=there).logits[:, :-1].to(self.precision).log_softmax(-1)
        said = log_p.gather(-1, x[:, 1:, None])[..., 0] * there[:, 1:]
        return self.factor * said.sum(1) / there[:, 1:].sum(1)
