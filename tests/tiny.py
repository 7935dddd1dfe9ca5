"""Tiny random pipelines of the families that diffusers knows, made from configurations in a fraction of a second."""

from __future__ import annotations

import warnings
from functools import cache

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast, T5Config, T5EncoderModel
diffusers.logging.set_verbosity_error()

WORDS = [
    "<pad>",
    "<start>",
    "<end>",
    "<unk>",
    "a",
    "an",
    "red",
    "blue",
    "cat",
    "dog",
    "on",
    "the",
    "mat",
    "bright",
    "dark",
    "two",
    "sevens",
    "and",
]
LDM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**LDM, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@cache
def tokenizer(length=8):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=length, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    )


def clip(width=16, projection=None):
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=projection or width, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(width=32):
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    )


def vae(channels=4, **more):
    return AutoencoderKL(
        block_out_channels=[8, 16], in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=channels, norm_num_groups=2, **more,
    )  # fmt: skip


def unet(in_channels=4, width=16, **more):
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=in_channels, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, norm_num_groups=2, attention_head_dim=4, **more,
    )  # fmt: skip


def seeded(build):
    """Weights from a seed of their own, whatever was drawn before; and livelier than the default ones, so that every input matters."""

    def built(*args, **kwargs):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            pipe = build(*args, **kwargs)
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
        return pipe

    return built


def _sd(kind, scheduler=None, net=None, **more):
    return kind(
        vae=vae(), text_encoder=clip(), tokenizer=tokenizer(), unet=net or unet(), scheduler=scheduler or DDIMScheduler(**DDIM),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **more,
    )  # fmt: skip


@seeded
def sd(scheduler=None):
    return _sd(diffusers.StableDiffusionPipeline, scheduler)


@seeded
def img2img():
    return _sd(diffusers.StableDiffusionImg2ImgPipeline)


@seeded
def inpaint(channels=9):
    return _sd(diffusers.StableDiffusionInpaintPipeline, net=unet(channels))


@seeded
def controlnet():
    control = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=16, norm_num_groups=2, attention_head_dim=4, conditioning_embedding_out_channels=(8, 8),
    )  # fmt: skip
    for part in (*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(part.weight, std=0.1)
    return _sd(diffusers.StableDiffusionControlNetPipeline, controlnet=control)


@seeded
def lcm():
    scheduler = diffusers.LCMScheduler(**LDM, original_inference_steps=50)
    return _sd(diffusers.LatentConsistencyModelPipeline, scheduler, unet(time_cond_proj_dim=8))


@seeded
def sdxl(scheduler=None):
    net = unet(
        width=48, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(16), text_encoder_2=clip(32, 32), tokenizer=tokenizer(), tokenizer_2=tokenizer(), unet=net,
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**LDM, timestep_spacing="leading", steps_offset=1), add_watermarker=False,
    )  # fmt: skip


@seeded
def sd3():
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.06), text_encoder=clip(16, 16), tokenizer=tokenizer(), text_encoder_2=clip(16, 16), tokenizer_2=tokenizer(),
        text_encoder_3=t5(), tokenizer_3=tokenizer(),
    )  # fmt: skip


@seeded
def flux():
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(1, use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.06), text_encoder=clip(16), tokenizer=tokenizer(), text_encoder_2=t5(), tokenizer_2=tokenizer(), transformer=net,
    )  # fmt: skip


@seeded
def pixart():
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=32, in_channels=4,
        cross_attention_dim=16, out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        transformer=net, scheduler=diffusers.DPMSolverMultistepScheduler(**LDM), vae=vae(), text_encoder=t5(), tokenizer=tokenizer()
    )


@seeded
def wan():
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=32, freq_dim=256,
        ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return diffusers.WanPipeline(
        transformer=net, vae=decoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder=None, tokenizer=None,
        transformer_2=None,
    )  # fmt: skip


def _pixel_unet():
    return diffusers.UNet2DModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=3, out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=2,
    )  # fmt: skip


@seeded
def ddpm():
    return diffusers.DDPMPipeline(_pixel_unet(), diffusers.DDPMScheduler())


@seeded
def ddim():
    return diffusers.DDIMPipeline(_pixel_unet(), DDIMScheduler())


@seeded
def consistency():
    return diffusers.ConsistencyModelPipeline(_pixel_unet(), diffusers.CMStochasticIterativeScheduler())


@seeded
def dit():
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=4, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )  # fmt: skip
    return diffusers.DiTPipeline(net, vae(), DDIMScheduler(**LDM), id2label={0: "tench, Tinca tinca", 1: "goldfish"})


# -- the families, and how each is called ---------------------------------------------------------------------------------------------

PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(1, 1, 16, 16).index_fill_(3, torch.arange(8), 1.0)
EMBEDS = {
    name: torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(seed))
    for seed, name in enumerate(("prompt_embeds", "negative_prompt_embeds"))
}

#: family -> (pipeline, its keywords, what shape its samples have)
FAMILIES = {
    "sd": (sd, {"prompt": "a red cat", "guidance_scale": 5.0}, (3, 16, 16)),
    "sd-euler": (lambda: sd(diffusers.EulerDiscreteScheduler(**LDM)), {"prompt": "a red cat"}, (3, 16, 16)),
    "sd-karras": (
        lambda: sd(diffusers.DPMSolverMultistepScheduler(**LDM, use_karras_sigmas=True)),
        {"prompt": "a red cat"},
        (3, 16, 16),
    ),
    "sd-pndm": (
        lambda: sd(diffusers.PNDMScheduler(**LDM, skip_prk_steps=True, steps_offset=1)),
        {"prompt": "a cat", "negative_prompt": "dark"},
        (3, 16, 16),
    ),
    "sdxl": (sdxl, {"prompt": "a red cat", "height": 16, "width": 16}, (3, 16, 16)),
    "sd3": (sd3, {"prompt": "a red cat", "height": 16, "width": 16}, (3, 16, 16)),
    "flux": (flux, {"prompt": "a red cat", "height": 8, "width": 8, "guidance_scale": 3.5}, (3, 8, 8)),
    "pixart": (pixart, {"prompt": "a red cat", "height": 16, "width": 16, "use_resolution_binning": False}, (3, 16, 16)),
    "wan": (wan, {**EMBEDS, "height": 16, "width": 16, "num_frames": 5}, (5, 3, 16, 16)),
    "lcm": (lcm, {"prompt": "a red cat"}, (3, 16, 16)),
    "img2img": (img2img, {"prompt": "a red cat", "image": PICTURE, "strength": 0.6}, (3, 16, 16)),
    "inpaint": (inpaint, {"prompt": "a red cat", "image": PICTURE, "mask_image": MASK, "height": 16, "width": 16}, (3, 16, 16)),
    "controlnet": (controlnet, {"prompt": "a red cat", "image": PICTURE}, (3, 16, 16)),
    "ddpm": (ddpm, {}, (3, 8, 8)),
    "ddim": (ddim, {}, (3, 8, 8)),
    "consistency": (consistency, {}, (3, 8, 8)),
    "dit": (dit, {"class_labels": [1]}, (3, 16, 16)),
}
