"""Masked diffusion on a world small enough to enumerate: the same methods, exact for the chain that is run."""

import itertools

import pytest
import torch

import viot
from viot.methods import FKD, VASR, Importance
from viot.value import X0Samples

V, L, MASK, STEPS = 3, 3, 3, 4
STATES = list(itertools.product(range(V + 1), repeat=L))
INDEX = {s: i for i, s in enumerate(STATES)}


class Markov:
    """Strings of three letters from a Markov chain; the network's answer is the exact conditional of each masked position."""

    event_shape, dtype, device = (L,), torch.long, torch.device("cpu")
    kernel = viot.Categorical(MASK)

    def __init__(self):
        first = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        move = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]], dtype=torch.float64)
        self.joint = first[:, None, None] * move[:, :, None] * move[None]
        self.table = torch.stack([self.conditionals(s) for s in STATES])

    def conditionals(self, state):
        fits = self.joint.clone()
        for position, token in enumerate(state):
            if token != MASK:
                keep = torch.zeros(V, dtype=torch.float64)
                keep[token] = 1
                fits = fits * keep.view([-1 if i == position else 1 for i in range(L)])
        return torch.stack([fits.sum([i for i in range(L) if i != position]) / fits.sum() for position in range(L)])

    def grid(self, steps):
        revealed = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return viot.Grid(1 - revealed[:-1], revealed, 1 - revealed)

    def prior(self, n, generator):
        return torch.full((n, L), MASK)

    def predict(self, x, t, group):
        code = (x * (V + 1) ** torch.arange(L - 1, -1, -1)).sum(1)
        logits = self.table[code].log()
        return viot.Prediction(torch.where(x == MASK, logits.argmax(-1), x), logits=logits)

    def decode(self, x0, group):
        return ["".join("abc"[t] for t in row) for row in x0.tolist()]


def reward(texts):
    return torch.tensor([0.8 * t.count("c") - 0.5 * (t[0] == "b") for t in texts])


def chain_law(model, steps=STEPS):
    """P(x_0) of every string under the ancestral chain: each step reveals each masked position independently. By enumeration."""
    p = {(MASK,) * L: 1.0}
    for j in range(steps):
        chance = 1 / (steps - j)
        after: dict = {}
        for state, mass in p.items():
            masked = [i for i, t in enumerate(state) if t == MASK]
            conditional = model.table[INDEX[state]]
            for shown in itertools.product([False, True], repeat=len(masked)):
                where = [i for i, s in zip(masked, shown, strict=True) if s]
                weight = mass * chance ** len(where) * (1 - chance) ** (len(masked) - len(where))
                if weight == 0:
                    continue
                for tokens in itertools.product(range(V), repeat=len(where)):
                    new, q = list(state), weight
                    for i, token in zip(where, tokens, strict=True):
                        new[i], q = token, q * conditional[i, token].item()
                    after[tuple(new)] = after.get(tuple(new), 0.0) + q
        p = after
    return p


MODEL = Markov()
LAW = chain_law(MODEL)


def text(state):
    return "".join("abc"[t] for t in state)


def run(method, seed=0, groups=1200, particles=16, lam=1.0):
    return viot.sample(MODEL, reward, method, particles=particles, groups=groups, steps=STEPS, lam=lam, seed=seed, progress=False)


def test_base_frequencies():
    found = [t for group in run("base", lam=0.0).samples for t in group]
    for state, p in LAW.items():
        share = found.count(text(state)) / len(found)
        assert abs(share - p) < 4.5 * (p * (1 - p) / len(found)) ** 0.5
    data = {s: MODEL.joint[s].item() for s in LAW}
    assert max(abs(LAW[s] - data[s]) for s in LAW) > 0.005, "several tokens per step: the chain's law is not the data's"


@pytest.mark.parametrize(
    "method",
    [
        Importance(),
        FKD(schedule="every"),
        FKD(schedule="every", potential="max", ess_threshold=None),
        VASR(schedule="every"),
        VASR(schedule="every", value=X0Samples(3)),
    ],
    ids=repr,
)
def test_tilted_law(method):
    population = run(method)
    z = sum(p * reward([text(s)]).exp().item() for s, p in LAW.items())
    found = population.log_z.exp()
    assert abs(found.mean() - z) < 4 * found.std() / len(found) ** 0.5
    first = torch.tensor([[float(t[0] == "c") for t in group] for group in population.samples], dtype=torch.float64)
    exact = sum(p * reward([text(s)]).exp().item() for s, p in LAW.items() if s[0] == 2) / z
    gap = found * (population.mean(first) - exact)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    plain = sum(p for s, p in LAW.items() if s[0] == 2)
    assert exact > plain + 0.1, "a target that does not differ from the model tests nothing"


def test_text_populations_are_text(tmp_path):
    population = run("vasr", groups=2, particles=8)
    assert population.modality == "text"
    assert [len(g) for g in population.text()] == [8, 8]
    assert population.best(1).text()[0][0] in population.text()[0]
    population.save(tmp_path)
    assert viot.Population.load(tmp_path).samples == population.samples
    assert population.text()[0][0] in (tmp_path / "samples.txt").read_text()
    with pytest.raises(TypeError, match="text"):
        population.pil()
