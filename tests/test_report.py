"""The page, the pictures and the verdict: whole, self-contained, escaped, and right about what they say."""

import html
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from helpers import quiet
from PIL import Image

import viot
from viot import lineage, weights
from viot.model import Grid, Prediction
from viot.population import Population
from viot.report import contact_sheet, notebook, page, save_report, to_pil, verdict
from viot.report.svg import Line, chart, log_ticks, ticks
from viot.report.tree import layout, tree
from viot.report.verdict import lam_for_ess, standard_error, strength_advice
from viot.report.words import count, duration, fixed, number, obstacle, percent, places
from viot.rewards import Quadratic

VOID = {"meta", "img", "br", "hr", "link", "input"}
#: What SVG may leave unclosed is written with a slash here.
SHAPES = {"line", "circle", "rect", "polyline", "polygon", "path"}


class Balance(HTMLParser):
    """Every element closed by its own end tag, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        assert tag in SHAPES | VOID

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check_page(text):
    """A whole document that asks the network for nothing and holds no broken numbers; returns its words."""
    assert text.startswith("<!DOCTYPE html>")
    found = Balance(text)
    assert all(address.startswith("data:image/") for address in found.addresses)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "url(" not in text
    assert "@import" not in text
    for attribute in re.findall(r'\b(?:d|points|x|y|x1|x2|y1|y2|cx|cy|r|width|height)="([^"]*)"', text):
        assert not re.search(r"nan|inf", attribute), attribute
    return " ".join("".join(found.text).replace("\u202f", "").split())


class Images:
    """Colour images 3×6×5 whose denoiser is trivial: enough to have pictures."""

    event_shape, dtype, device = (3, 6, 5), torch.float32, torch.device("cpu")

    def grid(self, steps):
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        alphas, sigmas = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
        alphas[0], sigmas[0] = 0.0, 1.0
        return Grid(t[:-1], alphas, sigmas)

    def prior(self, n, generator):
        return torch.randn(n, *self.event_shape, generator=generator)

    def predict(self, x, t, group):
        return Prediction(x * torch.cos(t * torch.pi / 2).float().view(-1, 1, 1, 1))

    def decode(self, x0, group):
        return (x0 / 2 + 0.5).clamp(0, 1)


class Words(Images):
    """The same chain, whose samples are texts."""

    def decode(self, x0, group):
        return [f"<i>{v:+.2f}</i> & so on\nand on" for v in x0.flatten(1)[:, 0].tolist()]


def run(model="gaussian", reward=None, method="vasr", **kwargs):
    reward = reward or Quadratic([1.0, 1.0], 1.0)
    return viot.sample(model, reward, method, **{"particles": 24, "steps": 10, "progress": False, **kwargs})


def brightness(samples):
    return 8 * samples.flatten(1).mean(1)


def made(log_w=None, rewards=None, g=1, k=32, **changes):
    """A population written by hand: even weights, every particle its own lineage, one selection in which nobody died."""
    log_w = torch.zeros(g, k, dtype=torch.float64) if log_w is None else log_w
    g, k = log_w.shape
    rewards = torch.linspace(0, 3, k, dtype=torch.float64).repeat(g, 1) if rewards is None else rewards
    told = {
        "samples": torch.zeros(g, k, 2),
        "x0": torch.zeros(g, k, 2),
        "rewards": rewards,
        "log_weights": weights.normalize(log_w),
        "log_z": torch.zeros(g, dtype=torch.float64),
        "exact": True,
        "roots": torch.arange(k).repeat(g, 1),
        "ancestors": torch.arange(k, dtype=torch.int32).repeat(1, g, 1),
        "trace": {"step": torch.tensor([5]), "ess": torch.full((1, g), float(k))},
        "config": {"lam": 1.0, "groups": list(range(g)), "steps": 10, "method": {"name": "vasr"}},
    }
    return Population(**{**told, **changes})


# -- the page -------------------------------------------------------------------------------------------------------------------------


def test_page_of_points_is_whole_and_says_what_was_done():
    words = check_page(page(run(groups=3, steps=20)))
    assert "3 groups of 24 particles drawn by vasr in 20 steps" in words
    for section in ("Samples", "Groups", "On the way", "Genealogy", "Cost", "Run it again"):
        assert section in words
    assert "1440" in words


@pytest.mark.parametrize("method", ["base", "importance", "best-of-n", "fkd", "fvd", "vasr", "vasr-max"])
def test_page_of_every_method(method):
    population = run(Images(), brightness, method, groups=2)
    words = check_page(page(population))
    assert population.config["method"]["name"] in words
    assert ("Absorption" in words) == (method == "fvd")
    assert ("makes no selection" in words) == (method in ("base", "importance", "best-of-n"))
    assert ("By weight" in words) == population.exact


def test_page_of_a_subset_and_of_one_particle():
    population = run(Images(), brightness)
    check_page(page(population.best(3)))
    check_page(page(population.draw(5)))
    check_page(page(run(Images(), brightness, particles=1)))


def test_page_of_one_dimension_and_of_many():
    line = viot.models.gaussian.GaussianMixture([[0.0]])
    words = check_page(page(run(line, Quadratic(1.0))))
    assert "share of the mass" in words
    cube = viot.models.gaussian.GaussianMixture([[0.0] * 5])
    assert "first two of 5 coordinates" in check_page(page(run(cube, Quadratic(1.0))))


def test_pictures_are_inline_and_as_many_as_promised():
    text = page(run(Images(), brightness, particles=70))
    tiles = text.count('<img class="pixels" src="data:image/png;base64,')
    assert tiles == 64 + 12
    assert "and 6 more particles" in check_page(text)


def test_strangers_strings_are_escaped():
    def score(samples):
        return samples.flatten(1).mean(1)

    score.name = '<script>alert("r")</script>'
    population = run(Images(), viot.rewards.Sum({"<b>x": score, "y&z": brightness}))
    text = page(population)
    words = check_page(text)
    assert "<script" not in text
    assert "<b>x" in words
    assert "y&z" in words
    population = run(Words(), lambda samples: torch.tensor([float(s[3:8]) for s in samples]))
    text = page(population)
    assert "&lt;i&gt;" in text
    assert "<i>+" not in text
    check_page(text)


def test_page_with_dead_particles_and_a_dead_group():
    def picky(samples, group):
        r = samples[:, 0].clone()
        r[samples[:, 0] < 0] = -torch.inf
        return torch.where(group == 1, -torch.inf, r)

    with pytest.warns(viot.SteeringWarning, match="group 1 died"):
        population = run("gaussian", picky, groups=3)
    words = check_page(page(population))
    assert "Group 1 died" in words
    assert verdict(population).level != "believe"


def test_page_of_a_large_population_stays_small_and_says_so():
    population = run(particles=4096, method="fkd", steps=20, lam=2.0)
    text = page(population)
    assert len(text) < 1.2e6
    words = check_page(text)
    assert "Only an even sample is drawn: 128 of 4096 final particles" in words
    assert "2000 heaviest of 4096" in words


def test_notebook_frame_holds_the_page_and_no_style_of_its_own():
    population = run()
    frame = notebook(population)
    outside, inside = re.fullmatch(r"(<iframe .*?)srcdoc=\"(.*?)\"(?: .*)</iframe>", frame, re.DOTALL).groups()
    assert html.unescape(inside) == page(population)
    assert "<style" not in outside
    assert 'sandbox=""' in frame


def test_video_and_prompts():
    population = run(Images(), brightness, groups=2, particles=4)
    config = json.loads(json.dumps(population.config))
    config["model"]["config"] = {"prompts": ["a <cat>", "a dog"]}
    video = replace(population, samples=population.samples[:, :, None].expand(-1, -1, 7, -1, -1, -1).contiguous(), config=config)
    assert video.modality == "video"
    text = page(video)
    check_page(text)
    assert "group 0: a &lt;cat&gt;" in text
    # Four frames side by side in the place of one picture.
    still = replace(population, config=config)
    assert contact_sheet(video).height < contact_sheet(still).height


# -- files ----------------------------------------------------------------------------------------------------------------------------


def test_save_writes_every_file_whole(tmp_path):
    population = run(Images(), brightness)
    population.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "population.safetensors", "samples.png", "images", "report.html"}
    assert sorted(p.name for p in (tmp_path / "images" / "000").iterdir()) == [f"{rank:02d}.png" for rank in range(24)]
    with Image.open(tmp_path / "samples.png") as sheet:
        sheet.load()
        assert sheet.mode == "RGB"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(population)
    save_report(Population.load(tmp_path), tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_texts_are_listed_by_weight(tmp_path):
    population = run(Words(), lambda samples: torch.tensor([float(s[3:8]) for s in samples]), method="importance")
    save_report(population, tmp_path)
    lines = (tmp_path / "samples.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert len(rows) == 24
    assert all(row[2].endswith("so on\\nand on") for row in rows)
    shares = [float(row[1]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert not (tmp_path / "samples.png").exists()


def test_points_have_no_sheet(tmp_path):
    save_report(run(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_without_pillow_the_rest_is_written(tmp_path, monkeypatch):
    population = run(Images(), brightness)
    for name in [n for n in sys.modules if n == "PIL" or n.startswith("PIL.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match=r"Pillow: pip install 'viot\[report\]'") as told:
        population.save(tmp_path)
    assert [w.category for w in told] == [UserWarning]
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "population.safetensors", "report.html"}
    assert "pip install 'viot[report]'" in check_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    with pytest.raises(ImportError, match=r"pip install 'viot\[report\]'"):
        to_pil(torch.zeros(1, 2, 2))


# -- pictures -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_to_pil_is_exact(channels, mode):
    bytes_ = torch.randint(0, 256, (channels, 4, 7), generator=torch.Generator().manual_seed(0))
    image = to_pil(bytes_ / 255)
    assert (image.mode, image.size) == (mode, (7, 4))
    assert list(image.tobytes()) == bytes_.permute(1, 2, 0).flatten().tolist()


def test_to_pil_clips_and_explains():
    assert list(to_pil(torch.tensor([[[-1.0, 2.0, torch.nan, 0.5]]])).tobytes()) == [0, 255, 0, 128]
    with pytest.raises(ValueError, match=r"one image \(C, H, W\) with 1, 3 or 4 channels, not \(2, 3, 3\)"):
        to_pil(torch.zeros(2, 3, 3))


def test_contact_sheet_sorts_by_weight_and_frames_the_best():
    values = torch.tensor([0.2, 0.4, 0.6, 0.8])
    samples = values.view(1, 4, 1, 1, 1).expand(1, 4, 1, 28, 28)
    log_w = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log()
    population = made(log_w, torch.tensor([[3.0, 0.0, 1.0, 2.0]], dtype=torch.float64), samples=samples)
    sheet = contact_sheet(population)
    side = 28 * 3
    grey = [sheet.getpixel((17 + i * (side + 5) + side // 2, 17 + side // 2))[0] for i in range(3)]
    assert grey == [round(255 * v) for v in (0.4, 0.8, 0.6)]
    # The best is the lightest particle, in the second line: its frame is coloured, the pixel beyond it paper.
    assert sheet.getpixel((17 - 3, 17 + side + 5 + 10)) == (213, 94, 0)
    assert sheet.getpixel((17 - 4, 17 + side + 5 + 10)) == (250, 250, 249)
    with pytest.raises(TypeError, match="contact sheet is made of images"):
        contact_sheet(made())


def test_large_images_are_reduced():
    population = made(samples=torch.rand(1, 2, 3, 700, 500), log_w=torch.zeros(1, 2, dtype=torch.float64))
    assert contact_sheet(population).height < 400
    text = page(population)
    assert "data:image/jpeg" in text
    assert len(text) < 400_000


# -- the genealogy --------------------------------------------------------------------------------------------------------------------


def test_layout_has_no_crossings():
    ancestors = torch.randint(0, 50, (6, 50), generator=torch.Generator().manual_seed(1))
    place = layout(ancestors)
    assert all(torch.equal(p.sort().values, torch.arange(50)) for p in place)
    for s in range(6):
        by_place = place[s + 1].argsort()
        of_parents = place[s][ancestors[s][by_place]]
        assert (of_parents.diff() >= 0).all()


def test_tree_draws_every_line_of_a_small_run():
    ancestors = torch.randint(0, 16, (5, 16), generator=torch.Generator().manual_seed(2)).to(torch.int32)
    drawing = tree(ancestors, [1, 2, 3, 4, 5], 6)
    # One segment per particle and selection, and one from the last selection to the end.
    segments = "".join(re.findall(r'class="(?:faint|kin s\d)" d="([^"]*)"', drawing))
    assert segments.count("M") == 16 * 5 + 16
    left = len(lineage.roots(ancestors[:, None])[-1].unique())
    assert f"{left} lineage{'s' * (left > 1)} of 16" in drawing
    assert len(re.findall('class="kin', drawing)) == left
    assert "even sample" not in drawing


# -- the verdict ----------------------------------------------------------------------------------------------------------------------


def test_even_weights_are_believed():
    found = verdict(made())
    assert found.level == "believe"
    assert "32 effective particles of 32" in found.headline


def test_a_single_heavy_particle_is_doubted_with_a_strength_to_try():
    rewards = torch.linspace(0, 40, 32, dtype=torch.float64)[None]
    population = made(2 * rewards, rewards, config={"lam": 2.0, "groups": [0], "method": {"name": "importance"}})
    found = verdict(population)
    assert found.level == "doubt"
    milder = float(re.search(r"lam=([\d.]+)", " ".join(found.reasons))[1])
    assert weights.ess(milder * rewards).item() == pytest.approx(0.3 * 32, rel=0.15)


def test_strength_for_an_ess_skips_dead_particles():
    rewards = torch.cat([torch.linspace(0, 9, 60), torch.full((4,), -torch.inf)]).double()[None]
    population = made(weights.tilt(rewards, 3.0), rewards, config={"lam": 3.0})
    lam = lam_for_ess(population)
    assert weights.ess(weights.tilt(rewards, lam)).item() == pytest.approx(0.3 * 64, rel=0.1)


@pytest.mark.parametrize(("spread", "level"), [(0.1, "believe"), (0.7, "caution"), (1.5, "doubt")])
def test_disagreement_of_groups(spread, level):
    z = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    found = verdict(made(g=4, log_z=z / z.std() * spread))
    assert found.level == level
    if level != "believe":
        times = math.ceil((spread / 0.5) ** 2 - 1e-9)
        assert any(f"About {max(2, times)} times the particles" in reason for reason in found.reasons)


def test_groups_of_different_prompts_need_not_agree():
    config = {"lam": 1.0, "groups": [0, 1, 2, 3], "method": {"name": "vasr"}, "model": {"config": {"prompts": ["a", "b"]}}}
    z = torch.tensor([0.0, 9.0, 0.1, 9.1], dtype=torch.float64)
    assert verdict(made(g=4, log_z=z, config=config)).level == "believe"
    assert verdict(made(g=4, log_z=z)).level == "doubt"


def test_one_lineage_and_faults_ask_for_care():
    found = verdict(made(roots=torch.zeros(1, 32, dtype=torch.long)))
    assert found.level == "caution"
    assert any("share one ancestor" in reason for reason in found.reasons)
    found = verdict(made(faults=3))
    assert found.level == "caution"
    assert any("NaN or +inf 3 times" in reason for reason in found.reasons)


def test_maximisers_are_not_scolded():
    uneven = torch.linspace(0, 90, 32, dtype=torch.float64)[None]
    found = verdict(made(uneven, exact=False, config={"lam": 1.0, "groups": [0], "method": {"name": "vasr-max"}}))
    assert found.level == "believe"
    assert "Candidates, not draws: vasr-max" in found.headline
    assert not found.reasons
    assert strength_advice(made(uneven, exact=False)) is None
    assert "Plain draws" in verdict(made(exact=False, config={"lam": 1.0, "method": {"name": "base"}})).headline


def test_weak_steering_is_told_from_a_saturated_reward():
    flat = torch.linspace(-0.01, 0, 32, dtype=torch.float64)[None]
    assert "hardly felt" in strength_advice(made(rewards=flat, log_z=torch.tensor([-0.005], dtype=torch.float64)))
    # log Z far below λ E[r]: the particles are somewhere else than the model would be, though their rewards are all alike.
    assert strength_advice(made(rewards=flat, log_z=torch.tensor([-2.3], dtype=torch.float64))) is None


def test_everybody_dead():
    dead = torch.full((1, 8), -torch.inf, dtype=torch.float64)
    population = made(dead, dead, log_z=torch.tensor([torch.nan]))
    assert verdict(population).level == "doubt"
    check_page(page(population))


@pytest.mark.parametrize("method", ["importance", "vasr", "fkd"])
def test_standard_error_is_what_repetition_shows(method):
    population = run("gaussian", Quadratic([1.0, 1.0], 2.0), method, particles=128, groups=150, steps=10, lam=0.5)
    means = population.mean()
    fields = ("rewards", "log_weights", "log_z", "roots", "samples", "x0")
    each = [
        standard_error(
            replace(population, **{f: getattr(population, f)[i : i + 1] for f in fields}, ancestors=population.ancestors[:, i : i + 1])
        )
        for i in range(150)
    ]
    predicted = torch.tensor(each).square().mean().sqrt().item()
    assert predicted == pytest.approx(means.std().item(), rel=0.3)
    assert standard_error(population) == pytest.approx(means.std().item() / math.sqrt(150), rel=0.3)


# -- words ----------------------------------------------------------------------------------------------------------------------------


def test_numbers_as_people_read_them():
    assert [number(v) for v in (0, 1, -2.5, 0.012345, 1234.5, 3.2e-7, -2e9, math.nan, -math.inf)] == [
        "0", "1", "−2.50", "0.0123", "1234", "3.20·10⁻⁷", "−2.00·10⁹", "–", "−∞",
    ]  # fmt: skip
    assert count(12800) == "12\u202f800"
    assert [percent(v) for v in (0, 0.0004, 0.031, 0.5, 1)] == ["0 %", "< 0.1 %", "3.1 %", "50 %", "100 %"]
    assert [duration(v) for v in (0.0001, 0.34, 12.14, 250, 7300)] == ["< 1 ms", "340 ms", "12.1 s", "4 min 10 s", "2 h 1 min"]


@pytest.mark.parametrize(("low", "high"), [(0, 64), (-8.3, 0.2), (1e-6, 3e-6), (-1, 1), (0, 1e9)])
def test_ticks_cover_and_are_few(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low + 1e-9 * abs(high)
    assert marks[-1] >= high * (1 - 1e-9)
    assert 3 <= len(marks) <= 9


def test_numbers_side_by_side_share_their_decimals():
    assert places([3.0, 40.0]) == 0
    values = [-12.3, -0.0004, -5.0]
    assert [fixed(v, places(values)) for v in [*values, -math.inf]] == ["−12.30", "0.00", "−5.00", "−∞"]
    assert places([0.5, 0.5004]) == 6


def test_only_named_runs_can_be_repeated():
    assert obstacle(run("gaussian", "brightness").config) is None
    assert "its reward (quadratic)" in obstacle(run("gaussian").config)
    why = obstacle(run(Images(), lambda samples: brightness(samples)).config)
    assert "its model (Images) and its reward" in why
    assert "were objects, not names" in why
    config = run("gaussian", "brightness").config
    assert "its reward (brightness)" in obstacle({**config, "own": ["reward"]})


def test_a_collapse_behind_equal_weights_is_doubted():
    """One selection whose weights rest on one particle leaves equal weights and a full ESS: neither says anything then."""
    with quiet():
        population = viot.sample("gaussian", lambda x: -x.square().sum(1) / 2, "vasr", particles=64, steps=10, progress=False)
    assert verdict(population).level == "believe"
    ess = population.trace["ess"].clone()
    ess[0] = 1.0
    collapsed = replace(population, roots=torch.zeros_like(population.roots), trace={**population.trace, "ess": ess})
    assert verdict(collapsed).level == "doubt"
    assert "outweighed all others" in verdict(collapsed).headline
    # Few lineages alone are a reason for care, not for doubt.
    assert verdict(replace(collapsed, trace=population.trace)).level == "caution"


def test_logarithmic_axes_have_round_numbers_at_their_marks():
    assert log_ticks(10.0, 160.0) == [10, 20, 50, 100]
    assert log_ticks(0.009, 12.0) == pytest.approx([0.01, 0.1, 1, 10])
    assert len(log_ticks(1e-30, 1e30)) <= 6
    assert log_ticks(2.1, 2.2) == [2.1]
    lines = [Line("a", [1000.0, 4000.0, 16000.0, 0.0], [0.4, 0.2, 0.1, 0.05]), Line("b", [1000.0, 1e6], [0.3, 0.0])]
    drawn = chart("t", "n", lines, log="xy")
    assert re.findall(r'class="tick"[^>]*>([^<]*)<', drawn) == ["0.1", "0.2", "1\u202f000", "2\u202f000", "5\u202f000", "10\u202f000"]
    # Halving is the same step down wherever it happens; what has no logarithm is left out, and numbers are told as they are.
    points = re.findall(r'<polyline class="line s1" points="([^"]*)"', drawn)[-1]
    x, y = zip(*[map(float, point.split(",")) for point in points.split()], strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)
    assert "a: 0.200 at 4000" in drawn
    assert chart("t", "n", [Line("a", [0.0], [1.0])], log="x") == ""
