"""Small photographs: the model that comes with the package, who reads its pictures, and the bench that steers it class by class."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import quiet
from tiny import seeded

import viot
from viot import bench, cli
from viot.bench import reference
from viot.bench.features import features
from viot.methods import make
from viot.report.compare import judge_of
from viot.rewards import as_reward
from viot.rewards.cifar import CLASSES, Cifar, classifier, judge
from viot.rewards.cifar.nets import ResNet20
from viot.rewards.referee import Referee, referees

DATA = Path(os.environ.get("VIOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason=f"no photographs in {DATA}; VIOT_DATA names the folder")
PACKAGE = Path(viot.__file__).parent


@pytest.fixture(scope="module")
def model():
    return viot.load("cifar16")


@pytest.fixture(scope="module")
def drawn(model):
    """Draws of the plain model: two groups of 24, few steps."""
    return viot.sample(model, "cifar:frog", "base", particles=24, groups=2, steps=16, progress=False)


@seeded
def ddpm(side=32):
    """google/ddpm-cifar10-32's kind of pipeline, with a tiny network."""
    import diffusers

    net = diffusers.UNet2DModel(
        sample_size=side, block_out_channels=(8, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=4,
    )  # fmt: skip
    return diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())


def held_out(n, side):
    import numpy as np

    with np.load(DATA / "cifar10" / "test.npz") as found:
        x, y = torch.from_numpy(found["images"][:n]), torch.from_numpy(found["labels"][:n]).long()
    return F.interpolate(x.permute(0, 3, 1, 2).float() / 255, size=(side, side), mode="area"), y


def right(log_p, y):
    return (log_p.argmax(1) == y).float().mean().item()


# -- the model ------------------------------------------------------------------------------------------------------------------------


def test_the_weights_come_with_the_package():
    size = {p.name: p.stat().st_size for p in PACKAGE.rglob("*.safetensors") if "cifar" in p.parts}
    assert set(size) == {"diffusion_pytorch_model.safetensors", "classifier.safetensors", "judge.safetensors"}
    assert size["diffusion_pytorch_model.safetensors"] <= 4e6
    assert sum(size.values()) <= 6e6
    training = json.loads((PACKAGE / "models/cifar/training.json").read_text(encoding="utf-8"))
    assert (training["size"], training["patch"]) == (16, 2)
    assert training["steps"] > 0
    assert 0 < training["test_velocity_loss"] < 1


def test_keeps_the_contract(model):
    viot.testing.check_model(model, steps=4)
    assert model.event_shape == (3, 16, 16)
    assert model.config["name"] == "cifar16"


def test_draws_look_like_photographs_in_numbers(model, drawn):
    x = drawn.samples
    assert x.shape == (2, 24, 3, 16, 16)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1
    # Of CIFAR-10 at this size: mean 0.47, standard deviation 0.24, neighbours correlated by 0.9. Of noise that is shaped alike: no correlation.
    assert 0.35 < x.mean() < 0.6
    assert 0.15 < x.std() < 0.33

    def neighbours(x):
        left, right = (x - x.mean())[..., :-1], (x - x.mean())[..., 1:]
        return float((left * right).mean() / (left.square().mean() * right.square().mean()).sqrt())

    assert neighbours(x) > 0.75
    noise = model.decode(model.prior(48, torch.Generator().manual_seed(0)), torch.zeros(48))
    assert abs(neighbours(noise)) < 0.1


def test_a_seed_decides(model):
    flags = {"particles": 3, "steps": 4, "progress": False}
    with quiet():
        a, b, c = (viot.sample(model, "cifar:frog", "base", **flags, seed=seed).samples for seed in (7, 7, 8))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_judge_that_did_not_steer_sees_what_was_asked_for(model, drawn):
    steered = viot.sample(model, "cifar:frog", "vasr", particles=24, groups=2, steps=16, progress=False)
    share = judge_of("cifar:frog")
    assert share is not None
    assert share(steered) > share(drawn) + 0.3
    assert share(drawn) < 0.4


