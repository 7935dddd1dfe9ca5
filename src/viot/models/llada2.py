"""Diffusers' LLaDA2Pipeline as it is: `viot.from_pipeline(LLaDA2Pipeline(…), prompt=…, gen_length=256, block_length=32)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .masked_lm import MaskedLM
from .published import Hub, laid_out
from .steerable import check_call
from .tokens import NOTHING

#: Keywords of the pipeline's call that decide how its own loop chooses what to reveal, and when they change nothing here.
OWN_LOOP: dict[str, tuple[str, Any]] = {
    "threshold": ("revealing all tokens above a confidence takes a number of steps that is not known before", lambda v: v > 1),
    "editing_threshold": ("revealed tokens stay", lambda v: v is None or v <= 0),
    "max_post_steps": ("revealed tokens stay", None),
    "minimal_topk": ("tokens are dealt out evenly over steps= of viot.sample", lambda v: v == 1),
    "eos_early_stop": ("all steps are taken, and the text is cut at the end token", lambda v: not v),
    "sampling_method": ("tokens are drawn from the model's law", lambda v: v == "multinomial"),
    "output_type": ("samples come as texts", None),
    "return_dict": ("the answer is a Population", None),
    "generator": ("say seed= to viot.sample", None),
    "num_inference_steps": ("say steps= to viot.sample: blocks times steps per block", None),
    "callback_on_step_end": ("there is no loop of the pipeline's to call back from", None),
    "callback_on_step_end_tensor_inputs": ("there is no loop of the pipeline's to call back from", None),
    "attention_mask": ("every row of input_ids is a prompt without padding; give prompts of several lengths as texts", None),
}


class LLaDA2(MaskedLM):
    """The masked language model of a LLaDA2Pipeline: blocks of `block` places, counted from the beginning of the prompt.

    The network is asked as the pipeline asks it: about what is there up to the end of the block at work, with the answer for that block.
    Later blocks are as if the text ended before them, so clean guesses are the text so far.
    """

    def blocks(self) -> Tensor:
        """(prompts, length) the number of each position's block, the pipeline's way."""
        assert self.block is not None
        # Rows of shorter prompts begin later.
        return ((self.start != NOTHING).cumsum(-1) - 1).clamp_min(0) // self.block

    def nll(self, x0: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """TypeError: a network that sees no later block has no law of masks everywhere."""
        raise TypeError("LLaDA2 looks at one block and those before it: the bound over masks anywhere does not hold for it")


class Windows:
    """What the pipeline's network says of the block at work of each row: tokens (n, length) -> logits (n, length, vocabulary) float32."""

    def __init__(self, pipe: Any, block: int, mask_id: int, end_id: int, top_k: int | None) -> None:
        self.pipe, self.block, self.mask_id, self.end_id, self.top_k = pipe, block, mask_id, end_id, top_k

    def __call__(self, x: Tensor) -> Tensor:
        there, masked = x != NOTHING, x == self.mask_id
        first = there.long().argmax(1)
        last = x.shape[1] - 1 - there.long().flip(1).argmax(1)
        at = torch.where(masked.any(1), masked.long().argmax(1), last) - first
        work = torch.stack([first, at // self.block], 1)
        out = torch.empty(0, device=x.device)
        for begin, number in work.unique(dim=0).tolist():
            rows = ((work[:, 0] == begin) & (work[:, 1] == number)).nonzero()[:, 0]
            window = (number + 1) * self.block
            logits = self.asked(x[rows, begin : begin + window], window)
            if not len(out):
                out = logits.new_full((*x.shape, logits.shape[-1]), -torch.inf)
                out[..., self.end_id] = 0
            here = out[rows, begin + window - self.block : begin + window].shape[1]
            out[rows, begin + window - self.block : begin + window] = logits[:, :here]
        return out

    def asked(self, tokens: Tensor, length: int) -> Tensor:
        """(n, block, vocabulary) of the last block of rows that begin with a token; what they lack of `length` is hidden from the network."""
        x = torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]), value=NOTHING)
        there = x != NOTHING
        position = torch.arange(length, device=x.device).expand(len(x), -1)
        answer = self.pipe.model(torch.where(there, x, self.mask_id), attention_mask=there.long(), position_ids=position)
        logits = answer.logits[:, -self.block :].float()
        if self.top_k is not None and 0 < self.top_k < logits.shape[-1]:
            logits[..., self.mask_id] = -torch.inf
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], -torch.inf)
        return logits


