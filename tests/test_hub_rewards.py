"""Rewards that are published networks, on tiny random ones, each against its formula written out here."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import Pictures
from torch import nn

import viot
from viot import hub
from viot.reward import asks_for
from viot.rewards import HPS, Aesthetic, ClipScore, ImageReward, PickScore, as_reward
from viot.rewards import hps as hps_module
from viot.rewards import imagereward as imagereward_module
from viot.rewards.aesthetic import Affine, Head, head_of
from viot.rewards.imagereward import Blip
from viot.rewards.images import Preprocess

transformers = pytest.importorskip("transformers")
DATA = Path(os.environ.get("VIOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
EOS, SIZE, DIM = 49, 32, 12
PROMPTS = ["a cat", "two dogs on the moon", "a", "a very long text with many more words than are read of it, really", "a cat"]
MEAN, STD = (torch.tensor(v)[:, None, None] for v in (Preprocess.mean, Preprocess.std))
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": EOS + 1}
TEXT |= {"max_position_embeddings": 9, "bos_token_id": 48, "eos_token_id": EOS, "pad_token_id": EOS, "hidden_act": "gelu"}
VISION = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": SIZE, "patch_size": 8}
VISION |= {"hidden_act": "gelu", "projection_dim": DIM}
CLIP = {"projection_dim": DIM, "text_config": TEXT, "vision_config": VISION}


class Words:
    """A tokenizer of single letters: bos, the letters, eos, then padding, with a mask."""

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        rows = [[48, *(ord(c) % 45 + 1 for c in text[: max_length - 2]), EOS] for text in texts]
        mask = torch.tensor([[1] * len(r) + [0] * (max_length - len(r)) for r in rows])
        return {"input_ids": torch.tensor([r + [EOS] * (max_length - len(r)) for r in rows]), "attention_mask": mask}


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def images(n=5, size=(20, 24), seed=0, channels=3):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed))


def shaken(network, seed=0):
    """Weights of a size that makes everything in the network matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.random.fork_rng():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if p.ndim == 1 else 0.0))
    return network.eval()


def tiny_clip():
    with torch.random.fork_rng():
        network = shaken(transformers.CLIPModel(transformers.CLIPConfig(**CLIP)))
    network.logit_scale.data.fill_(3.0)
    return network


def tiny_blip():
    vision = transformers.BlipVisionConfig(**VISION, layer_norm_eps=1e-6)
    text = transformers.BlipTextConfig(**imagereward_module.TEXT | tiny_text())
    with torch.random.fork_rng():
        return shaken(Blip(transformers.BlipVisionModel(vision), transformers.BlipTextModel(text, add_pooling_layer=False)))


def tiny_text():
    size = {"hidden_size": 16, "encoder_hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return size | {"vocab_size": 50, "max_position_embeddings": 40, "bos_token_id": 48, "sep_token_id": EOS}


def tiny_head(width, seed=0):
    with torch.random.fork_rng():
        head = Head(width)
    with torch.no_grad():
        for i, p in enumerate(head.parameters()):
            p.copy_(draw(*p.shape, seed=seed + i) / (p.shape[-1] ** 0.5 if p.ndim == 2 else 10))
    return head


MAKE = {
    "clip": lambda **k: ClipScore(model=tiny_clip(), tokenizer=Words(), **k),
    "clip text": lambda **k: ClipScore(text="a cat", model=tiny_clip(), tokenizer=Words(), **k),
    "aesthetic": lambda **k: Aesthetic(model=tiny_clip(), head=tiny_head(DIM), **k),
    "pickscore": lambda **k: PickScore(model=tiny_clip(), tokenizer=Words(), **k),
    "hps": lambda **k: HPS(model=tiny_clip(), tokenizer=Words(), **k),
    "imagereward": lambda **k: ImageReward(model=tiny_blip(), head=tiny_head(16), tokenizer=Words(), **k),
}
every = pytest.mark.parametrize("kind", MAKE)


def score(reward, samples, prompts=None):
    wanted = {"prompts": PROMPTS[: len(samples)] if prompts is None else prompts} if "prompts" in asks_for(reward) else {}
    return reward(samples, **wanted)


# -- what the networks are shown ----------------------------------------------------------------------------------------------------------


def resized(image, size):
    """Pillow's own bicubic on floating-point pixels, channel by channel: no rounding."""
    from PIL import Image

    rows = []
    for channel in image:
        picture = Image.new("F", (image.shape[2], image.shape[1]))
        picture.putdata(channel.flatten().tolist())
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        rows.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.float32).reshape(size))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(64, 64), (41, 67), (90, 71), (17, 12), (32, 45)])
def test_preprocessing_is_pillows_bicubic(size):
    """Shrinking and enlarging, square or not, sharp edges included: equal to Pillow's resizing of floats, cropped or padded here by hand."""
    x = (images(1, size) > 0.5).float()
    short = min(size)
    new = tuple(SIZE if s == short else int(SIZE * s / short) for s in size)
    want = resized(x[0], new).clamp(0, 1)
    top, left = (new[0] - SIZE) // 2, (new[1] - SIZE) // 2
    got = Preprocess(SIZE)(x)[0] * STD + MEAN
    assert torch.allclose(got, want[:, top : top + SIZE, left : left + SIZE], atol=1e-5)

    new = tuple(round(s * SIZE / max(size)) for s in size)
    want = torch.zeros(3, SIZE, SIZE)
    top, left = (SIZE - new[0]) // 2, (SIZE - new[1]) // 2
    want[:, top : top + new[0], left : left + new[1]] = resized(x[0], new)
    got = Preprocess(SIZE, fit="pad")(x)[0] * STD + MEAN
    assert torch.allclose(got, want, atol=1e-5), "padded with black, the overshoot kept"


