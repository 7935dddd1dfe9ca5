"""Texts as people see them: when their tokens appeared, the page, samples.txt, the terminal."""

import json
import re
from dataclasses import replace

import pytest
import torch
from helpers import quiet
from masked import MarkovTokens
from test_report import check_page

import viot
from viot import Population
from viot.methods import make
from viot.particles import State, dated
from viot.report import page, samples_text
from viot.report.compare import comparison, row
from viot.report.terminal import summary
from viot.report.text import readings, visible
from viot.testing import check_model

STEPS = 6
METHODS = ["base", "importance", "best-of-n", "fkd", "vasr", "vasr-max", "svdd", "svdd-r", "fvd", "urge", "tri-tsmc"]


class Words(MarkovTokens):
    """Strings of the chain whose first place is given, and whose letters are spelled as words."""

    names = ("al", "be", "ça")

    def __init__(self, given=(0,), length=4, remask=0.0):
        super().__init__(length=length, remask=remask)
        self.given = given

    def prior(self, n, generator):
        x = super().prior(n, generator)
        x[:, : len(self.given)] = torch.tensor(self.given)
        return x

    def pieces(self, x0):
        return [[(" " if i else "") + self.names[t] for i, t in enumerate(row)] for row in x0.tolist()]

    def decode(self, x0, group):
        return ["".join(row) for row in self.pieces(x0)]


def reward(texts):
    return torch.tensor([float(t.count("ça")) for t in texts])


def run(method="vasr", model=None, **kwargs):
    with quiet():
        return viot.sample(
            model or Words(), reward, method, **{"particles": 16, "steps": STEPS, "groups": 2, "progress": False, "lam": 1.0, **kwargs}
        )


def written(texts, log_w=None, **changes):
    """A population of these texts, [G][K], by hand; the reward of a text is its length."""
    shape = (len(texts), len(texts[0]))
    log_w = torch.zeros(shape, dtype=torch.float64) if log_w is None else log_w
    told = {
        "samples": texts,
        "x0": torch.zeros(*shape, 1, dtype=torch.long),
        "rewards": torch.tensor([[float(len(t)) for t in row] for row in texts], dtype=torch.float64),
        "log_weights": log_w - log_w.logsumexp(-1, keepdim=True),
        "log_z": torch.zeros(shape[0], dtype=torch.float64),
        "exact": True,
        "roots": torch.arange(shape[1]).repeat(shape[0], 1),
        "ancestors": torch.zeros(0, *shape, dtype=torch.int32),
        "trace": {"step": torch.zeros(0)},
        "config": {"lam": 1.0, "groups": list(range(shape[0])), "steps": 4, "method": {"name": "vasr"}},
    }
    return Population(**{**told, **changes})


# -- when tokens appeared -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_token_says_when_it_appeared(method):
    population = run(method, particles=24)
    appeared = population.appeared
    assert appeared.shape == population.x0.shape
    assert appeared.dtype == torch.int32
    assert bool((appeared[..., 0] == 0).all()), "what was given was there from the start"
    assert bool(((appeared[..., 1:] >= 1) & (appeared[..., 1:] <= STEPS)).all())
    assert len(appeared[..., 1:].unique()) > 2, "tokens that all appear at once test nothing"


def test_the_steps_are_those_at_which_a_run_revealed_them():
    """Followed from outside, along the lineages: where each surviving path's states first held the token."""
    with quiet():
        run = viot.prepare(Words(), reward, make("vasr", schedule="every"), particles=12, steps=STEPS, groups=2, lam=2.0)
        states = list(run.states())
    paths = [s.x for s in states[:-1]]
    moves = [s.history[len(s.history) - 1].ancestors.long() if len(s.history) else None for s in states[:-1]]
    here = torch.arange(12).repeat(2, 1)
    found = torch.zeros_like(states[-1].x)
    for step in range(STEPS, 0, -1):
        x = paths[step - 1].gather(1, here[..., None].expand(-1, -1, 4))
        found[x != run.problem.kernel.mask_id] = step
        if any(s.step == step - 1 for s in states[step - 1].history):
            here = moves[step - 1].gather(1, here)
    found[..., 0] = 0
    ancestors = torch.stack([s.ancestors for s in states[-1].history])
    assert (ancestors != torch.arange(12)).any(), "nobody moved: this tests nothing"
    assert torch.equal(run.population(states[-1]).appeared.long(), found)


