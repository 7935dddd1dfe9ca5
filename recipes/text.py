"""Train the embedded text models `names` and `reviews`, and the readers that score their texts, on a small CPU.

    python recipes/text.py names    --data DIR --minutes 8     # first names, letter by letter; resumable: run again to go on
    python recipes/text.py reviews  --data DIR --minutes 50    # sentences of film reviews, word by word
    python recipes/text.py export   --data DIR                 # NLL on held-out text, float16 safetensors into the package

DIR holds names.txt (first names, a line each) and rt-polarity.neg, rt-polarity.pos (Pang & Lee 2005, sentences, a line each). One name in
twenty and one sentence in ten are held out of everything here.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

import viot
from training import train
from viot.models.token_net import TokenNet

PACKAGE = Path(__file__).parents[1] / "src/viot/models"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NETS = {
    "names": {"vocabulary": 27, "length": 12, "width": 96, "depth": 4, "heads": 4},
    "reviews": {"vocabulary": 6144, "length": 32, "width": 192, "depth": 4, "heads": 6},
}


# -- text -----------------------------------------------------------------------------------------------------------------------------


def held_out(text: str, one_in: int) -> bool:
    """Chosen by what the text is, so that every reader of the data holds out the same."""
    return zlib.crc32(text.encode()) % one_in == 0


def spelled(line: str) -> str:
    """A tokenised sentence as one would write it: no spaces before punctuation, plain quotes and dashes."""
    line = line.strip().translate({0x91: "'", 0x92: "'", 0x96: "-", 0x97: "-", 0x85: "...", ord("`"): "'"})
    line = re.sub(r"\s+", " ", line)
    line = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", line)
    line = re.sub(r" ([,.!?;:%)\]])", r"\1", line)
    line = re.sub(r"([(\[$]) ", r"\1", line)
    line = re.sub(r"\.(?: ?\.)+", "...", line)
    return re.sub(r'" (.*?) "', r'"\1"', line)


def names(data: Path) -> tuple[list[str], list[str]]:
    """Names to train on, and held out."""
    every = [n for n in (data / "names.txt").read_text().split() if len(n) <= NETS["names"]["length"] and set(n) <= set(LETTERS)]
    return [n for n in every if not held_out(n, 20)], [n for n in every if held_out(n, 20)]


def sentences(data: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Sentences with 1 for praise and 0 for blame: to train on, and held out."""
    every = [
        (spelled(line), label)
        for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos"))
        for line in (data / name).read_text("latin-1").splitlines()
    ]
    return [s for s in every if not held_out(s[0], 10)], [s for s in every if held_out(s[0], 10)]


def tokenizer_of(texts: Iterable[str], size: int):
    """The commonest words, ▁ standing for the space before one; 0 is the end of a text, 1 any other word.

    Whole words, because this little text is too little to learn spelling from: of word pieces the model makes words that are none.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words = Regex(r"'(?:s|re|ve|ll|d|m)\b|▁?\w+(?:'t\b)?|▁?\.\.\.|▁?-+|▁?[^\w\s]")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(split=False), pre_tokenizers.Split(words, "isolated")])
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=size, special_tokens=["<end>", "<unk>"], show_progress=False))
    return made


def padded(ids: list[list[int]], length: int, end: int) -> Tensor:
    """Texts that fit, each followed by the end token until `length`."""
    return torch.tensor([row + [end] * (length - len(row)) for row in ids if len(row) <= length])


def tokens_of(task: str, data: Path, out: Path) -> tuple[Tensor, Tensor]:
    """(n, length) to train on, and held out."""
    length = NETS[task]["length"]
    if task == "names":
        return tuple(padded([[LETTERS.index(c) for c in name] for name in part], length, 26) for part in names(data))  # type: ignore[return-value]
    parts = [[text for text, _ in part] for part in sentences(data)]
    made = tokenizer_of(parts[0], NETS[task]["vocabulary"])
    out.mkdir(parents=True, exist_ok=True)
    made.save(str(out / "reviews.tokenizer.json"))
    return tuple(padded([e.ids for e in made.encode_batch(part)], length, 0) for part in parts)  # type: ignore[return-value]


# -- training -------------------------------------------------------------------------------------------------------------------------


def bound(net: TokenNet, x: Tensor, mask: int, gen: torch.Generator) -> Tensor:
    """The continuous-time bound on −log p(x) in nats per text, (n,): E_t[ Σ over masked −log p / t ], with spread-out t (MDLM, eq. 10)."""
    n = len(x)
    t = ((torch.rand(1, generator=gen) + torch.arange(n) / n) % 1 * (1 - 1e-3) + 1e-3)[:, None]
    hidden = torch.rand(x.shape, generator=gen) < t
    log_p = net(torch.where(hidden, mask, x), hidden).float().log_softmax(-1)
    each = torch.zeros(x.shape).masked_scatter(hidden, log_p.gather(-1, x[hidden][:, None])[:, 0])
    return -(each / t).sum(1)


def train_model(task: str, data: Path, out: Path, minutes: float) -> None:
    settings = NETS[task]
    x, _ = tokens_of(task, data, out)
    # Names are many and short; sentences are few, and a large network learns them by heart.
    batch, lr, ema, dropout = (192, 2e-3, 0.998, 0.0) if task == "names" else (64, 1.5e-3, 0.998, 0.05)
    net = TokenNet(**settings, dropout=dropout)

    def loss_of(step: int) -> Tensor:
        gen = torch.Generator().manual_seed(step)
        torch.manual_seed(step)  # dropout
        rows = torch.randint(len(x), (batch,), generator=gen)
        return bound(net, x[rows], settings["vocabulary"], gen).mean() / settings["length"]

    train(task, out / f"{task}.pt", net, loss_of, minutes, lr, ema)


@torch.no_grad()
def export(task: str, data: Path, out: Path) -> None:
    """float16 weights into the package, and what the exported model makes of the held-out texts."""
    saved = torch.load(out / f"{task}.pt", weights_only=True)
    net = TokenNet(**NETS[task])
    net.load_state_dict(saved["ema"])
    folder = PACKAGE / task
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half() for k, v in net.state_dict().items()}, folder / "network.safetensors")
    _, x = tokens_of(task, data, out)
    if task == "reviews":
        shutil.copy(out / "reviews.tokenizer.json", folder / "tokenizer.json")
    said = {"network": NETS[task], "minutes": saved["spent"] / 60, "steps": saved["step"]}
    (folder / "training.json").write_text(json.dumps(said))
    model = viot.load(task)
    # Of texts that the model can say at all; in nats per text, and per token with the one that ends it.
    known = x[(x != 1).all(1)] if task == "reviews" else x
    nll = model.nll(known, draws=64)
    tokens = (known != model.end_id).sum(1) + 1
    said |= {
        "held_out": len(x),
        "known": len(known),
        "unknown_words": (x == 1).sum().item() / (x > 1).sum().item() if task == "reviews" else 0.0,
        "nll": nll.mean().item(),
        "nll_error": nll.std().item() / len(nll) ** 0.5,
        "nll_per_token": (nll.sum() / tokens.sum()).item(),
    }
    (folder / "training.json").write_text(json.dumps(said, indent=1) + "\n")
    tqdm.write(json.dumps(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("names", "reviews", "export"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--minutes", type=float, default=8)
    args = parser.parse_args()
    if args.what == "export":
        for task in NETS:
            export(task, args.data, args.out)
    else:
        train_model(args.what, args.data, args.out, args.minutes)


if __name__ == "__main__":
    main()
