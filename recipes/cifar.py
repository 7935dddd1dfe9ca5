"""Train the three networks of the embedded `cifar16` model from CIFAR-10, on a small CPU.

    python recipes/cifar.py classifier --data DIR                # the reward  (eleven minutes)
    python recipes/cifar.py judge      --data DIR                # the referee (eleven minutes), never used for steering
    python recipes/cifar.py unet       --data DIR --minutes 65   # resumable: run again, with more minutes, to go on
    python recipes/cifar.py export     --data DIR                # float16 safetensors into src/viot/models/cifar and rewards/cifar

The images are averaged down to 16x16, and the UNet works on 2x2 patches of them (pixel-unshuffle: 16x16x3 becomes 8x8x12), which is an
orthogonal change of coordinates, so it is the same diffusion, at about half the operations of a UNet of the same size on pixels.

For a GPU: `unet --size 32 --device cuda --batch 128` trains on CIFAR-10 as it is, and `export --size 32` writes a folder in diffusers' format
under --out that `viot --model FOLDER` reads.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cifar10 import load_cifar10
from training import halved, train
from viot.rewards.cifar.nets import Classifier, Judge

ROOT = Path(__file__).parents[1] / "src/viot"
PACKAGE = ROOT / "models/cifar"
READERS = ROOT / "rewards/cifar"
SIZES: dict[int, dict[str, Any]] = {
    16: {"patch": 2, "channels": (64, 96), "attention": ()},
    32: {"patch": 1, "channels": (96, 160, 192), "attention": (1,)},
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
}


def unet_config(size: int) -> dict[str, Any]:
    patch, channels, attention = (SIZES[size][k] for k in ("patch", "channels", "attention"))
    levels = range(len(channels))
    return {
        "sample_size": size // patch,
        "in_channels": 3 * patch**2,
        "out_channels": 3 * patch**2,
        "layers_per_block": 1,
        "block_out_channels": channels,
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in levels),
        "up_block_types": tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(levels)),
        "norm_num_groups": 8,
        "attention_head_dim": 32,
    }


@cache
def noise_schedule() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


def velocity_loss(net: torch.nn.Module, images: torch.Tensor, batch: int, patch: int, gen: torch.Generator) -> torch.Tensor:
    """Mean squared error of the predicted velocity on one batch of images in [−1, 1], t uniform."""
    schedule, device = noise_schedule(), next(net.parameters()).device
    x0 = images[torch.randint(len(images), (batch,), generator=gen)]
    x0 = torch.where(torch.rand(batch, 1, 1, 1, generator=gen) < 0.5, x0, x0.flip(-1))
    x0 = F.pixel_unshuffle(x0, patch) if patch > 1 else x0
    noise = torch.randn(x0.shape, generator=gen)
    # Stratified over the batch: the loss varies by orders of magnitude along t.
    t = ((torch.arange(batch) + torch.rand(batch, generator=gen)) / batch * 1000).long()
    x_t, target = schedule.add_noise(x0, noise, t), schedule.get_velocity(x0, noise, t)
    return F.mse_loss(net(x_t.to(device), t.to(device)).sample.float(), target.to(device))


def train_unet(args: argparse.Namespace, lr: float = 1e-3, ema_rate: float = 0.9995) -> None:
    """Velocity prediction, random flips, AdamW with warm-up and cosine decay over the given busy minutes, EMA weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    images = load_cifar10(args.data, size=args.size)[0] * 2 - 1
    net, patch = UNet2DModel(**unet_config(args.size)).to(args.device), SIZES[args.size]["patch"]

    def loss_of(step: int) -> torch.Tensor:
        return velocity_loss(net, images, args.batch, patch, torch.Generator().manual_seed(step))

    train(f"cifar UNet {args.size}x{args.size}", args.out / f"unet{args.size}.pt", net, loss_of, args.minutes, lr, ema_rate)