def test_odd_surplus():
    x = torch.arange(7.0).expand(1, 3, 4, 7) / 7
    middle = {odd: Preprocess(4, odd=odd, mean=(0.0,) * 3, std=(1.0,) * 3)(x)[0, 0, 0, 0].item() * 7 for odd in ("floor", "even")}
    assert middle == pytest.approx({"floor": 1.0, "even": 2.0}), "of three columns too many: transformers cuts 1 | 2, torchvision 2 | 1"


@pytest.mark.parametrize("size", [(300, 260), (224, 224), (97, 130)])
def test_preprocessing_follows_the_published_processor(size):
    """Against transformers' processor, which rounds to grey levels between Pillow's passes: never further off than two levels, half a level on
    average for smooth pictures."""
    from PIL import Image

    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    coarse = F.interpolate(images(1, (9, 9)), size, mode="bicubic").clamp(0, 1)
    levels = coarse.mul(255).round().to(torch.uint8)
    picture = Image.frombytes("RGB", (size[1], size[0]), bytes(levels[0].permute(1, 2, 0).flatten().tolist()))
    want = torch.as_tensor(processor()(picture, return_tensors="pt")["pixel_values"][0])
    off = ((Preprocess()(levels.float() / 255)[0] - want) * STD * 255).abs()
    assert off.max() < 2
    assert off.mean() < 0.5


# -- the contract, for all of them ----------------------------------------------------------------------------------------------------------


@every
def test_keeps_the_contract_of_a_reward(kind):
    """Each sample by itself, in slices of any size and any order; gradients reach the pixels; nothing global moves."""
    viot.testing.check_reward(MAKE[kind](), images(), PROMPTS)


@every
def test_gradient_is_the_slope(kind):
    """Against central differences in double precision, and a step along it raises every score."""
    if kind not in ("aesthetic", "imagereward") and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("the text mask of transformers 4 overflows in double precision")
    reward = MAKE[kind](dtype=torch.float64)
    # Away from the bounds, where what overshoots is cut.
    x = (0.3 + 0.4 * images(3).double()).requires_grad_()
    scores = score(reward, x)
    assert scores.dtype == torch.float64
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    along, h = draw(*x.shape, seed=1, dtype=torch.float64), 1e-5
    with torch.no_grad():
        slope = (score(reward, x + h * along) - score(reward, x - h * along)) / (2 * h)
        assert torch.allclose(slope, (gradient * along).flatten(1).sum(1), rtol=1e-5, atol=1e-9)
        step = 1e-2 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        assert (score(reward, x + step) > scores).all()
    assert not any(p.requires_grad for p in reward.network.parameters()), "the network is frozen"


@every
def test_one_channel_and_video(kind):
    reward, grey = MAKE[kind](), images(3, channels=1)
    assert torch.allclose(score(reward, grey), score(reward, grey.expand(-1, 3, -1, -1)))
    video = torch.stack([images(3, seed=s) for s in range(4)], 1)
    frames = torch.stack([score(reward, video[:, i]) for i in range(4)])
    assert torch.allclose(score(reward, video), frames.mean(0), atol=1e-5)
    assert frames.std(0).min() > 1e-4, "frames differ, or their mean tells nothing"


