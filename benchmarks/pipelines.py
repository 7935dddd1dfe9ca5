"""Which of the installed diffusers' pipelines can be steered, and what the adapter costs.

    python benchmarks/pipelines.py coverage [--out docs/pipelines.md]   # by signature, every pipeline; no weights, no network
    python benchmarks/pipelines.py families                             # a short steered run on a tiny random one of each family
    python benchmarks/pipelines.py cost [--threads 1] [--repeats 5]     # the adapter beside the plain pipeline, in turns

The families are the tiny random pipelines of tests/tiny.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import torch

import viot
from viot.models.steerable import why_not

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


#: Not told by signature: what is written by hand about language models.
TEXTS = """
## Published text models

Masked diffusion language models are loaded by name or folder, without running the code that comes with them; `LLaDA2Pipeline` is steered as it is.

```python
model = viot.load("kuleshov-group/mdlm-owt", prompt=["Once upon a time", "The[MASK:5] of Paris"], length=128)
model = viot.load("GSAI-ML/LLaDA-8B-Instruct", prompt="Name a river.", new_tokens=64, block=32, device="cuda")
model = viot.from_pipeline(LLaDA2Pipeline(model=…, scheduler=…, tokenizer=…), prompt="Name a river.", gen_length=64, block_length=32)
population = viot.sample(model, lambda texts: …, "vasr", particles=16, steps=64)
```

| | MDLM | LLaDA | LLaDA2 (diffusers) |
| --- | --- | --- | --- |
| told by | `"model_type": "mdlm"` in config.json | `"model_type": "llada"` | the pipeline's class |
| network | a DiT of the library's own | the LLaMA of transformers, looking both ways | the pipeline's, asked as its loop asks it |
| tokenizer | in the folder, else GPT-2's; `tokenizer=` names another | beside the weights; `tokenizer=` names another | the pipeline's |
| text | up to the next end token after the first token, which is given | the answer, or prompt and continuation (`chat=False`, base models) | the answer |
| free places | up to `length` | `new_tokens` for each prompt, whatever its length | `gen_length` for each prompt |
| order by default | `"random"`, the ancestral sampler | `"confidence"`; `block=` from the end of the prompt | `"confidence"` in blocks counted from the beginning of the prompt |
| precision by default | float32 | that of config.json (bfloat16) | the pipeline's |

