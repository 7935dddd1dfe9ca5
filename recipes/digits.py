"""Train the three networks of the embedded `digits` model from MNIST, on a small CPU.

    python recipes/digits.py unet       --data DIR --minutes 100   # resumable: run again to go on
    python recipes/digits.py classifier --data DIR                 # the reward  (about a minute)
    python recipes/digits.py judge      --data DIR                 # the referee (a few minutes), never used for steering
    python recipes/digits.py export                                # float16 safetensors into src/viot/models/digits

The UNet works on 2x2 patches (pixel-unshuffle: 28x28x1 becomes 14x14x4), which is an orthogonal change of coordinates, so it is the same
diffusion, at 2.4 times fewer operations per image than a UNet of the same size on pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm.auto import tqdm

from mnist import load_mnist
from training import halved, train
from viot.rewards.digits.nets import Classifier, Judge

ROOT = Path(__file__).parents[1] / "src/viot"
PACKAGE = ROOT / "models/digits"
READERS = ROOT / "rewards/digits"
PATCH = 2

UNET = {
    "sample_size": 14,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (64, 96),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 32,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
}


def train_unet(data: str, out: Path, minutes: float, threads: int, batch: int = 64, lr: float = 1e-3, ema_rate: float = 0.9995) -> None:
    """Velocity prediction, uniform t, AdamW with warm-up and cosine decay over the given busy minutes, EMA weights."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = load_mnist(data)[0] * 2 - 1
    net, scheduler = UNet2DModel(**UNET), DDIMScheduler(**SCHEDULER)

    def loss_of(step: int) -> torch.Tensor:
        gen = torch.Generator().manual_seed(step)
        x0 = F.pixel_unshuffle(images[torch.randint(len(images), (batch,), generator=gen)], PATCH)
        noise = torch.randn(x0.shape, generator=gen)
        # Stratified over the batch: the loss varies by orders of magnitude along t.
        t = ((torch.arange(batch) + torch.rand(batch, generator=gen)) / batch * 1000).long()
        v = net(scheduler.add_noise(x0, noise, t), t).sample
        return F.mse_loss(v.float(), scheduler.get_velocity(x0, noise, t))

    train("digits UNet", out / "unet.pt", net, loss_of, minutes, lr, ema_rate)


def _augment(x, gen):
    """Small random affine maps: rotation, scale, shear and shift of handwriting."""
    n = len(x)
    angle, scale, shear = ((torch.rand(3, n, generator=gen) * 2 - 1).mul(torch.tensor([[0.2], [0.12], [0.15]]))).unbind()
    shift = (torch.rand(n, 2, generator=gen) * 2 - 1) * 0.12
    cos, sin = torch.cos(angle) * (1 + scale), torch.sin(angle) * (1 + scale)
    theta = torch.stack([torch.stack([cos, shear - sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def train_reader(kind: str, data: str, out: Path, threads: int, epochs: int, batch: int = 128) -> None:
    """The reward classifier (plain, as in the class-conditional tasks of the literature) or the judge (another net, augmented)."""
    torch.set_num_threads(threads)
    torch.manual_seed({"classifier": 0, "judge": 1}[kind])
    (x, y), (x_test, y_test) = load_mnist(data), load_mnist(data, "test")
    net = Classifier() if kind == "classifier" else Judge()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3 if kind == "classifier" else 3e-3)
    total = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, opt.param_groups[0]["lr"], total_steps=total)
    gen = torch.Generator().manual_seed(2)
    for _ in tqdm(range(epochs), desc=kind):
        order = torch.randperm(len(x), generator=gen)
        for i in range(len(x) // batch):
            rows = order[i * batch : (i + 1) * batch]
            inputs = _augment(x[rows], gen) if kind == "judge" else x[rows]
            loss = F.cross_entropy(net(inputs), y[rows])
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        accuracy = torch.cat([net(chunk).argmax(1) for chunk in x_test.split(1000)]).eq(y_test).float().mean().item()
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"net": net.state_dict(), "accuracy": accuracy}, out / f"{kind}.pt")
    tqdm.write(f"{kind}: {accuracy:.4f} of the MNIST test images, {sum(p.numel() for p in net.parameters()) / 1e3:.0f}k parameters")


def export(out: Path) -> None:
    """Write what has been trained into the package: float16 safetensors, and the configs in diffusers' own layout."""
    from diffusers import DDIMScheduler, UNet2DModel

    if (out / "unet.pt").exists():
        saved = torch.load(out / "unet.pt", weights_only=True)
        net = UNet2DModel(**UNET)
        net.load_state_dict(saved["ema"])
        net.half().save_pretrained(PACKAGE / "unet")
        DDIMScheduler(**SCHEDULER).save_pretrained(PACKAGE / "scheduler")
        training = {"steps": saved["step"], "batch": 64, "busy_minutes": round(saved["spent"] / 60, 1), "patch": PATCH}
        (PACKAGE / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    for kind in ("classifier", "judge"):
        if (out / f"{kind}.pt").exists():
            saved = torch.load(out / f"{kind}.pt", weights_only=True)
            weights = halved(saved["net"])
            save_file(weights, READERS / f"{kind}.safetensors", metadata={"mnist_test_accuracy": f"{saved['accuracy']:.4f}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["unet", "classifier", "judge", "export"])
    parser.add_argument("--data", default="data/mnist", help="folder with the four idx.gz files; downloaded there if absent")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="checkpoints")
    parser.add_argument("--minutes", type=float, default=100, help="busy time of the UNet training, over all its resumes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=None)
    args = parser.parse_args()
    if args.what == "unet":
        train_unet(args.data, args.out, args.minutes, args.threads)
    elif args.what == "export":
        export(args.out)
    else:
        train_reader(args.what, args.data, args.out, args.threads, args.epochs or {"classifier": 5, "judge": 6}[args.what])


if __name__ == "__main__":
    main()