@every
def test_half_precision_inside_single_outside(kind):
    exact, coarse = (score(MAKE[kind](dtype=d), images()) for d in (torch.float32, "bfloat16"))
    assert exact.dtype == coarse.dtype == torch.float32
    assert 0 < (exact - coarse).abs().max() < 0.1 * exact.abs().max()


@every
def test_bad_samples_and_prompts(kind):
    reward = MAKE[kind]()
    for bad in (torch.zeros(2, 2, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), ["a", "b"]):
        with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
            score(reward, bad)
    assert asks_for(reward) == (() if kind in ("aesthetic", "clip text") else ("prompts",))
    if asks_for(reward):
        with pytest.raises(ValueError, match="each of 3 samples; it got 2 prompts"):
            reward(images(3), ["a", "b"])
        with pytest.raises(ValueError, match="2 prompts, one of them int"):
            reward(images(2), ["a", 7])
        with pytest.raises(ValueError, match="needs the prompts"):
            reward(images(2), None)
    with pytest.raises(ValueError, match="floating-point"):
        MAKE[kind](dtype="int8")


# -- CLIP score, PickScore ------------------------------------------------------------------------------------------------------------------


def logits(network, x, prompts, **fit):
    """What CLIPModel itself says of the pairs: exp(scale) · cos."""
    tokens = Words()(prompts, "max_length", True, 9, "pt")
    with torch.no_grad():
        return network(pixel_values=Preprocess(SIZE, **fit)(x), **tokens).logits_per_image.diagonal()


def test_clip_score_is_the_cosine_and_pickscore_the_logit():
    network, x = tiny_clip(), images()
    want = logits(network, x, PROMPTS)
    pick = PickScore(model=network, tokenizer=Words())
    assert torch.allclose(pick(x, PROMPTS), want, atol=1e-4)
    assert pick.scale == pytest.approx(math.exp(3.0), rel=1e-6)
    clip = ClipScore(model=network, tokenizer=Words())
    assert torch.allclose(clip(x, PROMPTS), want / math.exp(3.0), atol=1e-5)
    assert clip(x, PROMPTS).std() > 0.01
    assert torch.allclose(ClipScore(text="a cat", model=network, tokenizer=Words())(x), clip(x, ["a cat"] * 5))
    assert torch.allclose(
        HPS(model=network, tokenizer=Words())(x, PROMPTS), logits(network, x, PROMPTS, fit="pad") / math.exp(3.0), atol=1e-5
    )


def test_features_as_tensors_or_in_objects():
    """transformers 4 returned the embeddings, 5 returns them inside an object."""
    network, x = tiny_clip(), images()
    want = ClipScore(model=network, tokenizer=Words())(x, PROMPTS)

    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = network, network.config

        def get_image_features(self, pixel_values):
            found = self.inner.vision_model(pixel_values=pixel_values).pooler_output
            return self.inner.visual_projection(found)

        def get_text_features(self, input_ids):
            return self.inner.text_projection(self.inner.text_model(input_ids=input_ids).pooler_output)

    assert torch.allclose(ClipScore(model=Old(), tokenizer=Words())(x, PROMPTS), want, atol=1e-6)


def test_a_prompt_is_read_once():
    reward, read = MAKE["clip"](), []
    tokenizer = reward.tokenizer
    reward.tokenizer = lambda texts, **k: read.append(list(texts)) or tokenizer(texts, **k)
    first = reward(images(), PROMPTS)
    assert torch.equal(reward(images(), PROMPTS), first)
    reward(images(2), ["a cat", "new"])
    assert read == [PROMPTS[:4], ["new"]]


def test_a_long_history_of_prompts_is_forgotten(monkeypatch):
    monkeypatch.setattr("viot.rewards.clip.REMEMBERED", 2)
    reward = MAKE["clip"]()
    assert torch.allclose(reward(images(), PROMPTS), MAKE["clip"]()(images(), PROMPTS)), "more prompts at once than are remembered"
    assert len(reward._texts) == 2


