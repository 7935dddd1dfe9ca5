"""Train the embedded readers of text (`viot.rewards.readers`) and write them into the package, each in a minute or two on one core.

    python recipes/readers.py --data DIR                      # all of them
    python recipes/readers.py reviews judge --data DIR        # these

DIR holds what recipes/text.py reads; for the judge sst2_sentences_{train,dev,test}.tsv (SST-2, whole sentences: text, tab, label); for
`acceptable` cola_in_domain_{train,dev}.tsv (CoLA: source, label, mark, sentence). What each does on text held out goes into training.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

import text
from viot.rewards.readers import FOLDER, NaiveBayes, NGram, nets
from viot.rewards.text import words

Labelled = list[tuple[str, int]]


def fit(net: torch.nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, lr: float, decay: float, name: str) -> None:
    """Adam on the cross-entropy of (logits, labels), the rate falling linearly to a fiftieth."""
    opt = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    for step in tqdm(range(steps), desc=name, mininterval=5):
        opt.param_groups[0]["lr"] = lr * max(0.02, 1 - step / steps)
        logits, labels = next(batches)
        opt.zero_grad()
        F.cross_entropy(logits, labels).backward()
        opt.step()


def epochs(n: int, size: int, gen: torch.Generator) -> Iterator[Tensor]:
    """Rows in random order, every one as often."""
    while True:
        yield from torch.randperm(n, generator=gen).split(size)


def save(net: torch.nn.Module, name: str) -> None:
    """In half precision; the network goes on with what was kept, and is judged by that."""
    kept = {k: v.half().contiguous() for k, v in net.state_dict().items()}
    save_file(kept, FOLDER / f"{name}.safetensors")
    net.load_state_dict(kept)


def scores(read: Callable[[list[str]], Tensor], texts: Labelled) -> dict[str, float]:
    """Accuracy, nats per text and Matthews correlation on these texts."""
    labels = torch.tensor([label for _, label in texts])
    with torch.no_grad():
        log_p = read([t for t, _ in texts]).double().log_softmax(-1)
    said = log_p.argmax(1)
    # The correlation of two variables that are 0 or 1.
    matthews = torch.corrcoef(torch.stack([said.double(), labels.double()]))[0, 1].item() if said.unique().numel() > 1 else 0.0
    found = {"accuracy": (said == labels).double().mean().item(), "nll": F.nll_loss(log_p, labels).item(), "matthews": matthews}
    return {k: round(v, 4) for k, v in found.items()} | {"texts": len(texts)}


# -- the readers ----------------------------------------------------------------------------------------------------------------------


def reviews(data: Path) -> dict:
    """fastText's bag; half of what is in a text is left out each time, for texts that are half made."""
    train, held_out = text.sentences(data)
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    net = nets.Bag()
    torch.nn.init.normal_(net.table.weight, std=0.1)
    rows, labels = [torch.tensor(nets.bag(t)) for t, _ in train], torch.tensor([label for _, label in train])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in epochs(len(rows), 64, gen):
            some = [rows[i][torch.rand(len(rows[i]), generator=gen) < 0.5].tolist() for i in chosen.tolist()]
            yield net(some), labels[chosen]

    fit(net, batches(), 5 * len(rows) // 64, 1e-2, 0.0, "reviews")
    save(net, "reviews")
    half = [(" ".join(t.split()[: math.ceil(len(t.split()) / 2)]), label) for t, label in held_out]
    return {"data": "rt-polarity", "held_out": scores(net.read, held_out), "held_out_first_halves": scores(net.read, half)}


def sst(data: Path, part: str) -> Labelled:
    lines = (data / f"sst2_sentences_{part}.tsv").read_text().splitlines()
    return [(text.spelled(sentence), int(label)) for sentence, _, label in (line.rpartition("\t") for line in lines if line)]


def judge(data: Path) -> dict:
    """Naive Bayes, its scale chosen on the dev part."""
    net, dev = NaiveBayes.fit(sst(data, "train")), sst(data, "dev")
    tried = {}
    for scale in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 1.0):
        net.scale = scale
        tried[scale] = scores(net.read, dev)["nll"]
    net.scale = min(tried, key=tried.__getitem__)
    net.save(FOLDER / "judge.safetensors")
    net = NaiveBayes.load(FOLDER / "judge.safetensors")
    # What the reader was not trained on is not all new to the judge: the two collections share their sentences.
    seen = {"".join(filter(str.isalnum, t)) for t, _ in sst(data, "train")}
    held_out = text.sentences(data)[1]
    new = [(t, label) for t, label in held_out if "".join(filter(str.isalnum, t)) not in seen]
    return {"data": "SST-2, sentences", "scale": net.scale, "test": scores(net.read, sst(data, "test"))} | {
        "rt-polarity held out and not in SST-2's training part": scores(net.read, new),
        "share of rt-polarity's held-out part seen": round(1 - len(new) / len(held_out), 3),
    }


