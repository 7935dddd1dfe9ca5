"""Train the embedded text-to-image model `captions`, a small Stable Diffusion pipeline, from MNIST on a small CPU.

    python recipes/captions.py vae    --data DIR --minutes 10    # pictures 48x48x3 <-> latents 12x12x4
    python recipes/captions.py unet   --data DIR --minutes 90    # text encoder and UNet together, resumable: run again to go on
    python recipes/captions.py reader --data DIR                 # the reward
    python recipes/captions.py judge  --data DIR                 # the referee, never used for steering
    python recipes/captions.py export                            # float16 safetensors into the package, in diffusers' own layout

The pictures are composed on the fly: one or two MNIST digits, tinted, thickened or thinned, side by side or one above the other, with a
caption that says some of it (`viot.rewards.captions.grammar`).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from mnist import load_mnist
from training import halved, train
from viot.rewards.captions import nets
from viot.rewards.captions.grammar import COLOURS, PLURALS, SIDE, SINGLE, STACKED, STROKES, WORDS, Thing

ROOT = Path(__file__).parents[1] / "src/viot"
PACKAGE, READERS = ROOT / "models/captions", ROOT / "rewards/captions"
SIZE, LATENT, LENGTH = nets.SIZE, 12, 16
TINTS = {"white": (1, 1, 1), "red": (1, 0.2, 0.2), "green": (0.2, 0.9, 0.3), "blue": (0.3, 0.45, 1), "yellow": (1, 0.85, 0.15)}

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": SIZE,
}
UNET = {
    "sample_size": LATENT,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (64, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
VOCABULARY = ("<pad>", "<start>", "<end>", "<unk>", *WORDS)
TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "projection_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# -- pictures and what is said of them ------------------------------------------------------------------------------------------------


def compose(digits: tuple[Tensor, Tensor], n: int, gen: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """n pictures (n, 3, 48, 48) in [0, 1], and what is in them: one label per head of the readers, −1 where there is no second digit."""
    images, classes = digits
    pick = lambda high, *shape: torch.randint(high, shape, generator=gen)
    uniform = lambda *shape: torch.rand(shape, generator=gen) * 2 - 1
    layout = torch.where(pick(10, n) < 3, SINGLE, SIDE + pick(2, n))
    rows = pick(len(images), n, 2)
    # The same digit twice is rare by chance, and has captions of its own.
    order = classes.argsort(stable=True)
    starts = torch.searchsorted(classes[order], torch.arange(11))
    first = classes[rows[:, 0]]
    spans = (starts[first + 1] - starts[first]).double()
    same = order[starts[first] + (torch.rand(n, generator=gen).double() * spans).long()]
    rows[:, 1] = torch.where(pick(10, n) < 4, same, rows[:, 1])
    colour, stroke = pick(len(COLOURS), n, 2), pick(len(STROKES), n, 2)
    colour[:, 1] = torch.where(pick(10, n) < 3, colour[:, 0], colour[:, 1])
    stroke[:, 1] = torch.where(pick(10, n) < 3, stroke[:, 0], stroke[:, 1])
    tints = torch.tensor([TINTS[name] for name in COLOURS])
    canvas = torch.zeros(n, 3, SIZE, SIZE)
    for place in (0, 1):
        big = F.interpolate(images[rows[:, place]], scale_factor=2, mode="bilinear")
        thick = F.max_pool2d(big, 5, 1, 2)
        thin = -F.max_pool2d(-big, 3, 1, 1)
        which = stroke[:, place].view(-1, 1, 1, 1)
        big = torch.where(which == 1, thick, torch.where(which == 2, thin, big))
        alone = (layout == SINGLE).float()
        size = (25 + 9 * alone + 1.5 * uniform(n)) / SIZE
        angle = 0.12 * uniform(n)
        side = (2 * place - 1) * 0.5
        centre = torch.stack([(layout == SIDE) * side, (layout == STACKED) * side], 1) + uniform(n, 2) * (0.04 + 0.1 * alone)[:, None]
        cos, sin = angle.cos() / size, angle.sin() / size
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        theta = torch.cat([turn, -(turn @ centre[:, :, None])], 2)
        drawn = F.grid_sample(big, F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False), align_corners=False)
        drawn = drawn * tints[colour[:, place]].view(n, 3, 1, 1) * ((layout != SINGLE) | (place == 0)).view(n, 1, 1, 1)
        canvas = torch.maximum(canvas, drawn)
    there = layout != SINGLE
    labels = {"layout": layout}
    for place in (0, 1):
        for name, value in (("digit", classes[rows[:, place]]), ("colour", colour[:, place]), ("stroke", stroke[:, place])):
            labels[f"{name}{place}"] = value if place == 0 else torch.where(there, value, -1)
    return canvas.clamp(0, 1), labels


def captions(labels: dict[str, Tensor], rng: random.Random) -> list[str]:
    """One true caption per picture. Colours and strokes are said half of the time."""
    said = []
    columns = {k: v.tolist() for k, v in labels.items()}
    for i in range(len(columns["layout"])):
        at = {k: v[i] for k, v in columns.items()}

        def thing(place: int, at: dict[str, int] = at) -> Thing:
            colour = at[f"colour{place}"] if rng.random() < 0.5 else None
            stroke = at[f"stroke{place}"] if rng.random() < 0.7 and at[f"stroke{place}"] else None
            return Thing(at[f"digit{place}"], colour, stroke)

        if at["layout"] == SINGLE:
            said.append(str(thing(0)))
            continue
        if at["digit0"] == at["digit1"] and rng.random() < 0.6:
            words = ["two"]
            if at["stroke0"] == at["stroke1"] != 0 and rng.random() < 0.7:
                words.append(STROKES[at["stroke0"]])
            if at["colour0"] == at["colour1"] and rng.random() < 0.7:
                words.append(COLOURS[at["colour0"]])
            said.append(" ".join([*words, PLURALS[at["digit0"]]]))
            continue
        a, b = str(thing(0)), str(thing(1))
        forms = {SIDE: (f"{a} left of {b}", f"{b} right of {a}", f"{a} beside {b}", f"{b} beside {a}")}
        forms[STACKED] = (f"{a} above {b}", f"{b} below {a}")
        said.append(rng.choice(forms[at["layout"]]))
    return said


def tokenizer():
    """Whole words, lower case: what StableDiffusionPipeline expects of a tokenizer, in a few kilobytes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=LENGTH, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    )