def test_checkpoints_load_from_folders(tmp_path, monkeypatch):
    """The whole way of a published checkpoint: config, safetensors and tokenizer on disk. And one that is another architecture."""
    network = tiny_clip()
    network.half().save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda source, **_: Words())
    reward = as_reward(f"clip:{tmp_path}:a cat")
    assert (reward.name, reward.text) == (f"clip:{tmp_path}:a cat", "a cat")
    assert next(reward.network.parameters()).dtype == torch.float32, "published in half precision, used in single"
    assert torch.allclose(reward(images()), ClipScore(text="a cat", model=network, tokenizer=Words())(images()), atol=1e-3)
    assert as_reward(f"pickscore:{tmp_path}")(images(), PROMPTS).shape == (5,)
    looks = as_reward(f"aesthetic:{tmp_path}")
    assert "text_model" not in "".join(looks.network.state_dict()), "the text tower is not loaded"

    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"could not be loaded .*; write clip:FOLDER"):
        as_reward(f"clip:{tmp_path}")
    tiny_blip().vision.save_pretrained(tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text((tmp_path / "config.json").read_text())
    with pytest.raises((ValueError, OSError), match=r"does not hold the weights of this CLIPModel: it lacks"):
        as_reward(f"clip:{tmp_path / 'other'}")


# -- aesthetic ------------------------------------------------------------------------------------------------------------------------------


def test_the_aesthetic_head_is_its_layers_multiplied_out():
    head, x = tiny_head(DIM).double().eval(), draw(7, DIM, dtype=torch.float64)
    want = x
    for i in (0, 2, 4, 6, 7):
        want = want @ head.state_dict()[f"layers.{i}.weight"].T + head.state_dict()[f"layers.{i}.bias"]
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(1024, DIM), (128, 1024), (64, 128), (16, 64), (1, 16)]
    assert torch.allclose(head(x), want[:, 0])
    assert torch.allclose(Affine(**head.affine())(x.float()).double(), want[:, 0], atol=1e-5)


def test_aesthetic_scores_the_unit_embedding():
    network, head = tiny_clip(), tiny_head(DIM)
    found = network.vision_model(pixel_values=Preprocess(SIZE, odd="even")(images())).pooler_output
    embedding = network.visual_projection(found)
    want = head.eval()(embedding / embedding.norm(dim=1, keepdim=True))
    assert torch.allclose(Aesthetic(model=network, head=head)(images()), want, atol=1e-5)
    with torch.random.fork_rng():
        tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))
    tower.load_state_dict({k: v for k, v in network.state_dict().items() if k.startswith(("vision_model", "visual_projection"))})
    assert torch.allclose(Aesthetic(model=tower, head=head)(images()), want, atol=1e-5), "the vision tower alone serves as well"


def test_heads_from_files(tmp_path, monkeypatch):
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
    embedded = head_of(None)
    assert embedded.weight.shape == (768,)
    assert embedded.weight.dtype == torch.float32
    torch.save(tiny_head(DIM).state_dict(), tmp_path / "head.pth")
    assert torch.equal(head_of(tmp_path / "head.pth").eval()(draw(3, DIM)), tiny_head(DIM).eval()(draw(3, DIM)))
    torch.save({"layers.0.weight": torch.zeros(3, 4)}, tmp_path / "no.pth")
    with pytest.raises(ValueError, match=r"no\.pth is no head of the aesthetic predictor"):
        head_of(tmp_path / "no.pth")
    with pytest.raises(OSError, match="there is no head"):
        head_of(tmp_path / "nowhere.pth")


@pytest.mark.skipif(not (DATA / "weights").is_dir(), reason=f"no published head in {DATA}; VIOT_DATA names the folder")
def test_the_published_aesthetic_head(tmp_path, monkeypatch):
    """Ten published embeddings of rising rating, by the published file and by the one that comes with the package."""
    numpy = pytest.importorskip("numpy")
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path))
    folder = DATA / "weights" / "laion_embeddings"
    e = torch.cat([torch.from_numpy(numpy.load(folder / f"vit_l_14_rating{i}.npy")) for i in range(10)]).float()
    published = head_of(DATA / "weights" / "sac+logos+ava1-l14-linearMSE.pth").eval()
    with torch.no_grad():
        scores, own = published(e), head_of(None)(e)
    assert scores.tolist() == pytest.approx([1.66, 2.36, 3.07, 3.67, 4.24, 4.70, 5.07, 5.37, 5.58, 5.75], abs=0.006)
    assert (scores.diff() > 0).all()
    assert torch.allclose(own, scores, atol=1e-5)


# -- HPS ------------------------------------------------------------------------------------------------------------------------------------