# -- who reads ------------------------------------------------------------------------------------------------------------------------


def test_class_rewards_are_log_probabilities(drawn):
    x = drawn.samples[0, :6]
    log_p = classifier()(x).log_softmax(1)
    assert torch.allclose(as_reward("cifar:cat")(x), log_p[:, 3])
    assert torch.allclose(as_reward("cifar:airplane,ship")(x), log_p[:, [0, 8]].amax(1))
    assert as_reward("cifar:ship,airplane").name == "cifar:airplane,ship"
    viot.testing.check_reward(as_reward("cifar:cat"), x)


def test_larger_pictures_are_averaged_down(drawn):
    """Four equal pixels, and a chequer of two that have the mean, read as the one; another mean does not."""
    x = drawn.samples[0, :4]
    big = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    chequer = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16) * 0.1
    reward = as_reward("cifar:cat")
    assert torch.allclose(reward(big + chequer), reward(x), atol=1e-5)
    assert not torch.allclose(reward(big + chequer.abs()), reward(x), atol=1e-3)
    assert torch.allclose(judge().features(big + chequer), judge().features(x), atol=1e-4)
    big.requires_grad_()
    (grad,) = torch.autograd.grad(reward(big).sum(), big)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 24, 24), (2, 3, 8, 8), (2, 3, 16, 32), (2, 4, 3, 16, 16), (2, 2)])
def test_other_shapes_are_told(shape):
    with pytest.raises(ValueError, match=r"cifar:cat reads colour pictures \(n, 3, 16, 16\)"):
        as_reward("cifar:cat")(torch.rand(shape))


def test_classes_are_looked_up():
    with pytest.raises(ValueError, match=r"unknown class of CIFAR-10 'frogs'.*Did you mean 'frog'"):
        as_reward("cifar:frogs")
    with pytest.raises(ValueError, match="must name classes"):
        Cifar([])
    with pytest.raises(ValueError, match="cifar:cat"):
        as_reward("cifar")
    with pytest.raises(ValueError, match="reads pictures"):
        as_reward("cifar:cat")(["a cat"])


@needs_data
def test_readers_tell_held_out_photographs():
    """Two networks that err on different ones: a judge that shared its errors with what it judges would be none."""
    x, y = held_out(500, 16)
    with torch.no_grad():
        ours, others = classifier()(x), judge()(x)
    assert right(ours, y) > 0.7
    assert right(others, y) > 0.66
    wrong = (ours.argmax(1) != y) & (others.argmax(1) != y)
    assert (ours.argmax(1) == others.argmax(1))[wrong].float().mean() < 0.9
    assert right(ours, y.roll(1)) < 0.2


