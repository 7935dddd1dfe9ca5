"""The training loop of the recipes: for a small CPU, by the clock, and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights for a file, in half precision; counts stay what they are."""
    return {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}


def train(
    name: str, checkpoint: Path, net: torch.nn.Module, loss_of: Callable[[int], Tensor], minutes: float, lr: float, ema_rate: float
) -> dict[str, Tensor]:
    """AdamW with warm-up and cosine decay over the given busy minutes, EMA weights, a checkpoint every two minutes. Returns the EMA.

    `loss_of(step)` depends on the step alone, so that a resumed run sees what an unbroken one would have seen.
    """
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    opt = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    step, spent, device = 0, 0.0, next(net.parameters()).device.type
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(saved["net"])
        opt.load_state_dict(saved["opt"])
        ema, step, spent = saved["ema"], saved["step"], saved["spent"]
    bar = tqdm(total=round(minutes * 60), initial=round(spent), unit="s", desc=name, mininterval=5)
    running = last = None
    while spent < minutes * 60:
        tick = time.perf_counter()
        progress = spent / (minutes * 60)
        for group in opt.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 500) * (0.005 + 0.995 * (0.5 + 0.5 * math.cos(math.pi * progress)))
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(step)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        step += 1
        rate = min(ema_rate, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, value in net.state_dict().items():
                if value.is_floating_point():
                    ema[k].lerp_(value, 1 - rate)
                else:
                    ema[k].copy_(value)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        spent += time.perf_counter() - tick
        bar.update(round(spent) - bar.n)
        if step % 50 == 0:
            bar.set_postfix(step=step, loss=f"{running:.4f}", refresh=False)
        if last is None or spent - last > 120 or spent >= minutes * 60:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {"net": net.state_dict(), "opt": opt.state_dict(), "ema": ema, "step": step, "spent": spent}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
            last = spent
    return ema