# -- training -------------------------------------------------------------------------------------------------------------------------


def train_vae(data: str, out: Path, minutes: float, batch: int = 32) -> None:
    """L1 and squared error in pixels, and a faint pull of the latents toward a unit Gaussian."""
    from diffusers import AutoencoderKL

    digits, net = load_mnist(data), AutoencoderKL(**VAE)

    def loss_of(step: int) -> Tensor:
        gen = torch.Generator().manual_seed(step)
        x = compose(digits, batch, gen)[0] * 2 - 1
        posterior = net.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=gen)
        error = net.decode(z).sample.float() - x
        return error.abs().mean() + error.square().mean() + 1e-4 * posterior.kl().float().mean() / LATENT**2

    net.load_state_dict(train("captions vae", out / "vae.pt", net, loss_of, minutes, 2e-3, 0.999))
    with torch.no_grad():
        latents = net.encode(compose(digits, 512, torch.Generator().manual_seed(-1))[0] * 2 - 1).latent_dist.mean
    torch.save({"vae": net.state_dict(), "scaling_factor": 1 / latents.std().item()}, out / "vae.done.pt")


def load_vae(out: Path):
    from diffusers import AutoencoderKL

    saved = torch.load(out / "vae.done.pt", weights_only=True)
    net = AutoencoderKL(**VAE, scaling_factor=saved["scaling_factor"])
    net.load_state_dict(saved["vae"])
    return net.eval()