def test_a_token_that_comes_back_has_the_later_step():
    ones = torch.zeros(1, 1, dtype=torch.float64)
    state = dated(State(torch.tensor([[[9, 1, 9]]]), 0, ones, ones, ones.long()), 9, 0)
    for step, x in enumerate(([4, 1, 9], [9, 1, 9], [9, 1, 3], [5, 1, 3]), start=1):
        state = dated(state.but(x=torch.tensor([[x]])), 9, step)
    assert state.extra["appeared"].tolist() == [[[4, 0, 3]]]
    # A run that began without the array goes on without it.
    assert not dated(State(state.x, 2, ones, ones, ones.long()), 9, 3).extra


def test_remasking_ends_with_every_token_dated():
    appeared = run("base", Words(remask=0.4), particles=64).appeared
    assert bool((appeared[..., 1:] >= 1).all())
    assert appeared.max() == STEPS


def test_only_tokens_have_it():
    with quiet():
        assert viot.sample("gaussian", "brightness", particles=8, steps=4, progress=False).appeared is None
    # Of a tree's samples nobody kept the way.
    tree = run("dts")
    assert tree.appeared is None
    assert tree.letters is not None
    assert tree.pieces(0, 0) is None
    check_page(page(tree))


def test_a_resumed_run_has_the_same(tmp_path):
    with quiet():
        ready = viot.prepare(Words(), reward, "vasr", particles=16, steps=STEPS, groups=2)
        whole = list(ready.states())
        whole[2].save(tmp_path / "state.safetensors")
        again = viot.prepare(Words(), reward, "vasr", particles=16, steps=STEPS, groups=2)
        *_, last = again.states(State.load(tmp_path / "state.safetensors")[0])
    a, b = ready.population(whole[-1]), again.population(last)
    assert torch.equal(a.appeared, b.appeared)
    assert torch.equal(a.x0, b.x0)


def test_kept_and_chosen_with_the_particles(tmp_path):
    population = run()
    population.save(tmp_path)
    found = Population.load(tmp_path)
    assert torch.equal(found.appeared, population.appeared)
    assert torch.equal(found.letters, population.letters)
    assert found.pieces(1, 3) == population.pieces(1, 3)
    for taken in (population.best(4), population.first(4), population.draw(20)):
        for i in range(2):
            for j in range(taken.shape[1]):
                assert "".join(piece for piece, _ in taken.pieces(i, j)) == taken.samples[i][j]
    at = int(population.rewards[0].argmax())
    assert population.best(1).pieces(0, 0) == population.pieces(0, at)


def test_pieces_are_spelled_or_left_alone():
    population = run()
    pieces = population.pieces(0, 0)
    assert pieces[0] == ("al", 0)
    assert all(piece in (" al", " be", " ça") and step > 0 for piece, step in pieces[1:])

    class Mumbling(Words):
        def pieces(self, x0):
            return [["?"] * 4 for _ in x0]

        def decode(self, x0, group):
            return [" ".join(self.names[t] for t in row) for row in x0.tolist()]

    population = run(model=Mumbling())
    assert population.pieces(0, 0) is None
    text = page(population)
    assert population.samples[0][0] in check_page(text)
    assert "tinted" not in text


def test_the_contract_asks_for_pieces_that_spell_the_text():
    whole = Words(given=())
    check_model(whole, steps=4)
    for wrong in (lambda x0: [["al"] * 4 for _ in x0], lambda x0: [["".join(parts)] for parts in whole.pieces(x0)]):
        told = {"pieces": lambda self, x0, wrong=wrong: wrong(x0), "decode": lambda self, x0, group: whole.decode(x0, group)}
        with pytest.raises(AssertionError, match=r"Cut\.pieces must return, for each row, one string per token"):
            check_model(type("Cut", (Words,), told)(given=()), steps=4)


# -- the page -------------------------------------------------------------------------------------------------------------------------


def test_page_tints_each_token_by_its_step():
    population = replace(run(), unsteered=run("base", particles=3))
    text = page(population)
    words = check_page(text)
    assert "Each token is tinted by the step at which it appeared, underlined where it was given: 1" in words
    best = readings(population, 0, by_reward=True)[0]
    spans = "".join(
        f'<u title="given">{piece}</u>'
        if step == 0
        else f'<span style="--late:{(step - 1) / (STEPS - 1):.2f}" title="step {step}">{piece}</span>'
        for piece, step in population.pieces(0, best.particle)
    )
    assert f'<p dir="auto" class="tokens">{spans}</p>' in text
    assert text.count("Unsteered") == 2
    assert "log weight" in words


