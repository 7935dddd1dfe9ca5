"""The fields of a bench: targets of prompts, features by name, captions, Stable Diffusion, and fronts between two rewards."""

import math
import sys
import types

import pytest
import tiny
import torch
from helpers import quiet, rows, viot_
from painter import Painter
from safetensors.torch import save_file
from test_hub_rewards import CLIP, shaken
from test_report import check_page

import viot
from viot import bench
from viot.bench import features, front_report, reference
from viot.bench.front import Front, weights
from viot.bench.tasks import Preset
from viot.metrics import frechet_distance, hypervolume, mmd, nondominated
from viot.models import models
from viot.models.gaussian import GaussianMixture
from viot.registry import Entry
from viot.report.words import number
from viot.rewards import as_reward, rewards
from viot.rewards.captions import judge, shown
from viot.rewards.combine import spelled
from viot.rewards.images import Preprocess

transformers = pytest.importorskip("transformers")
PROMPTS = ["a red disc", "a green disc", "a blue disc"]


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.entries, "painter", Entry(Painter, "discs"))
    preset = Preset(
        model="painter", reward="brightness", prompts=lambda: PROMPTS, papers=("none",), particles=6, steps=4, lam=30.0, methods={},
        features="pixels", reference=24,
    )  # fmt: skip
    monkeypatch.setitem(bench.tasks.entries, "discs", Entry(lambda: preset, "discs"))


def drawn(model, reward, method="base", **settings):
    with quiet():
        return viot.sample(model, reward, method, progress=False, **settings)


# -- a target for each prompt ---------------------------------------------------------------------------------------------------------

DISCS = ["bench", "discs", "--methods", "base,vasr", "--nfe", "24", "--seeds", "1"]