def open_clip_state():
    """Random weights under open_clip's names, as HPS publishes them."""
    state, seed = {"logit_scale": torch.tensor(2.0)}, 0

    def put(name, *shape, shift=0.0):
        nonlocal seed
        seed += 1
        state[name] = draw(*shape, seed=seed) * 0.3 + shift

    for tower, width, wide in (("visual.", 24, 48), ("", 16, 32)):
        for i in range(2):
            block = f"{tower}transformer.resblocks.{i}."
            put(block + "attn.in_proj_weight", 3 * width, width)
            put(block + "attn.in_proj_bias", 3 * width)
            layers = ("attn.out_proj", width, width), ("mlp.c_fc", wide, width), ("mlp.c_proj", width, wide)
            for name, out, into in layers:
                put(f"{block}{name}.weight", out, into)
                put(f"{block}{name}.bias", out)
            norms = ("ln_1", "ln_2")
            for name in norms:
                put(f"{block}{name}.weight", width, shift=1.0)
                put(f"{block}{name}.bias", width)
    for name, width in (("visual.ln_pre", 24), ("visual.ln_post", 24), ("ln_final", 16)):
        put(name + ".weight", width, shift=1.0)
        put(name + ".bias", width)
    put("visual.conv1.weight", 24, 3, 8, 8)
    put("visual.class_embedding", 24)
    put("visual.positional_embedding", 17, 24)
    put("visual.proj", 24, DIM)
    put("token_embedding.weight", EOS + 1, 16)
    put("positional_embedding", 9, 16)
    put("text_projection", 16, DIM)
    return state