def _shift(x: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Flips, and shifts by up to two pixels."""
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=gen) < 0.5, x, x.flip(-1))
    dy, dx = torch.randint(0, 5, (2,), generator=gen).tolist()
    return F.pad(x, (2, 2, 2, 2), mode="reflect")[..., dy : dy + x.shape[-2], dx : dx + x.shape[-1]]


def _warp(x: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Flips, small random affine maps, and changes of brightness and contrast."""
    n = len(x)
    angle, scale, mirror = (torch.rand(n, generator=gen) - 0.5) * 0.4, 1 + (torch.rand(n, generator=gen) - 0.5) * 0.3, torch.ones(n)
    mirror[torch.rand(n, generator=gen) < 0.5] = -1
    shift = (torch.rand(n, 2, generator=gen) * 2 - 1) * 0.15
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="reflection", align_corners=False)
    light, contrast = (torch.rand(2, n, 1, 1, 1, generator=gen) - 0.5).mul(torch.tensor([0.3, 0.6])[:, None, None, None, None]).unbind()
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast) + mean + light).clamp(0, 1)


def train_reader(kind: str, args: argparse.Namespace, batch: int = 128) -> None:
    """The reward classifier (a ResNet) or the judge (another net, another seed, other augmentation), both on 16x16 images."""
    judge = kind == "judge"
    torch.manual_seed(1 if judge else 0)
    x, y = load_cifar10(args.data, size=16)
    net = Judge() if judge else Classifier()

    def loss_of(step: int) -> torch.Tensor:
        gen = torch.Generator().manual_seed(2 * step + judge)
        rows = torch.randint(len(x), (batch,), generator=gen)
        return F.cross_entropy(net((_warp if judge else _shift)(x[rows], gen)).float(), y[rows])

    net.load_state_dict(train(kind, args.out / f"{kind}.pt", net, loss_of, args.minutes, 3e-3, 0.998))


def accuracy_of(net: torch.nn.Module, data: str) -> float:
    x, y = load_cifar10(data, "test", size=16)
    with torch.no_grad():
        return torch.cat([net.eval()(part).argmax(1) for part in x.split(1000)]).eq(y).float().mean().item()


def export(args: argparse.Namespace) -> None:
    """Write what has been trained, tested on the held-out images, into the package: float16 safetensors, configs in diffusers' own layout."""
    from diffusers import UNet2DModel

    if (args.out / f"unet{args.size}.pt").exists():
        saved = torch.load(args.out / f"unet{args.size}.pt", weights_only=True, map_location="cpu")
        net, patch = UNet2DModel(**unet_config(args.size)), SIZES[args.size]["patch"]
        net.load_state_dict(saved["ema"])
        net.half().float()
        images = load_cifar10(args.data, "test", size=args.size)[0] * 2 - 1
        with torch.no_grad():
            losses = [velocity_loss(net, images, 200, patch, torch.Generator().manual_seed(i)).item() for i in range(20)]
        folder = PACKAGE if args.size == 16 else args.out / f"cifar{args.size}"
        net.half().save_pretrained(folder / "unet")
        noise_schedule().save_pretrained(folder / "scheduler")
        training = {"steps": saved["step"], "batch": args.batch, "busy_minutes": round(saved["spent"] / 60, 1), "patch": patch}
        training |= {"size": args.size, "test_velocity_loss": round(sum(losses) / len(losses), 4)}
        (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    for kind, net in ("classifier", Classifier()), ("judge", Judge()):
        if (args.out / f"{kind}.pt").exists():
            net.load_state_dict(torch.load(args.out / f"{kind}.pt", weights_only=True)["ema"])
            weights = halved(net.state_dict())
            accuracy = accuracy_of(net.half().float(), args.data)
            save_file(weights, READERS / f"{kind}.safetensors", metadata={"cifar10_16x16_test_accuracy": f"{accuracy:.4f}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["unet", "classifier", "judge", "export"])
    parser.add_argument("--data", default="data/cifar10", help="folder with CIFAR-10 as npz or .bin files; downloaded there if absent")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar"), help="checkpoints")
    parser.add_argument("--minutes", type=float, help="busy time of the training, over all its resumes (65 for the UNet, 11 for a reader)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, choices=sorted(SIZES), default=16, help="pixels of the UNet's images along a side")
    parser.add_argument("--batch", type=int, default=64, help="images per step of the UNet")
    parser.add_argument("--device", default="cpu", help="of the UNet's training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "unet":
        args.minutes = args.minutes or 65
        train_unet(args)
    elif args.what == "export":
        export(args)
    else:
        args.minutes = args.minutes or 11
        train_reader(args.what, args)


if __name__ == "__main__":
    main()
