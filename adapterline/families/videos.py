"""Families of video pipelines."""

from __future__ import annotations

from adapterline.families.family import Component, Family, dropped, transformer

_BLOCKS = r"transformer\.transformer_blocks\.\d+"
_WAN = (
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "WanAnimateTransformer3DModel",
    "WanAnimate2Transformer3DModel",
    "ChronoEditTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "AnyFlowFARTransformer3DModel",
)

VIDEOS: tuple[Family, ...] = (
    # The loader takes keys of `transformer` alone, whichever of the two experts they are for.
    Family(
        name="wan",
        title="Wan 2.1 and 2.2",
        mixin="WanLoraLoaderMixin",
        pipeline="WanPipeline",
        components=(
            transformer(*_WAN),
            Component(
                "transformer_2",
                _WAN[:2],
                file="pytorch_lora_weights_2.safetensors",
                flag="load_into_transformer_2",
                prefix="transformer",
            ),
        ),
        tags=("wan", "text-to-video"),
        marks=(r"transformer(_2)?\.(vace_)?blocks\.\d+\.(attn[12]\.|ffn\.net)",),
        never=(r"transformer\.patch_(short|mid|long)",),
        architecture="wan2.1/lora",
        kohya_version="wan",
    ),
    Family(
        name="skyreels_v2",
        title="SkyReels V2",
        mixin="SkyReelsV2LoraLoaderMixin",
        pipeline="SkyReelsV2Pipeline",
        components=(transformer("SkyReelsV2Transformer3DModel"),),
        tags=("skyreels-v2", "text-to-video"),
        marks=(r"transformer\.blocks\.\d+\.(attn[12]\.|ffn\.net)",),
        never=(r"transformer_2|vace_|transformer\.patch_(short|mid|long)",),
    ),
    Family(
        name="helios",
        title="Helios",
        mixin="HeliosLoraLoaderMixin",
        pipeline="HeliosPipeline",
        components=(transformer("HeliosTransformer3DModel"),),
        tags=("helios", "text-to-video"),
        marks=(r"transformer\.blocks\.\d+\.(attn[12]\.|ffn\.net)|transformer\.patch_(short|mid|long)",),
        never=(r"transformer_2|vace_|attn2\.add_",),
    ),
    Family(
        name="hunyuan_video",
        title="HunyuanVideo",
        mixin="HunyuanVideoLoraLoaderMixin",
        pipeline="HunyuanVideoPipeline",
        components=(
            transformer(
                "HunyuanVideoTransformer3DModel",
                "HunyuanVideoFramepackTransformer3DModel",
                "HunyuanVideo15Transformer3DModel",
            ),
            dropped("text_encoder", "LlamaModel", "LlavaForConditionalGeneration"),
            dropped("text_encoder_2", "CLIPTextModel"),
        ),
        tags=("hunyuan-video", "text-to-video"),
        # Its names are FLUX.1's, and it has more blocks.
        marks=(
            r"transformer\.(context_embedder\.token_refiner|transformer_blocks\.19|single_transformer_blocks\.3[89])\.",
        ),
        never=(
            r"transformer\.single_transformer_blocks\.\d+\.(attn\.to_(qkv_mlp_proj|out)|ff\.)",
            r"transformer\.((txt_)?mode_blocks|joint_transformer_blocks)|transformer_blocks\.\d+\.(img_|txt_|attn1|attn2)",
            r"transformer\.(transformer_blocks\.[2-9]\d|single_transformer_blocks\.[4-9]\d)",
        ),
        architecture="hunyuan-video/lora",
        kohya_version="hunyuan_video",
    ),
    Family(
        name="ltx_video",
        title="LTX-Video",
        mixin="LTXVideoLoraLoaderMixin",
        pipeline="LTXPipeline",
        components=(transformer("LTXVideoTransformer3DModel"),),
        tags=("ltx-video", "text-to-video"),
        marks=(rf"{_BLOCKS}\.attn2\.to_",),
        never=(
            rf"{_BLOCKS}\.(audio_|video_|ff\.conv_|norm\d|ff_context|\w+\.(add_|to_add_))",
            rf"{_BLOCKS}\.(attn\.|img_|txt_|adaln_proj)",
            r"transformer\.(audio_|av_|patch_embed|norm_out|single_)|connectors|text_conditioner",
        ),
    ),
    Family(
        name="ltx2",
        title="LTX-2",
        mixin="LTX2LoraLoaderMixin",
        pipeline="LTX2Pipeline",
        components=(
            transformer("LTX2VideoTransformer3DModel"),
            Component("connectors", ("LTX2TextConnectors",)),
        ),
        tags=("ltx-2", "text-to-video"),
        marks=(rf"connectors\.|{_BLOCKS}\.(audio_|video_to_audio)|transformer\.av_cross",),
    ),
    Family(
        name="cogvideox",
        title="CogVideoX",
        mixin="CogVideoXLoraLoaderMixin",
        pipeline="CogVideoXPipeline",
        components=(transformer("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),),
        tags=("cogvideox", "text-to-video"),
        marks=(rf"{_BLOCKS}\.attn1\.to_",),
        never=(
            rf"{_BLOCKS}\.(attn2|audio_|norm\d\.linear_|ff_context|ff\.conv_|attn1\.(add_|to_add))",
            r"transformer\.(time_condition|time_embed\.|audio_|caption_)|connectors|text_conditioner",
        ),
    ),
    Family(
        name="mochi",
        title="Mochi 1",
        mixin="Mochi1LoraLoaderMixin",
        pipeline="MochiPipeline",
        components=(transformer("MochiTransformer3DModel"),),
        tags=("mochi", "text-to-video"),
        marks=(rf"{_BLOCKS}\.attn1\.to_",),
        never=(
            rf"{_BLOCKS}\.(attn2|audio_|norm\d\.linear_|norm2|ff\.conv_)",
            r"transformer\.(time_condition|time_embedding|audio_|caption_)|connectors|text_conditioner",
        ),
    ),
    Family(
        name="kandinsky5",
        title="Kandinsky 5",
        mixin="KandinskyLoraLoaderMixin",
        pipeline="Kandinsky5T2VPipeline",
        components=(transformer("Kandinsky5Transformer3DModel"),),
        tags=("kandinsky-5", "text-to-video"),
        marks=(r"transformer\.(visual|text)_transformer_blocks\.",),
        architecture="Kandinsky-5/lora",
        kohya_version="kandinsky5",
    ),
    Family(
        name="cosmos",
        title="Cosmos Predict 2.5",
        mixin="CosmosLoraLoaderMixin",
        pipeline="Cosmos2_5_PredictBasePipeline",
        components=(transformer("CosmosTransformer3DModel"),),
        tags=("cosmos", "text-to-video"),
        marks=(rf"{_BLOCKS}\.(attn[12]\.to_|norm\d\.linear_1)",),
        never=(
            rf"{_BLOCKS}\.(audio_|ff\.conv_|\w+\.add_|norm\d\.linear(?!_)|ff_context|norm1_context)",
            r"connectors|text_conditioner|transformer\.(proj_in|caption_projection|time_embed\.(emb|linear))",
        ),
    ),
    Family(
        name="minimax_h3",
        title="MiniMax H3",
        mixin="MiniMaxH3LoraLoaderMixin",
        pipeline="MiniMaxH3ModularPipeline",
        components=(
            transformer("MiniMaxH3Transformer3DModel"),
            Component("transformer_ref", ("MiniMaxH3Transformer3DModel",)),
        ),
        tags=("minimax-h3", "text-to-video"),
        marks=(rf"transformer_ref\.|transformer\.token_refiner\.|{_BLOCKS}\.(attn\.to_[qkvo]|adaln_proj)",),
        never=(
            r"transformer\.(single_|text_fusion)|transformer_blocks\.\d+\.(attn\.(add_|to_add|to_gate)|ff_context)",
            r"transformer_blocks\.\d+\.(img_|txt_|norm1|attn2|ff\.(linear_|up|down|gate))",
        ),
    ),
)