def train_unet(data: str, out: Path, minutes: float, batch: int = 64, pool: int = 160_000) -> None:
    """Velocity prediction in the latents of a fixed pool of pictures; one caption in ten is empty, for guidance."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vae, digits, scheduler, tokens_of = load_vae(out), load_mnist(data), DDIMScheduler(**SCHEDULER), tokenizer()
    net = torch.nn.ModuleDict({"unet": UNet2DConditionModel(**UNET), "text": CLIPTextModel(CLIPTextConfig(**TEXT))})
    latents, tokens = torch.empty(pool, 4, LATENT, LATENT, dtype=torch.float16), torch.empty(pool, LENGTH, dtype=torch.long)
    scale, rng = vae.config.scaling_factor, random.Random(0)
    for i in tqdm(range(0, pool, 500), desc="pictures", mininterval=5):
        x, labels = compose(digits, 500, torch.Generator().manual_seed(10**6 + i))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents[i : i + 500] = vae.encode(x * 2 - 1).latent_dist.mean * scale
        tokens[i : i + 500] = tokens_of(captions(labels, rng), padding="max_length", return_tensors="pt").input_ids
    empty = tokens_of("", padding="max_length", return_tensors="pt").input_ids[0]

    def loss_of(step: int) -> Tensor:
        gen = torch.Generator().manual_seed(step)
        rows = torch.randint(pool, (batch,), generator=gen)
        x0 = latents[rows].float()
        noise = torch.randn(x0.shape, generator=gen)
        t = ((torch.arange(batch) + torch.rand(batch, generator=gen)) / batch * 1000).long()
        ids = torch.where(torch.rand(batch, 1, generator=gen) < 0.1, empty, tokens[rows])
        v = net["unet"](scheduler.add_noise(x0, noise, t), t, net["text"](ids).last_hidden_state).sample
        return F.mse_loss(v.float(), scheduler.get_velocity(x0, noise, t))

    train("captions unet", out / "unet.pt", net, loss_of, minutes, 1e-3, 0.9995)


def train_reader(kind: str, data: str, out: Path, minutes: float, batch: int = 128) -> None:
    """The reward's reader on clean pictures, or the judge on deformed, blurred and noisy ones."""
    digits, net = load_mnist(data), {"reader": nets.reader, "judge": nets.judge}[kind]()

    def loss_of(step: int) -> Tensor:
        gen = torch.Generator().manual_seed(step + (10**7 if kind == "judge" else 0))
        x, labels = compose(digits, batch, gen)
        if kind == "judge":
            blurred = F.avg_pool2d(x, 3, 1, 1)
            x = torch.lerp(x, blurred, torch.rand(batch, 1, 1, 1, generator=gen))
            x = x + 0.15 * torch.rand(batch, 1, 1, 1, generator=gen) * torch.randn(x.shape, generator=gen)
        read = net(x)
        return sum(F.nll_loss(read[name].float(), value, ignore_index=-1) for name, value in labels.items())

    net.load_state_dict(train(f"captions {kind}", out / f"{kind}.pt", net, loss_of, minutes, 2e-3, 0.999))
    net.eval()
    x, labels = compose(load_mnist(data, "test"), 4000, torch.Generator().manual_seed(-2))
    with torch.no_grad():
        read = net(x)
    right = {name: (read[name].argmax(1) == v)[v >= 0].float().mean().item() for name, v in labels.items()}
    torch.save({"net": net.state_dict(), "accuracy": right}, out / f"{kind}.done.pt")
    tqdm.write(f"{kind}, of test pictures: " + ", ".join(f"{k} {v:.3f}" for k, v in right.items()))


def export(out: Path) -> None:
    """Write what has been trained into the package: a pipeline folder as any other, in float16."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if (out / "unet.pt").exists():
        saved = torch.load(out / "unet.pt", weights_only=True)
        net = torch.nn.ModuleDict({"unet": UNet2DConditionModel(**UNET), "text": CLIPTextModel(CLIPTextConfig(**TEXT))})
        net.load_state_dict(saved["ema"])
        pipe = StableDiffusionPipeline(
            vae=load_vae(out), text_encoder=net["text"], tokenizer=tokenizer(), unet=net["unet"], scheduler=DDIMScheduler(**SCHEDULER),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipe.to(dtype=torch.float16).save_pretrained(PACKAGE)
        training = {"steps": saved["step"], "batch": 64, "busy_minutes": round(saved["spent"] / 60, 1)}
        (PACKAGE / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    for kind in ("reader", "judge"):
        if (out / f"{kind}.done.pt").exists():
            saved = torch.load(out / f"{kind}.done.pt", weights_only=True)
            weights = halved(saved["net"])
            save_file(weights, READERS / f"{kind}.safetensors", metadata={k: f"{v:.4f}" for k, v in saved["accuracy"].items()})
    for file in (*PACKAGE.rglob("*.safetensors"), *READERS.glob("*.safetensors")):
        file.chmod(0o644)  # not for their owner alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "unet", "reader", "judge", "export"])
    parser.add_argument("--data", default="data/mnist", help="folder with the four idx.gz files; downloaded there if absent")
    parser.add_argument("--out", type=Path, default=Path("runs/captions"), help="checkpoints")
    parser.add_argument("--minutes", type=float, help="busy time, over all resumes (default: vae 10, unet 90, readers 5)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "export":
        return export(args.out)
    minutes = args.minutes or {"vae": 10, "unet": 90}.get(args.what, 5)
    if args.what == "vae":
        train_vae(args.data, args.out, minutes)
    elif args.what == "unet":
        train_unet(args.data, args.out, minutes)
    else:
        train_reader(args.what, args.data, args.out, minutes)


if __name__ == "__main__":
    main()
