"""The embedded text-to-image model, its language, and the reward that reads its pictures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import quiet

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import viot
from viot.models.captions import FOLDER, PROMPTS
from viot.rewards.captions import PARTS, Captions, grammar, judge, nets, reader, score, shown
from viot.rewards.captions.grammar import COLOURS, SIDE, SINGLE, STACKED, Thing, parse


@pytest.fixture(scope="module")
def model():
    return viot.load("captions", prompt=["two sevens", "a red three above a blue one"])


# -- the language ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "ways"),
    [
        ("a seven", [(SINGLE, (Thing(7),))]),
        ("An Eight.", [(SINGLE, (Thing(8),))]),
        ("a thick red three", [(SINGLE, (Thing(3, 1, 1),))]),
        ("two thin zeros", [(SIDE, (Thing(0, None, 2),) * 2), (STACKED, (Thing(0, None, 2),) * 2)]),
        ("a three above a one", [(STACKED, (Thing(3), Thing(1)))]),
        ("a three below a one", [(STACKED, (Thing(1), Thing(3)))]),
        ("a green six left of a two", [(SIDE, (Thing(6, 2), Thing(2)))]),
        ("a green six right of a two", [(SIDE, (Thing(2), Thing(6, 2)))]),
        ("a six beside a two", [(SIDE, (Thing(6), Thing(2))), (SIDE, (Thing(2), Thing(6)))]),
        ("a six beside a six", [(SIDE, (Thing(6), Thing(6)))]),
    ],
)
def test_captions_mean_what_they_say(caption, ways):
    assert [(way.layout, way.things) for way in parse(caption)] == ways


@pytest.mark.parametrize(
    "caption", ["", "seven", "a purple seven", "two seven", "three sevens", "a one above", "a one above a two above a six"]
)
def test_other_sentences_are_refused(caption):
    with pytest.raises(ValueError, match="small language"):
        parse(caption)


def test_every_thing_can_be_said_and_read():
    choices = itertools.product(range(10), [None, *range(len(COLOURS))], [None, 1, 2])
    for digit, colour, stroke in choices:
        thing = Thing(digit, colour, stroke)
        assert parse(str(thing)) == (grammar.Reading(SINGLE, (thing,)),)
    said = "two zeros; a one beside an eight; a two left of a three; a two right of a three; a two above a three; a two below a three"
    assert {word for text in said.split("; ") for word in text.split()} <= set(grammar.WORDS)
    assert len(set(grammar.WORDS)) == len(grammar.WORDS) - 1  # "two" is a count and a digit


# -- the reward -----------------------------------------------------------------------------------------------------------------------


class Says(torch.nn.Module):
    """A reader with fixed answers."""

    def __init__(self, seed=0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        g = torch.Generator().manual_seed(seed)
        self.read = {name: torch.randn(2, n, generator=g).log_softmax(1) for name, n in nets.HEADS.items()}

    def forward(self, images):
        return self.read


def test_the_reward_is_the_probability_that_the_caption_is_true():
    net = Says()
    p = {name: value.exp() for name, value in net.read.items()}
    images = torch.zeros(2, 3, 48, 48)
    got = score(net, images, ["two red sevens", "a thick three beside a one"])
    pair = p["digit0"][0, 7] * p["digit1"][0, 7] * p["colour0"][0, 1] * p["colour1"][0, 1]
    assert float(got.total[0]) == pytest.approx(math.log(float(pair * (p["layout"][0, SIDE] + p["layout"][0, STACKED]))), abs=1e-5)
    one = p["digit0"][1, 3] * p["stroke0"][1, 1] * p["digit1"][1, 1]
    other = p["digit0"][1, 1] * p["digit1"][1, 3] * p["stroke1"][1, 1]
    assert float(got.total[1]) == pytest.approx(math.log(float(p["layout"][1, SIDE] * (one + other))), abs=1e-5)
    assert set(got.parts) == set(PARTS)
    # The parts are those of the likeliest reading, so they add up to it.
    best = math.log(float(p["layout"][1, SIDE] * max(one, other)))
    assert float(sum(part[1] for part in got.parts.values())) == pytest.approx(best, abs=1e-5)


def test_showing_a_caption_asks_for_all_that_it_says():
    net = Says()
    best = {name: int(value[0].argmax()) for name, value in net.read.items()}
    layout = {SINGLE: "{a}", SIDE: "{a} left of {b}", STACKED: "{a} above {b}"}[best["layout"]]
    a, b = (Thing(best[f"digit{k}"], best[f"colour{k}"], best[f"stroke{k}"] or None) for k in (0, 1))
    images = torch.zeros(1, 3, 48, 48)
    assert bool(shown(net, images, [layout.format(a=a, b=b)])[0])
    wrong = Thing((a.digit + 1) % 10, a.colour, a.stroke)
    assert not bool(shown(net, images, [layout.format(a=wrong, b=b)])[0])
    assert not bool(shown(net, images, [layout.format(a=Thing(a.digit, (a.colour + 1) % 5), b=b)])[0])


def test_the_reward_asks_for_prompts_unless_it_has_a_caption_of_its_own():
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    own = viot.rewards.as_reward("captions:two sevens")
    assert own.asks == ()
    assert torch.equal(own(images).total, Captions()(images, ["two sevens"] * 2).total)
    with pytest.raises(ValueError, match="one prompt per sample"):
        Captions()(images)
    with pytest.raises(ValueError, match="small language"):
        viot.rewards.as_reward("captions:a dog")
    with pytest.raises(ValueError, match=r"pictures \(n, 3, 48, 48\)"):
        Captions("a seven")(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match="asks for prompts"):
        viot.sample("digits", "captions", particles=2, steps=2)


def test_reader_and_judge_read_colours_and_layouts():
    """Plain bars, drawn here: a bar is nearest to a one, in its colour and place."""
    tints = {"white": (1.0, 1.0, 1.0), "red": (1.0, 0.2, 0.2), "blue": (0.3, 0.45, 1.0)}
    for net in (reader(), judge()):
        for name, tint in tints.items():
            image = torch.zeros(1, 3, 48, 48)
            for left in (11, 35):
                image[0, :, 15:33, left : left + 3] = torch.tensor(tint)[:, None, None]
            read = {k: int(v[0].argmax()) for k, v in net(image).items()}
            assert read["layout"] == SIDE
            assert COLOURS[read["colour0"]] == COLOURS[read["colour1"]] == name
            assert bool(shown(net, image, [f"two {name} ones"])[0])


def test_gradients_reach_the_picture():
    image = torch.full((1, 3, 48, 48), 0.3).requires_grad_()
    own = Captions("a red seven")
    before = own(image).total.sum()
    slope = torch.autograd.grad(before, image)[0]
    with torch.no_grad():
        assert own(image + 1e-3 * slope.sign()).total.sum() > before
    assert own.differentiable


# -- the model ------------------------------------------------------------------------------------------------------------------------


def test_the_model_keeps_the_contract(model):
    viot.testing.check_model(model, steps=3)
    assert model.event_shape == (4, 12, 12)
    assert model.config["name"] == "captions"
    grid = model.grid(10)
    assert float(grid.sigmas[-1]) == 0
    assert float(grid.sigmas[0]) > 0.999


def test_it_is_small():
    files = [*FOLDER.rglob("*"), *(FOLDER.parents[1] / "rewards/captions").rglob("*.safetensors")]
    assert sum(f.stat().st_size for f in files if f.is_file()) < 8e6


def test_steering_makes_captions_true(model):
    """The whole latent path: noisy decodes, prompt groups, a reward by the prompt; and a reward blind to the caption does not help."""
    settings = {"particles": 6, "steps": 12, "progress": False}
    with quiet():
        base = viot.sample(model, "captions", "base", **settings)
        steered = viot.sample(model, "captions", "vasr", lam=2.0, **settings)
        blind = viot.sample(model, "brightness", "vasr", lam=2.0, **settings)
    texts = [p for p in model.prompts for _ in range(6)]
    judged = [score(judge(), p.samples.flatten(0, 1), texts).total.mean() for p in (base, steered, blind)]
    assert judged[1] > judged[0] + 1
    assert judged[1] > judged[2] + 1
    assert steered.rewards.mean() > base.rewards.mean() + 1
    assert set(steered.parts) == set(PARTS)


def test_the_caption_matters_and_guidance_too(model):
    x, group = model.prior(4, torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
    t = model.grid(10).times[5].expand(4)
    plain = viot.load("captions", prompt=model.prompts, guidance_scale=1.0)
    with torch.no_grad():
        mine, swapped = model.predict(x, t, group).x0, model.predict(x, t, 1 - group).x0
        assert (mine - swapped).abs().mean() > 0.02
        assert (mine - plain.predict(x, t, group).x0).abs().mean() > 0.01
    assert viot.load("captions").prompts == list(PROMPTS)