def published_file(folder, prefix="module."):
    """A file as ResNet-20 was published, with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResNet20()
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 9.0}, folder / "resnet20.th")
    return net.eval(), folder / "resnet20.th"


def test_a_published_network_is_read_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
    net, file = published_file(tmp_path)
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reward = as_reward(f"cifar-resnet:cat,dog@{file}")
    assert reward.name == f"cifar-resnet:cat,dog@{file}"
    assert torch.allclose(reward(x), net(x).log_softmax(1)[:, [3, 5]].amax(1))
    with pytest.raises(ValueError, match=r"reads colour pictures \(n, 3, 32, 32\)"):
        reward(torch.rand(2, 3, 16, 16))
    with pytest.raises(OSError, match=r"no nowhere\.th; give the ResNet-20"):
        as_reward("cifar-resnet:cat@nowhere.th")
    with pytest.raises(ValueError, match="cifar-resnet:cat@FILE"):
        as_reward("cifar-resnet:cat")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.th")
    with pytest.raises(ValueError, match="does not hold the weights of CIFAR's ResNet-20"):
        as_reward(f"cifar-resnet:cat@{tmp_path / 'other.th'}")


@needs_data
def test_the_published_weights_do_what_they_were_published_with(tmp_path, monkeypatch):
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path))
    x, y = held_out(300, 32)
    reward = as_reward(f"cifar-resnet:cat@{DATA / 'weights' / 'resnet20-12fca82f.th'}")
    with torch.no_grad():
        assert right(reward.network(x), y) > 0.87
        # What it was not normalised for it reads worse.
        assert right(reward.network(x * 2 - 1), y) < 0.8


# -- the referee ----------------------------------------------------------------------------------------------------------------------


def test_the_share_read_as_wanted_is_weighted(drawn):
    share = judge_of("cifar:airplane,ship")
    assert share is not None
    with torch.no_grad():
        read = judge()(drawn.samples.flatten(0, 1)).argmax(1).view(2, 24)
    wanted = ((read == 0) | (read == 8)).double()
    assert share(drawn) == pytest.approx(float(wanted.mean()))
    heavy = viot.sample("cifar16", "cifar:airplane,ship", "importance", particles=24, groups=2, steps=16, progress=False)
    assert torch.equal(heavy.samples, drawn.samples)
    assert share(heavy) == pytest.approx(float((heavy.weights * wanted).sum(1).mean()))
    assert share(heavy) != pytest.approx(share(drawn), abs=0.05), "weights that test nothing"


def test_only_rewards_with_a_referee_are_checked(monkeypatch):
    assert Referee.of("brightness") is None
    assert Referee.of(as_reward("cifar:cat")) is None
    # Nobody has to load gigabytes to learn that there is none.
    monkeypatch.setattr("viot.hub.pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert Referee.of("aesthetic") is None
    for name in referees:
        found = Referee.of({"digit": "digit:7", "digits": "digits:even", "cifar": "cifar:cat"}.get(name, ""))
        assert found is None or found.network is not classifier()


# -- the bench ------------------------------------------------------------------------------------------------------------------------


def test_the_task_asks_for_every_class():
    task = bench.tasks["cifar10"].make()
    assert task.rewards == tuple(f"cifar:{name}" for name in CLASSES)
    assert len(set(task.rewards)) == 10
    assert (task.model, task.features, task.steps, task.portable) == ("cifar16", "cifar-judge", 50, True)
    assert {"base", "fkd", "tds", "das", "dps", "dts", "vasr", "fvd"} <= set(task.methods)
    assert {lam for lam, _ in task.methods.values()} == {1.0}
    assert make("dts", **task.methods["dts"][1]).schedule == make("dts", **bench.tasks["mnist"].make().methods["dts"][1]).schedule
    assert features["cifar-judge"].make()(torch.rand(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("other", [False, True])
def test_a_row_says_what_the_judge_saw(other, tmp_path, monkeypatch):
    """Also of another model whose pictures are larger: it is read by the same features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "CHUNK", 16)
    flags = ["--methods", "base,vasr", "--nfe", "32", "--seeds", "1", "--groups", "2", "--steps", "4", "--reference", "16"]
    if other:
        ddpm().save_pretrained(tmp_path / "ddpm")
        flags += ["--model", str(tmp_path / "ddpm")]
    with quiet():
        assert cli.main(["bench", "cifar10", *flags, "--reward", "cifar:frog", "--out", str(tmp_path / "a")]) == 0
    found = {row["method"]: row for row in (json.loads(p.read_text(encoding="utf-8")) for p in (tmp_path / "a/rows").glob("*.json"))}
    assert set(found) == {"base", "vasr"}
    for row in found.values():
        assert "failed" not in row
        assert row["nfe"] == 32
        assert 0 <= row["metrics"]["judge"] <= 1
        assert row["metrics"]["mmd"] > 0
        assert row["metrics"]["frechet"] > 0
        assert row["config"]["reward"] == "cifar:frog"
        assert row["config"]["model"]["event_shape"] == ([3, 32, 32] if other else [3, 16, 16])
    assert found["vasr"]["metrics"]["reward"] > found["base"]["metrics"]["reward"]
    assert "judge" in (tmp_path / "a/table.md").read_text(encoding="utf-8")
