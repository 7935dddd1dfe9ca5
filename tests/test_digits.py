"""The model that comes with the package: it draws digits, it steers, and it is small."""

from pathlib import Path

import pytest
import torch

import viot

pytest.importorskip("diffusers")
from viot.rewards.digits import judge

PACKAGE = Path(viot.__file__).parent


@pytest.fixture(scope="module")
def model():
    return viot.load("digits")


def test_weights_are_small_and_no_pickles():
    weights = [p for p in PACKAGE.rglob("*") if p.suffix in {".safetensors", ".pt", ".pth", ".bin", ".pkl"}]
    assert {p.suffix for p in weights} == {".safetensors"}
    most = {"digits": 5e6, "captions": 7e6, "cifar": 6e6, "names": 1e6, "reviews": 1e7, "readers": 4e6, "aesthetic.safetensors": 4e6}
    size = {name: sum(p.stat().st_size for p in weights if name in p.parts) for name in most}
    assert all(0 < size[name] < limit for name, limit in most.items()), size
    assert sum(size.values()) == sum(p.stat().st_size for p in weights), "weights that nobody has named here"


def test_keeps_the_contract(model):
    viot.testing.check_model(model, steps=4)
    assert model.event_shape == (1, 28, 28)
    assert model.config["weights"]


def test_draws_digits_and_steers(model):
    """A judge that did not steer reads sevens; unsteered, it reads about a tenth of them. K and T are small here: see docs/results.md."""
    shared = {"particles": 24, "groups": 2, "steps": 16, "progress": False}
    base = viot.sample(model, "digit:7", "base", **shared)
    steered = viot.sample(model, "digit:7", "vasr", **shared)

    def sevens(p):
        with torch.no_grad():
            return judge()(p.draw(64, seed=0).samples.flatten(0, 1)).argmax(1).eq(7).float().mean().item()

    assert sevens(base) < 0.35
    assert sevens(steered) > 0.8
    assert steered.nfe == base.nfe == 2 * 24 * 16
    x = base.samples
    assert x.min() >= 0
    assert x.max() <= 1
    assert 0.08 < x.mean() < 0.2, "MNIST's mean pixel is 0.13"


def test_gradients_reach_the_noisy_image(model):
    problem = viot.prepare(model, "digit:7", "base", particles=2, steps=4).problem
    x = problem.rows(problem.prior())
    _, rewards, grad = problem.evaluate(x, problem.grid.times[1], torch.zeros(2, dtype=torch.long), score=True, grad=True)
    assert grad.shape == x.shape
    assert grad.abs().sum() > 0
    assert rewards.shape == (2,)
    assert all(p.requires_grad for p in model.unet.parameters())


def test_patches_are_other_coordinates_of_the_same_image(model):
    """Pixel-unshuffle is orthogonal: noise stays white noise, and the network's answer comes back where it belongs."""
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.nn.functional.pixel_unshuffle(x, 2).norm(), x.norm())
    t = model.grid(10).times[6].expand(1)
    with torch.no_grad():
        x0 = model.predict(x, t, torch.zeros(1)).x0
    assert x0.shape == x.shape
