"""Steer a diffusers pipeline of your own, unmodified: the three lines of `steer`.

    python examples/your_pipeline.py stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a red cat" --reward aesthetic --device cuda

Without a name it takes a pipeline that comes with the package, which draws coloured digits from captions on any CPU.
"""

import argparse
from pathlib import Path

import viot


def steer(pipe, prompts, reward, **settings):
    model = viot.from_pipeline(pipe, prompt=prompts)
    population = viot.sample(model, reward, "vasr", lam=viot.ess(0.3), **settings)
    return population.best(1)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a checkpoint of the hub, or a folder")
    parser.add_argument("--prompt", nargs="+", default=["a thick red seven", "two blue threes"])
    parser.add_argument("--reward", default="captions", help="see `viot list rewards`")
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a folder for the best picture of each prompt")
    args = parser.parse_args(arguments)

    if args.name:
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(args.name).to(args.device)
    else:
        pipe = viot.load("captions").pipe
    best = steer(pipe, args.prompt, args.reward, particles=args.particles, steps=args.steps)
    for prompt, reward in zip(args.prompt, best.rewards[:, 0].tolist(), strict=True):
        print(f"{reward:8.3f}   {prompt}")
    if args.out:
        best.save(args.out)
        print(f"pictures and report in {args.out}")
    return best


if __name__ == "__main__":
    main()