def open_clip_features(w, pixels, tokens):
    """open_clip's two towers from its weights: pre-norm transformers, the image read at the class token, the text at its end."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-5)

    def blocks(x, tower, heads, mask):
        for i in range(2):
            b = f"{tower}transformer.resblocks.{i}."
            h = norm(x, b + "ln_1").transpose(0, 1)
            h = F.multi_head_attention_forward(
                h, h, h, h.shape[-1], heads, w[b + "attn.in_proj_weight"], w[b + "attn.in_proj_bias"], None, None, False, 0.0,
                w[b + "attn.out_proj.weight"], w[b + "attn.out_proj.bias"], training=False, need_weights=False, attn_mask=mask,
            )[0]  # fmt: skip
            x = x + h.transpose(0, 1)
            h = F.gelu(F.linear(norm(x, b + "ln_2"), w[b + "mlp.c_fc.weight"], w[b + "mlp.c_fc.bias"]))
            x = x + F.linear(h, w[b + "mlp.c_proj.weight"], w[b + "mlp.c_proj.bias"])
        return x

    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = blocks(norm(x, "visual.ln_pre"), "visual.", 3, None)
    image = norm(x[:, 0], "visual.ln_post") @ w["visual.proj"]
    t = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    t = norm(blocks(t, "", 2, torch.full((9, 9), -math.inf).triu(1)), "ln_final")
    text = t[torch.arange(len(t)), tokens.argmax(1)] @ w["text_projection"]
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


def test_hps_is_open_clips_network(tmp_path, monkeypatch):
    """The published file's whole way: a pickled open_clip checkpoint, opened once, its weights renamed; scores by open_clip's own formula."""
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hps_module, "VIT_H_14", CLIP)
    state = open_clip_state()
    torch.save({"epoch": 3, "name": "a run", "state_dict": state}, tmp_path / "HPS.pt")
    reward = HPS(str(tmp_path / "HPS.pt"), tokenizer=Words())
    x = images(5, (20, 31))
    # Padded: longer side 32, 21 of 32 rows, black above and below.
    pixels = Preprocess(SIZE, fit="pad")(x)
    assert torch.allclose(pixels[:, :, 4] * STD[:, 0] + MEAN[:, 0], torch.zeros(5, 3, SIZE), atol=1e-6)
    image, text = open_clip_features(state, pixels, Words()(PROMPTS, "max_length", True, 9, "pt")["input_ids"])
    assert torch.allclose(reward(x, PROMPTS), (image * text).sum(1), atol=1e-5)
    assert reward(x, PROMPTS).std() > 0.01

    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("opened the pickle again"))
    assert torch.equal(HPS(str(tmp_path / "HPS.pt"), tokenizer=Words())(x, PROMPTS), reward(x, PROMPTS))
    (copy,) = (tmp_path / "cache").iterdir()
    assert copy.suffix == ".safetensors"


def test_hps_weights_must_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hps_module, "VIT_H_14", CLIP)
    for change, message in (
        ({"visual.attn_pool.query": torch.zeros(2)}, "'visual.attn_pool.query' is no weight of an open_clip"),
        ({"ln_final.bias": None}, "lacks 'text_model.final_layer_norm.bias'"),
    ):
        state = {k: v for k, v in (open_clip_state() | change).items() if v is not None}
        torch.save(state, tmp_path / "HPS.pt")
        with pytest.raises(ValueError, match=message):
            HPS(str(tmp_path / "HPS.pt"), tokenizer=Words())
    with pytest.raises(ValueError, match=r"versions 2\.1 and 2\.0, or is a file; '3' is neither"):
        HPS("3")


# -- ImageReward ----------------------------------------------------------------------------------------------------------------------------


def blip_state(head):
    """Random weights under the names of ImageReward.pt, with what it holds beside: contrastive heads and tables of positions."""
    state, seed = {}, 100

    def put(name, *shape, shift=0.0):
        nonlocal seed
        seed += 1
        state["blip." + name] = draw(*shape, seed=seed) * 0.3 + shift

    def linear(name, out, into):
        put(name + ".weight", out, into)
        put(name + ".bias", out)

    def norm(name, width):
        put(name + ".weight", width, shift=1.0)
        put(name + ".bias", width)

    put("visual_encoder.cls_token", 1, 1, 24)
    put("visual_encoder.pos_embed", 1, 17, 24)
    put("visual_encoder.patch_embed.proj.weight", 24, 3, 8, 8)
    put("visual_encoder.patch_embed.proj.bias", 24)
    for i in range(2):
        b = f"visual_encoder.blocks.{i}."
        for name, out, into in (("attn.qkv", 72, 24), ("attn.proj", 24, 24), ("mlp.fc1", 48, 24), ("mlp.fc2", 24, 48)):
            linear(b + name, out, into)
        norm(b + "norm1", 24)
        norm(b + "norm2", 24)
    norm("visual_encoder.norm", 24)
    put("text_encoder.embeddings.word_embeddings.weight", 50, 16)
    put("text_encoder.embeddings.position_embeddings.weight", 40, 16)
    norm("text_encoder.embeddings.LayerNorm", 16)
    for i in range(2):
        b = f"text_encoder.encoder.layer.{i}."
        for attention, into in (("attention", 16), ("crossattention", 24)):
            linear(f"{b}{attention}.self.query", 16, 16)
            linear(f"{b}{attention}.self.key", 16, into)
            linear(f"{b}{attention}.self.value", 16, into)
            linear(f"{b}{attention}.output.dense", 16, 16)
            norm(f"{b}{attention}.output.LayerNorm", 16)
        linear(b + "intermediate.dense", 32, 16)
        linear(b + "output.dense", 16, 32)
        norm(b + "output.LayerNorm", 16)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    linear("vision_proj", 8, 24)
    linear("text_proj", 8, 16)
    return state | {f"mlp.{k}": v.clone() for k, v in head.state_dict().items()}


def blip_reward(w, pixels, tokens, mask):
    """The published network from its weights: a pre-norm ViT, then a post-norm BERT whose every token looks at the words, then at the patches."""

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)

    def attend(q, k, v, heads, bias=0.0):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    w = {k.removeprefix("blip."): v for k, v in w.items()}
    x = F.conv2d(pixels, w["visual_encoder.patch_embed.proj.weight"], w["visual_encoder.patch_embed.proj.bias"], stride=8)
    x = torch.cat([w["visual_encoder.cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + w["visual_encoder.pos_embed"]
    for i in range(2):
        b = f"visual_encoder.blocks.{i}."
        x = x + linear(attend(*linear(norm(x, b + "norm1", 1e-6), b + "attn.qkv").chunk(3, -1), 3), b + "attn.proj")
        x = x + linear(F.gelu(linear(norm(x, b + "norm2", 1e-6), b + "mlp.fc1")), b + "mlp.fc2")
    patches = norm(x, "visual_encoder.norm", 1e-6)

    e = "text_encoder.embeddings."
    t = w[e + "word_embeddings.weight"][tokens] + w[e + "position_embeddings.weight"][: tokens.shape[1]]
    t = norm(t, e + "LayerNorm", 1e-12)
    padding = (1.0 - mask[:, None, None].float()) * -10000.0
    for i in range(2):
        b = f"text_encoder.encoder.layer.{i}."
        for attention, seen, bias in (("attention", None, padding), ("crossattention", patches, 0.0)):
            a, seen = b + attention, t if seen is None else seen
            h = attend(linear(t, a + ".self.query"), linear(seen, a + ".self.key"), linear(seen, a + ".self.value"), 2, bias)
            t = norm(t + linear(h, a + ".output.dense"), a + ".output.LayerNorm", 1e-12)
        h = linear(F.gelu(linear(t, b + "intermediate.dense")), b + "output.dense")
        t = norm(t + h, b + "output.LayerNorm", 1e-12)
    raw = t[:, 0]
    for i in (0, 2, 4, 6, 7):
        raw = linear(raw, f"mlp.layers.{i}")
    return (raw[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_the_published_network(tmp_path, monkeypatch):
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(imagereward_module, "VISION", VISION | {"layer_norm_eps": 1e-6})
    monkeypatch.setattr(imagereward_module, "TEXT", imagereward_module.TEXT | tiny_text())
    state = blip_state(tiny_head(16))
    file = tmp_path / "ImageReward.pt"
    torch.save(state, file)
    reward = as_reward_with(f"imagereward:{file}", monkeypatch)
    x = images(5, (40, 33))
    tokens = Words()(PROMPTS, "max_length", True, 35, "pt")
    assert tokens["attention_mask"].sum(1).tolist() == [7, 22, 3, 35, 7], "short prompts are padded, long ones cut at 35"
    want = blip_reward(state, Preprocess(SIZE, odd="even")(x), tokens["input_ids"], tokens["attention_mask"])
    assert torch.allclose(reward(x, PROMPTS), want, atol=1e-4)
    assert want.std() > 0.01
    assert (reward(x, PROMPTS[::-1]) - want).abs().max() > 0.01, "the prompt matters"

    for change, message in (
        ({"blip.visual_encoder.blocks.0.attn.qkv.bias": None}, "lacks 'encoder.layers.0.self_attn.qkv.bias'"),
        ({"blip.text_encoder.pooler.dense.bias": torch.zeros(3)}, "also holds 'pooler.dense.bias'"),
        ({"mlp.layers.7.bias": None}, "does not hold ImageReward's head"),
        ({"something.else": torch.zeros(3)}, "'something.else' is no weight of ImageReward"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, file)
        with pytest.raises(ValueError, match=message):
            ImageReward(str(file), tokenizer=Words())
    with pytest.raises(ValueError, match="together, or neither"):
        ImageReward(head=tiny_head(16))


def test_full_sizes():
    """The published architectures to the last parameter, without their weights; and the constants of their norms and activations."""
    with torch.device("meta"):
        clip = transformers.CLIPModel(transformers.CLIPConfig(**hps_module.VIT_H_14))
        vision = transformers.BlipVisionModel(transformers.BlipVisionConfig(**imagereward_module.VISION))
        text = transformers.BlipTextModel(transformers.BlipTextConfig(**imagereward_module.TEXT), add_pooling_layer=False)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (clip, vision, text)]
    assert sizes == [986_109_441, 303_301_632, 141_977_088]
    configs = clip.config.vision_config, clip.config.text_config, vision.config, text.config
    assert [(c.hidden_act, c.layer_norm_eps, c.num_attention_heads) for c in configs] == [
        ("gelu", 1e-5, 16), ("gelu", 1e-5, 16), ("gelu", 1e-6, 16), ("gelu", 1e-12, 12),
    ]  # fmt: skip


def as_reward_with(name, monkeypatch):
    """A reward by name, with the tokenizer of letters in place of BERT's; the two tokens that the published vocabulary adds are asked for."""
    added = []

    class Bert(Words):
        def add_tokens(self, tokens, special_tokens):
            added.extend(tokens)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda source, **_: Bert())
    reward = as_reward(name)
    assert added == ["[DEC]", "[ENC]"]
    return reward