def test_page_lists_every_different_text_with_its_weight():
    log_w = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    texts = [["one", "three", "one", "seven"], ["a", "bb", "ccc", "dddd"]]
    population = written(texts, log_w, parts={"<vowels>": torch.tensor([[2.0, 2, 2, 2], [1, 0, 0, 0]], dtype=torch.float64)})
    found = readings(population, 0)
    assert [(r.text, r.copies, r.particle) for r in found] == [("seven", 1, 3), ("one", 2, 0), ("three", 1, 1)]
    assert [r.weight for r in found] == pytest.approx([0.4, 0.4, 0.2])
    assert [r.text for r in readings(population, 0, by_reward=True)] == ["three", "seven", "one"]
    text = page(population)
    words = check_page(text)
    assert "3 different texts of 4 by weight" in words
    assert "All 4 by weight" in words
    row = re.search(r'<tr><td dir="auto">one</td>(.*?)</tr>', text)[1]
    assert re.findall(r"<td>(.*?)</td>", row) == ["2", "3", "2", "−0.916"]
    assert "<span>40 %</span>" in row
    assert "&lt;vowels&gt;" in text


def test_candidates_have_no_weights():
    population = written([["ab", "abc", "abc", "a"]], exact=False)
    assert [r.text for r in readings(population, 0)] == ["abc", "ab", "a"]
    assert "log weight" not in check_page(page(population))


def test_strange_texts_are_shown_and_do_nothing():
    texts = ["<script>x</script>", "שלום", "\u202eevil", "a\x1b[31mb\x07", "one\ntwo", "x" * 300, "👩‍👧 ok", ""]
    text = page(written([texts]))
    check_page(text)
    assert "&lt;script&gt;" in text
    assert not set("\x1b\x07\u202e") & set(text)
    assert 'dir="auto"' in text
    assert "👩‍👧 ok" in text
    assert visible("a\x1b\n\\\u202e👩‍👧") == "a\\x1b\\n\\\\\\u202e👩‍👧"
    assert not set("\x1b\x07\u202e") & set(summary(written([texts])))


def test_page_of_many_groups_stays_readable():
    texts = [[f"group {g} text {k}" for k in range(64)] for g in range(100)]
    text = page(written(texts))
    assert "and 36 more groups in samples.txt" in check_page(text)
    assert text.count("<article>") == 64
    assert len(text) < 400_000
    # Folded away where there are several groups, open where there is one.
    assert "<details open>" not in text
    assert "<details open><summary>All 64 by weight" in page(written(texts[:1]))


def test_every_particle_dead():
    dead = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    population = written([["a", "b", "c"]], rewards=dead, log_weights=dead + torch.nan, log_z=dead[:, 0] + torch.nan)
    assert "Every particle died" in check_page(page(population))
    assert "best texts" not in summary(population)


# -- samples.txt, the terminal, comparisons -------------------------------------------------------------------------------------------


def test_samples_are_lines_of_reward_weight_and_text():
    log_w = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.4, 0.4]], dtype=torch.float64).log()
    config = {"groups": [4, 5], "model": {"name": "m", "prompts": ["a\nfilm"]}}
    lines = samples_text(written([["a", "b\nb", "a longer one"], ["x", "y", "zz"]], log_w, config=config)).splitlines()
    assert lines == [
        "# reward\t  weight\ttext",
        "#",
        "# a\\nfilm (group 4)",
        "       3\t0.600000\tb\\nb",
        "      12\t0.300000\ta longer one",
        "       1\t0.100000\ta",
        "#",
        "# a\\nfilm (group 5)",
        "       2\t0.400000\tzz",
        "       1\t0.400000\ty",
        "       1\t0.200000\tx",
    ]


def test_the_terminal_shows_the_best_texts():
    one = summary(written([["a", "bbb", "bbb", "cc"]]))
    lines = one[one.index("best texts") :].splitlines()
    assert [line.split() for line in lines] == [["best", "texts", "3", "bbb", "×2"], ["2", "cc"], ["1", "a"]]
    many = summary(replace(written([["a", "bb"]] * 9), unsteered=written([["plain"]] * 9)))
    assert "and 3 more groups in samples.txt" in many
    assert re.search(r"unsteered +5  plain", many)


def test_comparisons_show_the_best_text_of_each_method():
    populations = {"vasr": run(), "best-of-n": run("best-of-n"), "base": run("base")}
    rows = [{**row(name, p), "lam": 1.0} for name, p in populations.items()]
    best = {name: readings(p, 0, by_reward=True)[0].text for name, p in populations.items()}
    assert {r["method"]: r["best_text"] for r in rows} == best
    task = {"model": "words", "reward": "r", "steps": STEPS, "lam": 1.0, "seed": 0, "budget": 96, "groups": [0, 1]}
    text = comparison(task, rows, populations, {}, {})
    words = check_page(text)
    assert "Side by side" in words
    assert all(line in words for line in best.values())
    assert all(f"<em>{name}</em>" in text for name in populations)
    json.dumps(rows)
