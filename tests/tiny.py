"""Tiny random pipelines of the families that diffusers knows, made from configurations in a fraction of a second."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import torch
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import transformers
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


#: What every language model's configuration is told of the vocabulary.
VOCABULARY = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def clip(width=16, projection=None, length=8):
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=length,
        projection_dim=projection or width, **VOCABULARY,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(width=32):
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    )


def gemma(**more):
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            head_dim=4, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=2,
            attn_implementation="eager", **VOCABULARY, **more,
        )
    )  # fmt: skip


def qwen_vl(width=16):
    """Qwen2.5-VL, whose language model reads prompts for several families."""
    sizes = {"hidden_size": width, "intermediate_size": width}
    rope = {"mrope_section": [1, 1, width // 4 - 2], "rope_type": "default", "type": "default"}
    text = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope, "rope_theta": 1e6}
    sight = {"depth": 1, "num_heads": 2, "out_hidden_size": width}
    config = transformers.Qwen2_5_VLConfig(text_config=VOCABULARY | sizes | text, vision_config=sizes | sight)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def vision(width=32):
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=width, projection_dim=width, num_hidden_layers=2, num_attention_heads=2, image_size=16, intermediate_size=16,
            patch_size=8,
        )
    )  # fmt: skip


def look():
    return transformers.CLIPImageProcessorPil(crop_size=16, size=16)


def vae(channels=4, **more):
    return AutoencoderKL(
        block_out_channels=[8, 16], in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=channels, norm_num_groups=2, **more,
    )  # fmt: skip


#: Of the autoencoders of flow models.
FLAT = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}


def unet(in_channels=4, width=16, **more):
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=in_channels, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, norm_num_groups=2, attention_head_dim=4, **more,
    )  # fmt: skip


def seeded(build):
    """Weights from a seed of their own, whatever was drawn before."""

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


def _control(width=16, **more):
    control = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=width, norm_num_groups=2, attention_head_dim=4, conditioning_embedding_out_channels=(8, 8), **more,
    )  # fmt: skip
    for part in (*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(part.weight, std=0.1)
    return control


@seeded
def controlnet():
    return _sd(diffusers.StableDiffusionControlNetPipeline, controlnet=_control())


@seeded
def depth():
    return diffusers.StableDiffusionDepth2ImgPipeline(
        vae(), clip(), tokenizer(), unet(5), DDIMScheduler(**DDIM), depth_estimator=None, feature_extractor=None
    )


@seeded
def pix2pix():
    return _sd(diffusers.StableDiffusionInstructPix2PixPipeline, diffusers.EulerAncestralDiscreteScheduler(**LDM), unet(8))


@seeded
def upscale():
    noises, scheduler = diffusers.DDPMScheduler(), DDIMScheduler(**DDIM, prediction_type="v_prediction")
    net = unet(7, num_class_embeds=100)
    return diffusers.StableDiffusionUpscalePipeline(vae(), clip(), tokenizer(), net, noises, scheduler, max_noise_level=50)


@seeded
def pag():
    return _sd(diffusers.StableDiffusionPAGPipeline, pag_applied_layers="mid")


@seeded
def ip_adapter():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor
    from diffusers.models.embeddings import ImageProjection

    pipe = _sd(diffusers.StableDiffusionPipeline, image_encoder=vision(16))
    pipe.register_modules(feature_extractor=look())
    cross = {}
    for i, name in enumerate(name for name in pipe.unet.attn_processors if "attn2" in name):
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        made = IPAdapterAttnProcessor(hidden_size=width, cross_attention_dim=16).state_dict()
        cross |= {f"{2 * i + 1}.to_{what}_ip.weight": made[f"to_{what}_ip.0.weight"] for what in "kv"}
    made = ImageProjection(image_embed_dim=16, cross_attention_dim=16, num_image_text_embeds=4).state_dict()
    seen = {name.replace("image_embeds", "proj"): value for name, value in made.items()}
    pipe.unet._load_ip_adapter_weights([{"image_proj": seen, "ip_adapter": cross}])
    return pipe


@seeded
def ldm():
    scheduler = DDIMScheduler(**LDM, clip_sample=False, set_alpha_to_one=False)
    return diffusers.LDMTextToImagePipeline(vae(), clip(length=77), tokenizer(77), unet(), scheduler)


@seeded
def latent_upscale():
    crossed = ("KCrossAttnDownBlock2D",) * 3
    net = UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=[32, 32, 64, 64], time_cond_proj_dim=144,
        conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=16, down_block_types=("KDownBlock2D", *crossed), in_channels=8,
        mid_block_type=None, only_cross_attention=False, out_channels=5, resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu", up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    return diffusers.StableDiffusionLatentUpscalePipeline(vae(), clip(), tokenizer(), net, scheduler)


@seeded
def kandinsky():
    net = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=8, addition_embed_type="image", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), encoder_hid_dim=32, encoder_hid_dim_type="image_proj",
        cross_attention_dim=32, attention_head_dim=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], in_channels=3, latent_channels=4,
        layers_per_block=1, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12, out_channels=3,
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], vq_embed_dim=4,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample_range=2.0, variance_type="learned_range")
    return diffusers.KandinskyV22Pipeline(net, scheduler, movq)


@seeded
def hunyuandit():
    net = diffusers.HunyuanDiT2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4, cross_attention_dim=32,
        cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24, activation_fn="gelu-approximate",
    )  # fmt: skip
    bert = transformers.BertModel(
        transformers.BertConfig(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    scheduler = diffusers.DDPMScheduler(**LDM | {"beta_end": 0.03}, prediction_type="v_prediction")
    return diffusers.HunyuanDiTPipeline(vae(), bert, tokenizer(), net, scheduler, None, None, False, t5(), tokenizer(256))


@seeded
def lcm():
    scheduler = diffusers.LCMScheduler(**LDM, original_inference_steps=50)
    return _sd(diffusers.LatentConsistencyModelPipeline, scheduler, unet(time_cond_proj_dim=8))


XL = {"width": 48, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}


def _xl(kind, scheduler=None, net=None, **more):
    return kind(
        vae=vae(), text_encoder=clip(16), text_encoder_2=clip(32, 32), tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        unet=net or unet(**XL), scheduler=scheduler or diffusers.EulerDiscreteScheduler(**LDM, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False, **more,
    )  # fmt: skip


@seeded
def sdxl(scheduler=None):
    return _xl(diffusers.StableDiffusionXLPipeline, scheduler)


@seeded
def xl_img2img():
    return _xl(diffusers.StableDiffusionXLImg2ImgPipeline)


@seeded
def xl_inpaint(channels=9):
    return _xl(diffusers.StableDiffusionXLInpaintPipeline, net=unet(channels, **XL))


@seeded
def xl_controlnet():
    return _xl(diffusers.StableDiffusionXLControlNetPipeline, controlnet=_control(48, **{k: v for k, v in XL.items() if k != "width"}))


@seeded
def sd3():
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(**FLAT), text_encoder=clip(16, 16), tokenizer=tokenizer(), text_encoder_2=clip(16, 16), tokenizer_2=tokenizer(),
        text_encoder_3=t5(), tokenizer_3=tokenizer(),
    )  # fmt: skip


@seeded
def sd3_img2img():
    return diffusers.StableDiffusion3Img2ImgPipeline(**sd3().components)


def _flux(kind, channels=4):
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=channels, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(1, **FLAT), text_encoder=clip(16),
        tokenizer=tokenizer(), text_encoder_2=t5(), tokenizer_2=tokenizer(), transformer=net,
    )  # fmt: skip


@seeded
def flux():
    return _flux(diffusers.FluxPipeline)


@seeded
def flux_img2img():
    return _flux(diffusers.FluxImg2ImgPipeline)


@seeded
def flux_inpaint():
    return _flux(diffusers.FluxInpaintPipeline)


@seeded
def flux_fill():
    # The state, the masked picture, and the mask of 2×2 pixels a latent, 2×2 latents a token.
    return _flux(diffusers.FluxFillPipeline, 4 + 4 + 16)


@seeded
def flux_kontext():
    return _flux(diffusers.FluxKontextPipeline)


@seeded
def chroma():
    net = diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.ChromaPipeline(scheduler, vae(1, **FLAT), t5(), tokenizer(), net)


@seeded
def sana():
    net = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=8,
    )  # fmt: skip
    blocks, scales = ("ResBlock", "EfficientViTBlock"), ((), (5,))
    decoder = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales,
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return diffusers.SanaPipeline(tokenizer(256), gemma(), decoder, net, scheduler)


@seeded
def qwen():
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.QwenImagePipeline(scheduler, decoder, qwen_vl(), tokenizer(64), net)


@seeded
def zimage():
    net = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    for pad in (net.x_pad_token, net.cap_pad_token):
        torch.nn.init.normal_(pad)
    text = transformers.Qwen3Model(
        transformers.Qwen3Config(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            **VOCABULARY,
        )
    )
    talk = copy.deepcopy(tokenizer(32))
    talk.chat_template = "{{ messages[0]['content'] }}"
    return diffusers.ZImagePipeline(FlowMatchEulerDiscreteScheduler(), vae(16, shift_factor=0.1), text, talk, net)


@seeded
def lumina():
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=1, num_attention_heads=1, num_kv_heads=1, multiple_of=16,
        ffn_dim_multiplier=None, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=[4, 2, 2], cap_feat_dim=8,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(net, FlowMatchEulerDiscreteScheduler(), vae(**FLAT), gemma(sliding_window=2), tokenizer(32))


@seeded
def auraflow():
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(tokenizer(), t5(), vae(), net, FlowMatchEulerDiscreteScheduler(shift=1.73))


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


# -- videos ---------------------------------------------------------------------------------------------------------------------------


def _wan(channels=16, **more):
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16, text_dim=32,
        freq_dim=256, ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **more,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return {"transformer": net, "vae": decoder, "text_encoder": None, "tokenizer": None, "transformer_2": None}


@seeded
def wan():
    return diffusers.WanPipeline(**_wan(), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0))


@seeded
def wan_two():
    """One network for the noisier times, and one for the others."""
    second = _wan()["transformer"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.WanPipeline(**_wan() | {"transformer_2": second}, scheduler=scheduler, boundary_ratio=0.9)


@seeded
def wan_i2v():
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    sight = {"image_encoder": vision(4), "image_processor": look()}
    return diffusers.WanImageToVideoPipeline(**_wan(36, image_dim=4), **sight, scheduler=scheduler)


def _cogvideo(kind, scheduler, channels=4, **more):
    net = diffusers.CogVideoXTransformer3DModel(
        in_channels=channels, out_channels=4, time_embed_dim=2, text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=8, **more,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    return kind(tokenizer(), t5(), decoder, net, scheduler)


COG = {**LDM, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False, "timestep_spacing": "trailing"}


@seeded
def cogvideo():
    scheduler = diffusers.CogVideoXDPMScheduler(**COG, snr_shift_scale=1.0)
    return _cogvideo(diffusers.CogVideoXPipeline, scheduler, num_attention_heads=4, attention_head_dim=8)


@seeded
def cogvideo_i2v():
    both = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True}
    scheduler = diffusers.CogVideoXDDIMScheduler(**COG)
    return _cogvideo(diffusers.CogVideoXImageToVideoPipeline, scheduler, 8, num_attention_heads=2, attention_head_dim=16, **both)


def _ltx(kind):
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=1, caption_channels=32,
    )  # fmt: skip
    scales = (True, True, False, False)
    # Decoding is conditioned on a time, and adds noise.
    decoder = diffusers.AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scales, decoder_spatio_temporal_scaling=scales,
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=True,
        patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    return kind(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), decoder, t5(), tokenizer(), net)


@seeded
def ltx():
    return _ltx(diffusers.LTXPipeline)


@seeded
def ltx_i2v():
    return _ltx(diffusers.LTXImageToVideoPipeline)


@seeded
def hunyuanvideo():
    net = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=16, pooled_projection_dim=16, rope_axes_dim=(2, 4, 4),
        guidance_embeds=True,
    )  # fmt: skip
    config = transformers.LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, **VOCABULARY)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.HunyuanVideoPipeline(
        transformers.LlamaModel(config), tokenizer(), net, _hunyuan_vae(4), scheduler, clip(length=77), tokenizer(77)
    )


def _hunyuan_vae(channels):
    return diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=channels, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip


@seeded
def kandinsky5():
    net = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=16, in_text_dim=32, in_text_dim2=16, time_dim=16, out_visual_dim=16, patch_size=(1, 2, 2), model_dim=16, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(1, 1, 2), visual_cond=False, attention_type="regular",
    )  # fmt: skip
    for name, weight in net.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(weight, std=0.1)
    words = tokenizer(256)
    read = lambda text, images, videos, **settings: words(text, **settings)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.Kandinsky5T2VPipeline(net, _hunyuan_vae(16), qwen_vl(32), read, clip(length=77), tokenizer(77), scheduler)


@seeded
def mochi():
    net = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
        qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, activation_fn="swiglu", max_sequence_length=8,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    return diffusers.MochiPipeline(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), decoder, t5(), tokenizer(), net)


@seeded
def svd():
    net = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=8, out_channels=4, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), num_attention_heads=2,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 64], in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **LDM, prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, steps_offset=1, timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(decoder, vision(), net, scheduler, look())


@seeded
def animatediff():
    net = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=2,
        attention_head_dim=4,
    )  # fmt: skip
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    scheduler = DDIMScheduler(**LDM | {"beta_schedule": "linear"}, clip_sample=False)
    return diffusers.AnimateDiffPipeline(vae(), clip(), tokenizer(), net, motion, scheduler)


@seeded
def text2video():
    net = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        attention_head_dim=4, norm_num_groups=2,
    )  # fmt: skip
    return diffusers.TextToVideoSDPipeline(vae(), clip(), tokenizer(), net, DDIMScheduler(**DDIM))


# -- no text --------------------------------------------------------------------------------------------------------------------------


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

GUIDE = {
    name: torch.randn(1, 32, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(("image_embeds", "negative_image_embeds"))
}
CAT = {"prompt": "a red cat"}
SMALL = {"height": 16, "width": 16}
CLIPPED = {"max_sequence_length": 8}

#: family -> (pipeline, its keywords, what shape its samples have)
FAMILIES = {
    "sd": (sd, {**CAT, "guidance_scale": 5.0}, (3, 16, 16)),
    "sd-euler": (lambda: sd(diffusers.EulerDiscreteScheduler(**LDM)), CAT, (3, 16, 16)),
    "sd-karras": (lambda: sd(diffusers.DPMSolverMultistepScheduler(**LDM, use_karras_sigmas=True)), CAT, (3, 16, 16)),
    "sd-pndm": (
        lambda: sd(diffusers.PNDMScheduler(**LDM, skip_prk_steps=True, steps_offset=1)),
        {"prompt": "a cat", "negative_prompt": "dark"},
        (3, 16, 16),
    ),
    "sdxl": (sdxl, {**CAT, **SMALL}, (3, 16, 16)),
    "sd3": (sd3, {**CAT, **SMALL}, (3, 16, 16)),
    "flux": (flux, {**CAT, "height": 8, "width": 8, "guidance_scale": 3.5}, (3, 8, 8)),
    "pixart": (pixart, {**CAT, **SMALL, "use_resolution_binning": False}, (3, 16, 16)),
    "wan": (wan, {**EMBEDS, **SMALL, "num_frames": 5}, (5, 3, 16, 16)),
    "lcm": (lcm, CAT, (3, 16, 16)),
    "img2img": (img2img, {**CAT, "image": PICTURE, "strength": 0.6}, (3, 16, 16)),
    "inpaint": (inpaint, {**CAT, "image": PICTURE, "mask_image": MASK, **SMALL}, (3, 16, 16)),
    "controlnet": (controlnet, {**CAT, "image": PICTURE}, (3, 16, 16)),
    "depth": (depth, {**CAT, "image": PICTURE, "depth_map": 1 - PICTURE[:, 0], "strength": 0.6}, (3, 16, 16)),
    "pix2pix": (pix2pix, {**CAT, "image": PICTURE}, (3, 16, 16)),
    "upscale": (upscale, {**CAT, "image": PICTURE, "noise_level": 20}, (3, 32, 32)),
    "pag": (pag, {**CAT, "pag_scale": 2.0, "pag_adaptive_scale": 0.001}, (3, 16, 16)),
    "ip-adapter": (ip_adapter, {**CAT, "ip_adapter_image": Image.new("RGB", (16, 16), (200, 100, 50))}, (3, 16, 16)),
    "xl-img2img": (xl_img2img, {**CAT, "image": PICTURE, "strength": 0.6}, (3, 16, 16)),
    "xl-inpaint": (xl_inpaint, {**CAT, **SMALL, "image": PICTURE, "mask_image": MASK}, (3, 16, 16)),
    "xl-controlnet": (xl_controlnet, {**CAT, "image": PICTURE}, (3, 16, 16)),
    "sd3-img2img": (sd3_img2img, {**CAT, **SMALL, "image": PICTURE, "strength": 0.6}, (3, 16, 16)),
    "flux-img2img": (flux_img2img, {**CAT, **SMALL, "image": PICTURE, "strength": 0.6}, (3, 16, 16)),
    "flux-fill": (flux_fill, {**CAT, **SMALL, "image": PICTURE, "mask_image": MASK}, (3, 16, 16)),
    "flux-kontext": (flux_kontext, {**CAT, "image": PICTURE, "height": 8, "width": 8, "max_area": 64, "_auto_resize": False}, (3, 8, 8)),
    "chroma": (chroma, {**CAT, **CLIPPED, "negative_prompt": "dark", "height": 8, "width": 8}, (3, 8, 8)),
    "sana": (
        sana,
        {**CAT, **CLIPPED, "height": 32, "width": 32, "use_resolution_binning": False, "complex_human_instruction": None},
        (3, 32, 32),
    ),
    "qwen": (qwen, {**CAT, **SMALL, "negative_prompt": "dark", "true_cfg_scale": 3.0}, (3, 16, 16)),
    "zimage": (zimage, {**CAT, **SMALL, "negative_prompt": "dark", "guidance_scale": 3.0}, (3, 16, 16)),
    "lumina": (lumina, {**CAT, "height": 32, "width": 32, "system_prompt": "a bright", "max_sequence_length": 24}, (3, 8, 8)),
    "auraflow": (auraflow, {**CAT, **SMALL, **CLIPPED}, (3, 16, 16)),
    "hunyuandit": (hunyuandit, {**CAT, **SMALL, "use_resolution_binning": False}, (3, 16, 16)),
    "kandinsky": (kandinsky, {**GUIDE, **SMALL}, (3, 16, 16)),
    "ldm": (ldm, {**CAT, "height": 64, "width": 64, "guidance_scale": 3.0}, (3, 16, 16)),
    "wan-two": (wan_two, {**EMBEDS, **SMALL, "num_frames": 5}, (5, 3, 16, 16)),
    "wan-i2v": (wan_i2v, {**EMBEDS, **SMALL, "image": PICTURE, "num_frames": 5}, (5, 3, 16, 16)),
    "cogvideo": (cogvideo, {**CAT, **SMALL, **CLIPPED, "num_frames": 9}, (9, 3, 16, 16)),
    "cogvideo-i2v": (cogvideo_i2v, {**CAT, **SMALL, **CLIPPED, "image": PICTURE, "num_frames": 9}, (9, 3, 16, 16)),
    "ltx": (
        ltx,
        {**CAT, **CLIPPED, "height": 32, "width": 32, "num_frames": 9, "decode_timestep": 0.05, "decode_noise_scale": 0.025},
        (9, 3, 32, 32),
    ),
    "hunyuanvideo": (
        hunyuanvideo,
        {**CAT, **SMALL, **CLIPPED, "num_frames": 5, "prompt_template": {"template": "{}", "crop_start": 0}},
        (5, 3, 16, 16),
    ),
    "kandinsky5": (kandinsky5, {**CAT, "height": 32, "width": 32, "num_frames": 5}, (5, 3, 32, 32)),
    "mochi": (mochi, {**CAT, **SMALL, **CLIPPED, "num_frames": 7}, (7, 3, 16, 16)),
    "svd": (svd, {**SMALL, "image": PICTURE, "num_frames": 2, "noise_aug_strength": 0.1}, (2, 3, 16, 16)),
    "animatediff": (animatediff, {**CAT, "num_frames": 3}, (3, 3, 16, 16)),
    "ddpm": (ddpm, {}, (3, 8, 8)),
    "ddim": (ddim, {}, (3, 8, 8)),
    "consistency": (consistency, {}, (3, 8, 8)),
    "dit": (dit, {"class_labels": [1]}, (3, 16, 16)),
}