* **Prompts** are as for every masked model: the beginning of a text, or one with free places (`[MASK]`, `[MASK:5]`, `[MASK:*]`). A plain prompt of a LLaDA with a chat template is what the user says; one with free places never is. Prompts of several lengths may stand in one list: what the shorter ones lack is hidden from the network, so each has the law it has alone.
* **Temperature** must be above 0, and is 1 by default. The published samplers of LLaDA take the likeliest token at temperature 0: then there is one text, and nothing to steer.
* **Confidence** is the largest probability at a place. The published samplers take that of the token they drew, which is the same at temperature 0. It has no density, so methods that tilt the proposal refuse it.
* **MDLM sequences** begin with `<|endoftext|>` in training, so it is given; after the text's own end token another document may follow in the same sequence, which is not shown. The first-document rule and the prompt without its last token in the code of FK steering (arXiv 2501.06848) are these two: its tokenizer puts `<|endoftext|>` around the prompt.
* **LLaDA2**: clean guesses of a text that is half written are the text up to the block at work. What its own loop does beyond evenly many tokens per step (`threshold`, `editing_threshold`, `max_post_steps`, `minimal_topk`, `eos_early_stop`, greedy `sampling_method`) is refused by name; `steps` of `viot.sample` counts all blocks together.
* **Memory**: logits are float32, rows × length × vocabulary; LLaDA's 126 464 tokens at length 256 are 130 MB a row, and those of all particles are kept through a step: 64 of them are 8 GB. `batch_size=` bounds what is asked at once beside that.
* Weights must fit exactly: a key that is missing or left over is an error that names it. MDLM training checkpoints (`.ckpt`, with more than weights in their pickles) are not opened; LLaDA-MoE, Dream and others go into `viot.models.masked_lm.MaskedLM(network, tokenizer, …)`.
"""

# -- coverage -------------------------------------------------------------------------------------------------------------------------


def coverage(out):
    import diffusers

    can, cannot = [], defaultdict(list)
    for name in sorted(dir(diffusers)):
        kind = getattr(diffusers, name) if name.endswith("Pipeline") and name != "DiffusionPipeline" else None
        if not isinstance(kind, type):
            continue
        if name.endswith("ModularPipeline"):
            cannot["modular pipelines are built from blocks; take the plain pipeline of the same family"].append(name)
        elif (reason := why_not(kind)) is None:
            can.append(name)
        else:
            cannot[reason].append(name)
    refused = sum(map(len, cannot.values()))
    summary = (
        f"Told by signature, with diffusers {diffusers.__version__}: {len(can)} can, {refused} can't. What no signature tells (a state that a "
        f"pipeline changes between its steps, part of a state, several steps in one) is caught at the first call, with the reason."
    )
    lines = [
        "# Which diffusers pipelines can be steered",
        "",
        summary,
        "",
        "`python benchmarks/pipelines.py coverage --out docs/pipelines.md` makes this page anew.",
        "",
        "## They can",
        "",
        ", ".join(f"`{name}`" for name in can),
        "",
        "## They can't, and why",
        "",
        "| pipelines | reason |",
        "| --- | --- |",
        *(f"| {', '.join(f'`{n}`' for n in names)} | {reason} |" for reason, names in sorted(cannot.items(), key=lambda kv: -len(kv[1]))),
    ]
    if out:
        out.write_text("\n".join(lines) + "\n" + TEXTS)
    print(f"{len(can)} pipelines of diffusers {diffusers.__version__} can be steered, {refused} can't:")
    for reason, names in sorted(cannot.items(), key=lambda kv: -len(kv[1])):
        print(f"  {len(names):3d}  {reason}\n       {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")


# -- the families, executed -----------------------------------------------------------------------------------------------------------


def families():
    from tiny import FAMILIES

    print(f"{'family':12s} {'state':>14s} {'sample':>16s} {'times of a run of four steps':34s} brightness at λ = 0 and 3/spread")
    for name, (build, call, _) in FAMILIES.items():
        model = viot.from_pipeline(build(), **call)
        times = model.grid(4).times.tolist()

        def bright(lam, method="vasr", model=model):
            return viot.sample(model, "brightness", method, particles=8, steps=4, groups=2, lam=lam, progress=False)

        base = bright(0.0, "base")
        plain, steered = bright(0.0), bright(3.0 / float(base.rewards.std()))
        shapes = f"{tuple(model.event_shape)!s:>14s} {tuple(base.samples.shape[2:])!s:>16s}"
        print(
            f"{name:12s} {shapes} {' '.join(f'{t:.0f}' for t in times):34s} {plain.rewards.mean():.4f} → {steered.rewards.mean():.4f}"
            f"  (spread {base.rewards.std():.4f})"
        )


# -- cost -----------------------------------------------------------------------------------------------------------------------------


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def stubbed(pipe, double):
    """The network answers its input at once: what is left is Python."""
    network = getattr(pipe, "unet", None) or pipe.transformer

    def forward(*args, **kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        return (torch.cat([x, x], 1) if double else x,)

    network.forward = forward


def per_call(repeats):
    """Milliseconds of one network call through the adapter, beside the pipeline's own call of one step and its own loop per step."""
    from tiny import FAMILIES

    print("Python time with the network stubbed out, medians in milliseconds:\n")
    print(f"{'family':10s} {'one-step call':>14s} {'adapter':>9s} {'above':>7s} {'loop, per step':>15s}")
    for name in ("sd", "sdxl", "sd3", "flux", "pixart", "wan"):
        build, call, _ = FAMILIES[name]
        pipe, n = build(), 4
        pipe.set_progress_bar_config(disable=True)
        model = viot.from_pipeline(pipe, **call)
        x, t, group = model.prior(n, torch.Generator().manual_seed(0)), model.grid(4).times[1].expand(n), torch.zeros(n, dtype=torch.long)
        stubbed(pipe, name == "pixart")
        scheduler, own, keywords = model.oracle._told(t[0], x.device), pipe.scheduler, model._call(group, None)
        encode = model.oracle.always["encode_prompt"]

        def plain(pipe=pipe, x=x, scheduler=scheduler, own=own, keywords=keywords, encode=encode):
            vars(pipe).update(scheduler=scheduler, encode_prompt=encode)
            pipe(**keywords, latents=x, num_inference_steps=2, output_type="latent", return_dict=False)
            vars(pipe).update(scheduler=own)
            del pipe.encode_prompt

        def loop(steps, pipe=pipe, x=x, keywords=keywords):
            pipe(**keywords, latents=x, num_inference_steps=steps, output_type="latent", return_dict=False)

        with torch.no_grad():
            found = defaultdict(list)
            for i in range(20 * repeats):
                pairs = {"plain": seconds(plain), "adapter": seconds(lambda: model.predict(x, t, group))}  # noqa: B023
                for key, value in pairs.items() if i > 3 else ():
                    found[key].append(1e3 * value)
            per_step = [1e3 * (seconds(lambda: loop(22)) - seconds(lambda: loop(2))) / 20 for _ in range(repeats)]
        one, ours = statistics.median(found["plain"]), statistics.median(found["adapter"])
        print(f"{name:10s} {one:14.2f} {ours:9.2f} {ours - one:7.2f} {statistics.median(per_step):15.2f}")


def whole_run(repeats, steps=8, rows=1):
    """Wall time of an unsteered run over the plain pipeline's, on a random UNet of ordinary shape; one prompt, guidance, decoding."""
    import tiny
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    pipe = tiny.sd()
    pipe.unet = UNet2DConditionModel(
        block_out_channels=(64, 128, 128), layers_per_block=2, sample_size=32, in_channels=4, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16, norm_num_groups=8,
    ).eval()  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    model = viot.from_pipeline(pipe, prompt="a red cat", height=64, width=64)
    x, group = model.prior(rows, torch.Generator().manual_seed(0)), torch.zeros(rows, dtype=torch.long)
    with torch.no_grad():
        call = min(seconds(lambda: model.predict(x, model.grid(steps).times[0].expand(rows), group)) for _ in range(2))

    def plain():
        pipe("a red cat", height=64, width=64, num_images_per_prompt=rows, num_inference_steps=steps, output_type="pt")

    def ours(method):
        viot.sample(model, "brightness", method, particles=rows, steps=steps, progress=False)

    print(f"\nWhole run of {steps} steps, one network call {1e3 * call:.0f} ms: wall time over the plain pipeline's, in turns")
    for method in ("base", "vasr"):
        ratios = [seconds(lambda method=method: ours(method)) / seconds(plain) for _ in range(2 * repeats + 1)][1:]
        print(f"{method:8s} {statistics.median(ratios):.3f}  ({min(ratios):.3f} … {max(ratios):.3f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "families", "cost"])
    parser.add_argument("--out", type=Path, help="where coverage writes its page")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.what == "coverage":
        coverage(args.out)
    elif args.what == "families":
        families()
    else:
        per_call(args.repeats)
        whole_run(args.repeats)


if __name__ == "__main__":
    main()