def load(
    pipe: Any,
    *,
    prompt: str | list[str] | None = None,
    messages: list[dict[str, str]] | None = None,
    input_ids: Tensor | None = None,
    use_chat_template: bool = True,
    add_generation_prompt: bool = True,
    gen_length: int = 2048,
    block_length: int | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    top_k: int | None = None,
    eos_token_id: int | None = None,
    mask_token_id: int | None = None,
    **others: Any,
) -> LLaDA2:
    """The Model of a LLaDA2Pipeline, by the keywords of its call. A list of prompts makes one group each, of any lengths.

    temperature   1 by default, the model's own law; the pipeline's 0 draws nothing, and there would be nothing to steer
    others        TypeError for what belongs to the pipeline's own loop, unless it is set to what is done here

    Tokens are revealed block by block, in each where the network is surest, as evenly as `steps` allows. Steps are counted over all blocks.
    """
    for name, value in others.items():
        if name not in OWN_LOOP:
            check_call(pipe, {name: value})
        reason, same = OWN_LOOP[name]
        if same is None or not same(value):
            raise TypeError(f"{name}={value!r} can't be honoured: {reason}")
    if pipe.tokenizer is None:
        raise TypeError("this LLaDA2Pipeline has no tokenizer, and a reward is a score of texts; make it with one")
    mask = pipe.mask_token_id if mask_token_id is None else mask_token_id
    end = pipe.eos_token_id if eos_token_id is None else eos_token_id
    if mask is None or end is None:
        raise TypeError(
            f"its tokenizer does not say which token is the mask ({mask}) or the end ({end}); give mask_token_id and eos_token_id"
        )
    if (given := sum(v is not None for v in (prompt, messages, input_ids))) != 1:
        raise ValueError(f"give a prompt, messages or input_ids, one of them: {given} were given")
    if gen_length < 1:
        raise ValueError(f"gen_length must be at least 1, not {gen_length}")
    block = int(pipe.scheduler.config.block_length if block_length is None else block_length)
    texts = [prompt] if isinstance(prompt, str) else prompt
    if texts is not None and not texts:
        raise ValueError("prompt is an empty list; give one text per group")

    def encoded(**one: Any) -> list[list[int]]:
        how = {"use_chat_template": use_chat_template, "add_generation_prompt": add_generation_prompt, "chat_template_kwargs": None}
        return pipe._prepare_input_ids(**({"prompt": None, "messages": None, "input_ids": None} | how | one))[0].tolist()

    heads = encoded(messages=messages, input_ids=input_ids) if texts is None else [encoded(prompt=text)[0] for text in texts]
    if texts is None:
        texts = [messages[-1]["content"]] if messages is not None else [pipe.tokenizer.decode(head) for head in heads]
    start, skip = laid_out(heads, [[mask] * gen_length] * len(heads))
    about = {"name": pipe.config.get("_name_or_path"), "pipeline": type(pipe).__name__, "gen_length": gen_length, "top_k": top_k}
    return LLaDA2(
        Windows(pipe, block, mask, end, top_k), Hub(pipe.tokenizer), length=start.shape[1], mask_id=mask, end_id=end, prompt=texts,
        order="confidence", block=block, temperature=temperature, top_p=1.0 if top_p is None else top_p, start=start, skip=skip,
        device=pipe._execution_device, config=about,
    )  # fmt: skip