def cola(data: Path, part: str) -> Labelled:
    lines = (data / f"cola_in_domain_{part}.tsv").read_text().splitlines()
    return [(line.split("\t")[3], int(line.split("\t")[1])) for line in lines if line]


def spoilt(sentence: list[str], others: list[str], rng: random.Random) -> list[str]:
    """With two words exchanged, one left out, one put in, or one replaced."""
    made, at, how = list(sentence), rng.randrange(len(sentence) - 1), rng.random()
    if how < 0.35:
        made[at], made[at + 1] = made[at + 1], made[at]
    elif how < 0.6:
        made.pop(at)
    elif how < 0.8:
        made.insert(at, rng.choice(others))
    else:
        made[at] = rng.choice(others)
    return made


def acceptable(data: Path, steps: int = 5000) -> dict:
    """First to tell sentences from spoilt ones, of which there are as many as one likes; then CoLA."""
    train, dev = cola(data, "train"), cola(data, "dev")
    known = [words(t) for t, label in train if label] * 2 + [words(t) for t, _ in text.sentences(data)[0]]
    known = [sentence for sentence in known if 4 <= len(sentence) <= 25]
    others, rng, gen = [w for sentence in known for w in sentence], random.Random(0), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nets.Convolution()
    with torch.no_grad():
        for table in (net.words, net.endings):
            table.weight.normal_(std=0.1)[0] = 0

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        labels = torch.tensor([1] * 32 + [0] * 32)
        while True:
            real = rng.sample(known, 32)
            yield net(nets.sequence(real + [spoilt(s, others, rng) for s in real])), labels

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        labels = torch.tensor([label for _, label in train])
        for chosen in epochs(len(train), 64, gen):
            yield net(nets.sequence([words(train[i][0]) for i in chosen.tolist()])), labels[chosen]

    fit(net, pairs(), steps, 2e-3, 1e-2, "sentences and spoilt ones")
    fit(net, batches(), 6 * len(train) // 64, 1e-3, 1e-2, "acceptable")
    net.eval()
    save(net, "acceptable")
    unseen = [words(t) for t, _ in text.sentences(data)[1]]
    unseen = [s for s in unseen if 4 <= len(s) <= 25]
    both = [(" ".join(s), 1) for s in unseen] + [(" ".join(rng.sample(s, len(s))), 0) for s in unseen]
    rank = ranked(net.read, both)
    return {"data": "CoLA, in domain; rt-polarity", "dev": scores(net.read, dev), "review above its words in random order": rank}


def ranked(read: Callable[[list[str]], Tensor], both: Labelled) -> float:
    """How often a text of label 1 scores above the one of label 0 made from it (which stands half the list later)."""
    with torch.no_grad():
        score = read([t for t, _ in both]).log_softmax(-1)[:, 1]
    first, second = score.chunk(2)
    return round((first > second).double().mean().item(), 4)


def ngrams(data: Path) -> dict:
    """Letters of names, and words of reviews; trigrams of words seen once are left out."""
    found = {}
    for name, parts, settings in (
        ("names", text.names(data), {"order": 4, "unit": "characters"}),
        ("reviews", [[t for t, _ in part] for part in text.sentences(data)], {"order": 3, "unit": "words", "min_count": 2, "prune": 1}),
    ):
        train, held_out = parts
        model = NGram.fit(train, **settings)
        model.save(FOLDER / f"ngram-{name}.safetensors")
        totals = {"train": model.total(train), "held_out": model.total(held_out)}
        tokens = {"train": sum(len(model.encode(t)) for t in train), "held_out": sum(len(model.encode(t)) for t in held_out)}
        found[name] = settings | {"tokens": model.size} | {
            k: {"nats_per_token": round(v.sum().item() / tokens[k], 4), "nats_per_text": round(v.mean().item(), 4), "texts": len(v)}
            for k, v in totals.items()
        }  # fmt: skip
    return found


READERS = {"reviews": reviews, "judge": judge, "acceptable": acceptable, "ngrams": ngrams}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*READERS, "all"], default="all")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = FOLDER / "training.json"
    for name in READERS if "all" in args.what else args.what:
        start = time.perf_counter()
        told = READERS[name](args.data)
        known = json.loads(about.read_text()) if about.exists() else {}
        about.write_text(json.dumps({k: (known | {name: told})[k] for k in READERS if k in known | {name: told}}, indent=2) + "\n")
        tqdm.write(f"{name}, {time.perf_counter() - start:.0f} s: {json.dumps(told)}")
    for file in FOLDER.glob("*.safetensors"):
        file.chmod(0o644)  # not for their owner alone


if __name__ == "__main__":
    main()