# -- weights that are not here ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network and an empty cache."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("name", "repository", "terms", "instead"),
    [
        ("clip", "openai/clip-vit-large-patch14", "MIT", "clip:FOLDER"),
        ("clip:a photo of a cat", "openai/clip-vit-large-patch14", "MIT", "clip:FOLDER"),
        ("clip:somebody/their-clip", "somebody/their-clip", "https://huggingface.co/somebody/their-clip", "clip:FOLDER"),
        ("aesthetic", "openai/clip-vit-large-patch14", "MIT", "aesthetic:FOLDER"),
        ("pickscore", "yuvalkirstain/PickScore_v1", "MIT", "pickscore:FOLDER"),
        ("hps", "xswu/HPSv2 HPS_v2.1_compressed.pt", "Apache-2.0", "hps:FILE"),
        ("hps:2.0", "xswu/HPSv2 HPS_v2_compressed.pt", "Apache-2.0", "hps:FILE"),
        ("imagereward", "THUDM/ImageReward ImageReward.pt", "Apache-2.0", "imagereward:FILE"),
    ],
)
def test_missing_weights_get_a_sentence(offline, name, repository, terms, instead):
    with pytest.raises(OSError, match="are not on this machine") as raised:
        as_reward(name)
    told = str(raised.value)
    assert f"hf download {repository}`" in told
    assert told.count(repository.split()[0]) >= 2
    assert "\n" not in told
    for piece in (terms, "HF_HOME", f"write {instead}"):
        assert piece in told