def test_every_group_is_held_against_draws_of_its_own_prompt(tmp_path, runs):
    assert viot_(*DISCS, "--groups", "1:5", "--out", tmp_path / "a") == 0
    # Groups 1, 2, 3 and 4 follow the prompts 1, 2, 0 and 1.
    assert sorted(p.name for p in (tmp_path / "a" / "reference").iterdir()) == [f"00{i}.safetensors" for i in range(3)]
    assert runs == ["base"] * 3 + ["base", "vasr"]
    found = rows(tmp_path / "a")["vasr.24.0.json"]["metrics"]
    model = Painter(PROMPTS)
    p = drawn(model, "brightness", "vasr", particles=6, groups=range(1, 5), steps=4, lam=30.0)
    base = {i: drawn(model, "brightness", particles=24, groups=(i,), steps=4, seed=-1) for i in range(3)}
    y = {i: d.samples[0].flatten(1).double() for i, d in base.items()}
    v = {i: (30 * d.rewards[0]).softmax(0) for i, d in base.items()}
    x = p.samples.flatten(2).double()
    h = sum(torch.pdist(points).sort().values[23 * 24 // 4 - 1] for points in y.values()) / 3

    def mean(prompts):
        return sum(float(mmd(x[g], y[i], p.weights[g], v[i], bandwidth=float(h))) for g, i in enumerate(prompts)) / 4

    assert found["mmd"] == pytest.approx(mean((1, 2, 0, 1)), rel=1e-3)
    assert mean((2, 0, 1, 2)) > 1.2 * found["mmd"], "prompts that are alike test nothing"
    assert found["mmd base"] == pytest.approx(
        sum(mmd(x[g], y[i], p.weights[g], bandwidth=float(h)) for g, i in enumerate((1, 2, 0, 1))) / 4, rel=1e-3
    )
    log_z = torch.tensor([float((30 * base[i].rewards[0]).logsumexp(0)) - math.log(24) for i in (1, 2, 0, 1)], dtype=torch.float64)
    assert found["log z error"] == pytest.approx((p.log_z - log_z).abs().mean().item())
    assert found["target ess"] == pytest.approx(sum(1 / float(v[i].square().sum()) for i in (1, 2, 0, 1)) / 4)
    # All together: a quarter of the mass for each group, so half of it at the prompt that two follow.
    whole, mass = torch.cat([y[i] for i in (1, 2, 0, 1)]), torch.cat([v[i] for i in (1, 2, 0, 1)])
    assert found["frechet"] == pytest.approx(frechet_distance(x.flatten(0, 1), whole, p.weights.flatten(), mass), rel=1e-6)
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "the target of its prompt: 24 base draws of it weighed by exp(λ r); a Gaussian kernel in the pixels themselves" in text
    assert "ESS of the target" in text


def test_a_target_that_rests_on_few_draws_is_not_told(tmp_path):
    assert viot_(*DISCS, "--lam", "3000", "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")["vasr.24.0.lam3000.json"]["metrics"]
    assert not {"mmd", "swd", "frechet", "log z error", "precision"} & set(found)
    assert found["mmd base"] > 0
    # Of three prompts one may be known: then it alone is told, of every method.
    model = Painter(PROMPTS)
    base = [drawn(model, "brightness", particles=24, groups=(i,), steps=4, seed=-1) for i in range(3)]
    ess = [float(1 / (300 * d.rewards[0]).softmax(0).square().sum()) for d in base]
    known = [i for i in range(3) if ess[i] >= reference.EFFECTIVE]
    refs = reference.References({i: d.samples[0] for i, d in enumerate(base)}, model, "pixels")
    against = refs.against("brightness", 300.0)
    assert [i for i in range(3) if against.of(i).chain is not None] == known
    assert against.of(7) is against.of(1)
    loose = refs.against("brightness", 30.0).together([0, 1, 2]).chain
    assert loose.weights.sum() == pytest.approx(1)
    assert len(loose.points) == 72


def test_prompts_are_added_to_a_reference(tmp_path, runs):
    assert viot_(*DISCS, "--groups", "0:1", "--out", tmp_path / "a") == 0
    assert runs == ["base", "base", "vasr"]
    for path in (tmp_path / "a" / "rows").iterdir():
        path.unlink()
    runs.clear()
    assert viot_(*DISCS, "--groups", "0:2", "--out", tmp_path / "a") == 0
    assert runs == ["base", "base", "vasr"], "prompt 0 was drawn again"


# -- features -------------------------------------------------------------------------------------------------------------------------


def test_rows_of_other_features_are_refused(tmp_path, capsys, runs, monkeypatch):
    (tmp_path / "mine.py").write_text("def colours(samples):\n    return samples.mean((2, 3))\n\nother = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert viot_(*DISCS, "--features", "mine:colours", "--out", tmp_path / "a") == 0
    row = rows(tmp_path / "a")["vasr.24.0.json"]
    assert (row["config"]["reading"]["features"], row["config"]["reading"]["reference"]) == ("mine:colours", 24)
    assert "in the features of mine:colours" in (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    p = drawn(Painter(PROMPTS), "brightness", "vasr", particles=6, steps=4, lam=30.0)
    x = p.samples.mean((3, 4)).double()
    each = [float(w @ torch.cdist(c, c) @ w / (1 - w @ w)) for c, w in zip(x, p.weights, strict=True)]
    assert row["metrics"]["euclidean"] == pytest.approx(sum(each) / 3, rel=1e-5)
    runs.clear()
    assert viot_(*DISCS, "--out", tmp_path / "a") == 2
    assert "reading.features: 'mine:colours' there, 'pixels' here" in capsys.readouterr().err
    # Nothing is spent on features that cannot be.
    for kind, said in (
        ("clipp", "Did you mean 'clip'?"),
        ("mine:colour", "the module mine has no function 'colour'"),
        ("mine:other", "mine:other is no function of samples"),
        ("nosuch:thing", "no module of that name"),
        ("digits-judge", "the features digits-judge do not read samples of shape (3, 24, 24)"),
        ("pixels:2", "these features take no '2'; write pixels"),
    ):
        assert viot_(*DISCS, "--features", kind, "--out", tmp_path / "b") == 2
        assert said in capsys.readouterr().err
    assert viot_("bench", "text", "--features", "pixels", "--nfe", "40", "--out", tmp_path / "b") == 2
    assert "features are of points and pictures, and" in capsys.readouterr().err
    assert viot_("bench", "mixture", "--features", "pixels", "--nfe", "1000", "--out", tmp_path / "b") == 2
    assert "are of pictures (n, C, H, W), not of points" in capsys.readouterr().err
    assert not runs
    assert viot_(*DISCS, "--features", "none", "--out", tmp_path / "c") == 0
    assert "euclidean" not in rows(tmp_path / "c")["vasr.24.0.json"]["metrics"]


def test_a_reader_of_captions_reads_by_its_features():
    x = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found, net = features.read("captions-judge", x), judge()
    assert found.shape == (5, 864)
    logits = net.head(found.float()).split([3, 10, 5, 3, 10, 5, 3], 1)
    assert torch.allclose(torch.log_softmax(logits[1], 1), net(x)["digit0"], atol=1e-5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny CLIP model, whose embeddings are as wide as the aesthetic head reads."""
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        config = transformers.CLIPConfig(
            **{**CLIP, "projection_dim": 768, "vision_config": {**CLIP["vision_config"], "projection_dim": 768}}
        )
        network = shaken(transformers.CLIPModel(config))
    network.save_pretrained(folder)
    return folder


def embedded(folder, samples):
    """Unit embeddings, written out with the whole model."""
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        answer = network.visual_projection(network.vision_model(pixel_values=Preprocess(32)(samples)).pooler_output)
    return (answer / answer.norm(dim=-1, keepdim=True)).double()


def test_clip_features_are_unit_embeddings(clip):
    x = torch.rand(70, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    found = features.read(f"clip:{clip}", x)
    assert found.dtype == torch.float64
    assert torch.allclose(found, embedded(clip, x), atol=1e-5)
    assert found[:, 0].std() > 1e-3, "pictures that are all alike test nothing"
    assert features.standard_bandwidth(f"clip:{clip}") == 10.0
    assert features.standard_bandwidth("pixels") is None


def test_inception_is_read_as_published(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"pip install 'viot\[metrics\]'"):
        features.extractor("inception:x")
    asked = []

    class Net(torch.nn.Module):
        def __init__(self, name, wanted, weights, antialias):
            super().__init__()
            asked.append((name, wanted, antialias))
            self.scale = torch.nn.Parameter(torch.load(weights, weights_only=True)["scale"])

        def forward(self, x):
            assert x.dtype == torch.uint8
            return x.flatten(1)[:, :4].float() * self.scale

    fid = types.ModuleType("torchmetrics.image.fid")
    fid.NoTrainInceptionV3 = Net
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", fid)
    x = torch.tensor([0.0, 0.1, 0.5, 1.0]).view(1, 1, 2, 2)
    save_file({"scale": torch.full((1,), 2.0)}, tmp_path / "here.safetensors")
    assert features.read(f"inception:{tmp_path}/here.safetensors", x).tolist() == [[0, 52, 256, 510]]
    assert asked == [("inception-v3-compat", ["2048"], False)]
    assert viot_(*DISCS, "--features", "inception:gone", "--out", tmp_path / "a") == 2
    err = capsys.readouterr().err
    assert "the weights of InceptionV3 are not at gone: put https://github.com/" in err
    assert "To leave them out: --features none" in err


# -- Stable Diffusion -----------------------------------------------------------------------------------------------------------------


def test_animals_run_on_a_pipeline_from_disk(tmp_path, clip):
    tiny.sd().save_pretrained(tmp_path / "sd")
    reward = f"aesthetic:{clip}"
    flags = ["bench", "animals", "--model", tmp_path / "sd", "--reward", reward, "--judge", "brightness", "--features", f"clip:{clip}"]
    flags += ["--methods", "base,fkd", "--steps", "4", "--nfe", "16", "--groups", "0:3", "--seeds", "1", "--reference", "5"]
    assert viot_(*flags, "--out", tmp_path / "a") == 0
    row = rows(tmp_path / "a")["fkd.16.0.json"]
    found = row["metrics"]
    assert len(row["config"]["model"]["prompts"]) == 45
    assert len(list((tmp_path / "a" / "reference").iterdir())) == 3
    animals = bench.tasks["animals"].make()
    model = viot.load(str(tmp_path / "sd"), prompt=animals.prompts())
    lam, settings = animals.published("fkd")
    p = drawn(model, reward, viot.methods.FKD(**settings), particles=4, groups=range(3), steps=4, lam=lam)
    assert found["pick"] == pytest.approx(p.rewards.amax(-1).mean().item(), rel=1e-4)
    x = embedded(clip, p.samples.flatten(0, 1))
    base = [drawn(model, reward, viot.methods.Base(eta=1.0), particles=5, groups=(i,), steps=4, seed=-1) for i in range(3)]
    y = torch.cat([embedded(clip, b.samples[0]) for b in base])
    squared = mmd(x, y, p.weights.flatten(), bandwidth=10.0) ** 2
    assert found["cmmd"] == pytest.approx(1000 * squared, rel=1e-3)
    # At that width a kernel of unit vectors is nearly linear: a tenth of the distance of the means.
    means = (p.weights.flatten() @ x / 3 - y.mean(0)).square().sum()
    assert found["cmmd"] == pytest.approx(float(1000 * means / 100), rel=0.05)
    each = [embedded(clip, group) for group in p.samples]
    assert found["cosine"] == pytest.approx(
        sum(float(w @ (1 - e @ e.T) @ w / (1 - w @ w)) for e, w in zip(each, p.weights, strict=True)) / 3, rel=1e-3
    )
    assert {"mmd base", "vendi", "euclidean"} <= set(found)
    best = p.best(1).samples.flatten(1).mean(1)
    assert found["brightness pick"] == pytest.approx(best.mean().item(), rel=1e-5)
    assert found["brightness"] != pytest.approx(found["brightness pick"], rel=1e-6)
    # Few draws, and strengths of their own: there is no target to be told.
    assert not {"mmd", "frechet", "log z error"} & set(found)
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "| CMMD to base |" in text
    assert f"in unit embeddings of CLIP (ViT-L/14 at 336 pixels) with the weights of {clip}" in text
    check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))


def test_drawbench_runs_by_prompts_of_ones_own(tmp_path):
    (tmp_path / "own.txt").write_text("\n".join([*PROMPTS, "a grey disc"]), encoding="utf-8")
    flags = ["bench", "drawbench", "--model", "painter", "--prompts", "own.txt", "--reward", "brightness", "--judge", "none"]
    flags += ["--methods", "base,vasr,best-of-n", "--steps", "4", "--nfe", "16", "--groups", "0:4", "--seeds", "2", "--features", "pixels"]
    assert viot_(*flags, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    assert len(found) == 6
    for row in found.values():
        assert row["config"]["reading"]["judges"] == []
        assert row["metrics"]["mmd base"] > 0
        assert "cmmd" not in row["metrics"], "the published number has features of its own"


def test_a_judge_that_cannot_be_had_is_told_before_anything_is_spent(tmp_path, capsys, monkeypatch, runs):
    def gone():
        raise OSError("the weights of THUDM/ImageReward are not on this machine")

    monkeypatch.setitem(rewards.entries, "imagereward", Entry(gone, "gone"))
    flags = ["bench", "animals", "--model", "painter", "--reward", "brightness", "--out", tmp_path / "a"]
    assert viot_(*flags) == 2
    err = capsys.readouterr().err
    assert "the judge imagereward cannot read these answers: the weights of THUDM/ImageReward are not on this machine" in err
    assert "To leave it out: --judge clip --judge hps" in err
    assert not runs
    assert not list((tmp_path / "a").glob("*/*"))


def test_a_reward_is_made_once_for_all_rows(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(rewards.entries, "dear", Entry(lambda: (made.append(1), as_reward("brightness"))[1], "dear"))
    assert viot_(*DISCS, "--reward", "dear", "--out", tmp_path / "a") == 0
    assert made == [1]
    assert rows(tmp_path / "a")["vasr.24.0.json"]["config"]["reward"] == "dear"


# -- captions -------------------------------------------------------------------------------------------------------------------------


def test_captions_are_read_by_a_judge_that_steers_nobody(tmp_path):
    flags = ["bench", "captions", "--methods", "vasr", "--steps", "5", "--nfe", "15", "--groups", "3:5", "--seeds", "1", "--reference", "2"]
    assert viot_(*flags, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")["vasr.15.0.json"]["metrics"]
    task = bench.tasks["captions"].make()
    captions = task.prompts()
    assert len(set(captions)) == 16
    lam, settings = task.published("vasr")
    p = drawn(
        viot.load("captions", prompt=captions), "captions", viot.methods.VASR(**settings), particles=3, groups=(3, 4), steps=5, lam=lam
    )
    agrees = torch.stack([shown(judge(), group, [captions[3 + g]] * 3) for g, group in enumerate(p.samples)]).double()
    assert found["captions-judge"] == pytest.approx(p.mean(agrees).mean().item())
    best = p.rewards.argmax(1)
    assert found["captions-judge pick"] == pytest.approx(agrees[torch.arange(2), best].mean().item())
    # The other caption is not what they show.
    crossed = torch.stack([shown(judge(), group, [captions[4 - g]] * 3) for g, group in enumerate(p.samples)])
    assert not crossed.any()
    assert "mmd base" in found
    assert "mmd" not in found, "two draws are no target"
    with pytest.raises(ValueError, match="small language"):
        as_reward("captions-judge").check(["a horse"])


# -- fronts ---------------------------------------------------------------------------------------------------------------------------


def test_hypervolume_by_hand():
    stairs = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    # Columns of width one: three, two and one high.
    assert hypervolume(stairs, (0.0, 0.0)) == 6
    more = torch.cat([stairs, torch.tensor([[1.0, 1.0], [2.0, 2.0], [5.0, -1.0], [0.0, 9.0]])])
    assert hypervolume(more, (0.0, 0.0)) == 6, "dominated, repeated, and not above the point"
    assert hypervolume(stairs, (1.0, 0.0)) == 3
    # Two wide and five high, then as before but two deeper.
    assert hypervolume(stairs, (-1.0, -2.0)) == 2 * 5 + 4 + 3
    assert hypervolume(stairs, (3.0, 0.0)) == 0
    assert nondominated(more).tolist() == [True, True, True, False, True, True, True]
    assert hypervolume(more[nondominated(more)], (0.0, 0.0)) == 6
    for points, point in ((torch.ones(2, 3), (0.0, 0.0)), (torch.tensor([[math.nan, 1.0]]), (0.0, 0.0)), (stairs, (0.0, math.inf))):
        with pytest.raises(ValueError, match="finite"):
            hypervolume(points, point)


def test_hypervolume_by_chance():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    low = torch.tensor([0.2, 0.1], dtype=torch.float64)
    at = low + torch.rand(400_000, 2, generator=generator, dtype=torch.float64) * (1 - low)
    share = (at[:, None] < points).all(-1).any(1).double()
    area = float((1 - low).prod())
    error = area * float(share.std()) / math.sqrt(len(at))
    assert abs(hypervolume(points, (0.2, 0.1)) - area * float(share.mean())) < 4 * error
    assert abs(hypervolume(points, (0.0, 0.0)) - area * float(share.mean())) > 40 * error
    kept = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert nondominated(points).tolist() == kept


def test_a_sum_is_written_with_its_weights():
    assert spelled("0.5*digit:4+2*regex:a+b+-1e-2*jpeg") == [(0.5, "digit:4"), (2.0, "regex:a+b"), (-0.01, "jpeg")]
    for text in ("digit:4", "0.5*", "x*digit:4", "digit:4+0.5*digit:9"):
        with pytest.raises(ValueError, match=r"write sum:0\.5\*digit:4"):
            spelled(text)
    reward = as_reward("sum:0.25*brightness+-2*jpeg")
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = reward(x, torch.zeros(3, dtype=torch.long), torch.zeros(3, 2))
    assert scores.total.tolist() == pytest.approx((0.25 * as_reward("brightness")(x) - 2 * as_reward("jpeg")(x)).tolist(), rel=1e-6)
    assert set(scores.parts) == {"brightness", "jpeg"}
    assert weights(("a", "b"), 2) == ("sum:0*a+1*b", "sum:0.5*a+0.5*b", "sum:1*a+0*b")


@pytest.fixture
def sides(monkeypatch):
    """Points between two ends, each of which one reward wants."""
    monkeypatch.setitem(models.entries, "line", Entry(lambda: GaussianMixture([[0.0, 0.0]], 1.0), "a Gaussian"))
    monkeypatch.setitem(rewards.entries, "left", Entry(lambda: viot.rewards.Quadratic([-2.0, 0.0], 1.0), "left"))
    monkeypatch.setitem(rewards.entries, "right", Entry(lambda: viot.rewards.Quadratic([2.0, 0.0], 1.0), "right"))
    front = Front(("left", "right"), (-9.0, -9.0))
    preset = Preset(
        model="line", reward="sum:1*left+0*right", rewards=weights(front.rewards, 2), front=front, prompts=None, papers=("none",), particles=8,
        steps=4, lam=4.0, methods={}, groups=2, features="points", reference=256,
    )  # fmt: skip
    monkeypatch.setitem(bench.tasks.entries, "sides", Entry(lambda: preset, "sides"))
    return front


def test_a_front_has_a_point_for_each_weight(tmp_path, monkeypatch, sides):
    monkeypatch.setattr(reference, "CHUNK", 256)
    assert viot_("bench", "sides", "--methods", "base,vasr", "--nfe", "160", "--seeds", "2", "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    assert len(found) == 2 * 2 * 3
    made = list(found.values())
    half = next(r for r in made if (r["method"], r["seed"], r["config"]["reward"]) == ("vasr", 1, "sum:0.5*left+0.5*right"))
    p = drawn(models.entries["line"].make(), "sum:0.5*left+0.5*right", "vasr", particles=40, groups=2, steps=4, lam=4.0, seed=1)
    for name in ("left", "right"):
        assert half["metrics"][f"part {name}"] == pytest.approx(p.mean(p.parts[name]).mean().item())
        assert half["metrics"][f"part {name} pick"] == pytest.approx(p.best(1).parts[name].mean().item())
    # Half of one and half of the other is the reward.
    assert half["metrics"]["reward"] == pytest.approx(sum(half["metrics"][f"part {n}"] for n in ("left", "right")) / 2)
    assert half["metrics"]["mmd"] > 0
    vasr = [r for r in made if r["method"] == "vasr"]
    at = front_report.points(vasr, sides)
    assert list(at) == [0, 1]
    assert list(at[0]) == [0.0, 0.5, 1.0]
    assert at[0][1.0][0] > at[0][0.5][0] > at[0][0.0][0]
    assert at[0][1.0][1] < at[0][0.5][1] < at[0][0.0][1]
    volumes = [hypervolume(torch.tensor(list(by.values())), (-9.0, -9.0)) for by in at.values()]
    mean = front_report.volume(vasr, sides, 3)
    assert mean.value == pytest.approx(sum(volumes) / 2)
    assert mean.error == pytest.approx(abs(volumes[0] - volumes[1]) / 2)
    # Steered fronts dominate more; a seed that lacks a weight has no front.
    assert mean.value > 1.3 * front_report.volume([r for r in made if r["method"] == "base"], sides, 3).value
    part = [r for r in vasr if r["seed"] == 0 or r["config"]["reward"] != "sum:0*left+1*right"]
    assert front_report.volume(part, sides, 3).value == pytest.approx(volumes[0])
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "line toward w·left + (1 − w)·right, λ = 4, 4 steps, 2 groups per seed; means over 2 seeds" in text
    assert f"| vasr | {mean} |" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Front, 160 network rows per group: left / right by weight", *[f"## 160 network rows per group, w = {w}" for w in ("0", "0.5", "1")]
    ]  # fmt: skip
    words = check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert "Front at 160 network rows per group" in words
    assert "dominate above (−9, −9)" in words
    drawing = dict(front_report.figures(made))["Front at 160 network rows per group"]
    x, y = (sum(by[0.5][i] for by in at.values()) / 2 for i in (0, 1))
    assert f"<title>vasr: {number(y)} at {number(x)}</title>" in drawing


def test_without_sums_there_is_no_front(tmp_path, sides):
    assert viot_("bench", "sides", "--methods", "base", "--nfe", "40", "--seeds", "1", "--reward", "left", "--out", tmp_path / "a") == 0
    row = rows(tmp_path / "a")["base.40.0.left.json"]
    assert not any(name.startswith("part ") for name in row["metrics"])
    assert "hypervolume" not in (tmp_path / "a" / "table.md").read_text(encoding="utf-8")


def test_the_front_of_the_package_names_rewards_that_exist():
    task = bench.tasks["pareto"].make()
    assert len(task.rewards) == 5
    for reward in task.rewards:
        made = as_reward(reward)
        assert tuple(made.rewards) == task.front.rewards
        assert sum(made.weights.values()) == 1