def test_a_file_that_is_not_there(offline):
    with pytest.raises(OSError, match=r"weights/IR\.pt could not be loaded .*; write imagereward:FILE"):
        as_reward("imagereward:weights/IR.pt")


def test_gated_weights_say_so():
    gated = type("GatedRepoError", (OSError,), {})("403 Client Error.\nAccess to model a/b is restricted")
    assert "gated: accept its conditions there, then run `hf auth login`" in str(hub.missing("a/b", "clip:FOLDER", gated))


def test_pickles_hold_weights_or_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    bad = tmp_path / "trap.pt"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "more": Trap()}, bad)
    with pytest.raises(ValueError, match="not a file of weights alone"):
        hub.state_dict(bad)
    bad.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"not a file of weights alone|no state dict"):
        hub.state_dict(bad)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "cache").exists()


def test_kept_copies(tmp_path, monkeypatch):
    """Shared and strided tensors are kept apart; a file that changed is opened anew; a cache that cannot be written is told and done without."""
    file, both = tmp_path / "w.pt", torch.arange(6.0)
    monkeypatch.setenv("VIOT_CACHE", str(tmp_path / "cache"))
    torch.save({"a": both, "b": both[:3], "c": both.reshape(2, 3).T}, file)
    for _ in range(2):
        found = hub.state_dict(file)
        assert torch.equal(found["b"], both[:3])
        assert torch.equal(found["c"], both.reshape(2, 3).T)
    torch.save({"a": both + 1}, file)
    assert torch.equal(hub.state_dict(file)["a"], both + 1)
    assert [f.suffix for f in (tmp_path / "cache").iterdir()] == [".safetensors"] * 2
    monkeypatch.setenv("VIOT_CACHE", str(file / "below a file"))
    with pytest.warns(UserWarning, match="VIOT_CACHE names another folder"):
        assert torch.equal(hub.state_dict(file)["a"], both + 1)


def test_where_copies_are_kept(monkeypatch):
    for name in ("VIOT_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub.cache_folder() == Path("~/.cache/viot").expanduser()
    for name, folder in (("XDG_CACHE_HOME", "/x/viot"), ("HF_HOME", "/h/viot"), ("VIOT_CACHE", "/v")):
        monkeypatch.setenv(name, folder.removesuffix("/viot"))
        assert hub.cache_folder() == Path(folder)


def test_names_spell_checkpoint_and_text(monkeypatch):
    asked = []
    network = tiny_clip()
    monkeypatch.setattr(hub, "pretrained", lambda kind, source, instead: asked.append(source) or (Words() if "Tok" in kind else network))
    for name, checkpoint, text in (
        ("clip", "openai/clip-vit-large-patch14", None),
        ("clip:a photo of a cat", "openai/clip-vit-large-patch14", "a photo of a cat"),
        ("clip:black and/or white: a cat", "openai/clip-vit-large-patch14", "black and/or white: a cat"),
        ("clip:org/model", "org/model", None),
        ("clip:org/model:one/two", "org/model", "one/two"),
        ("clip:./folder/model:a cat", "./folder/model", "a cat"),
    ):
        asked.clear()
        reward = as_reward(name)
        assert (asked, reward.text) == ([checkpoint] * 2, text)
        assert reward.name == ":".join(["clip", checkpoint] + [text] * (text is not None))
        assert asks_for(reward) == (("prompts",) if text is None else ())
    assert as_reward("pickscore").name == "pickscore"
    assert asked[-2:] == ["yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]


def test_importing_them_is_light():
    """No network library before the first weights are asked for."""
    script = (
        "import sys, viot.rewards as r\n"
        "r.ClipScore, r.Aesthetic, r.HPS, r.ImageReward, r.Judge\n"
        "print([m for m in ('transformers', 'huggingface_hub', 'torchvision', 'diffusers', 'PIL', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"numpy"}, "which torch brings along where it is installed"


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'viot\[rewards\]'"):
        as_reward("aesthetic")


# -- steering by them -------------------------------------------------------------------------------------------------------------------------


def test_a_run_steers_by_each_groups_prompt():
    model = Pictures(["a cat", "two dogs"])
    reward = MAKE["clip"]()
    base = viot.sample(model, reward, "base", particles=8, steps=4, progress=False)
    steered = viot.sample(model, reward, "best-of-n", particles=8, steps=4, progress=False)
    for g, prompt in enumerate(model.prompts):
        assert torch.allclose(base.rewards[g], reward(base.samples[g], [prompt] * 8).double(), atol=1e-5)
    assert steered.rewards.max() >= base.rewards.max()
