"""The public bases whose configurations come with adapterline: `--base sd15` needs neither network nor access rights.

`configs/{alias}/` is a pipeline folder without weights: `model_index.json`, and the `config.json` of each model that an
adapter may change. A configuration is here only if it is known for certain: it was read in public (the model's own
`config.json`, or the script that converted its weights, which loads them strictly), and the model that it builds has
the number of parameters that is publicly stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_CONFIGS = Path(__file__).parent / "configs"
_DIFFUSERS = "https://github.com/huggingface/diffusers/blob/main"
_CONVERT_WAN = f"{_DIFFUSERS}/scripts/convert_wan_to_diffusers.py"
_CONVERT_SKYREELS = f"{_DIFFUSERS}/scripts/convert_skyreelsv2_to_diffusers.py"
_CONVERT_SD3 = f"{_DIFFUSERS}/scripts/convert_sd3_to_diffusers.py"
_CONVERT_FLUX = f"{_DIFFUSERS}/scripts/convert_flux_to_diffusers.py"
_CONVERT_FLUX2 = f"{_DIFFUSERS}/scripts/convert_flux2_to_diffusers.py"
_CONVERT_HUNYUAN = f"{_DIFFUSERS}/scripts/convert_hunyuan_video_to_diffusers.py"
_CONVERT_LTX = f"{_DIFFUSERS}/scripts/convert_ltx_to_diffusers.py"
_CONVERT_LTX2 = f"{_DIFFUSERS}/scripts/convert_ltx2_to_diffusers.py"
_CONVERT_COGVIDEOX = f"{_DIFFUSERS}/scripts/convert_cogvideox_to_diffusers.py"
_CONVERT_SANA = f"{_DIFFUSERS}/scripts/convert_sana_to_diffusers.py"
_CONVERT_COSMOS = f"{_DIFFUSERS}/scripts/convert_cosmos_to_diffusers.py"
_DIFFSYNTH = "https://github.com/modelscope/DiffSynth-Studio/blob/main/diffsynth/configs/model_configs.py"
_COMFYUI = "https://github.com/Comfy-Org/ComfyUI/blob/master/comfy/model_detection.py"


@dataclass(frozen=True)
class ShippedBase:
    """One alias.

    `parameters` is the exact number of the denoiser's parameters, of one expert where there are two. `stated` is the
    public figure where that is a rounded one ("14B"), and None where the exact number is public. `licence` is the
    Hub's identifier for the licence of the weights; "other" is one that the Hub has no identifier for. `source` is
    where the denoiser's configuration can be read.
    """

    alias: str
    model: str
    title: str
    parameters: int
    licence: str
    source: str
    stated: str | None = None


def _config(model: str, component: str = "transformer") -> str:
    return f"https://huggingface.co/{model}/blob/main/{component}/config.json"


SHIPPED: tuple[ShippedBase, ...] = (
    ShippedBase(
        "sd15",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5",
        859_520_964,
        "creativeml-openrail-m",
        _config("stable-diffusion-v1-5/stable-diffusion-v1-5", "unet"),
    ),
    ShippedBase(
        "sd21",
        "stabilityai/stable-diffusion-2-1",
        "Stable Diffusion 2.1",
        865_910_724,
        "openrail++",
        _config("stabilityai/stable-diffusion-2-1", "unet"),
    ),
    ShippedBase(
        "sd21-base",
        "stabilityai/stable-diffusion-2-1-base",
        "Stable Diffusion 2.1 base",
        865_910_724,
        "openrail++",
        _config("stabilityai/stable-diffusion-2-1-base", "unet"),
    ),
    ShippedBase(
        "sdxl",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "Stable Diffusion XL",
        2_567_463_684,
        "openrail++",
        _config("stabilityai/stable-diffusion-xl-base-1.0", "unet"),
    ),
    ShippedBase(
        "sd3-medium",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "Stable Diffusion 3 medium",
        2_028_328_000,
        "other",
        _CONVERT_SD3,
    ),
    ShippedBase(
        "sd35-medium",
        "stabilityai/stable-diffusion-3.5-medium",
        "Stable Diffusion 3.5 medium",
        2_243_171_520,
        "other",
        _CONVERT_SD3,
        "2.2B",
    ),
    ShippedBase(
        "sd35-large",
        "stabilityai/stable-diffusion-3.5-large",
        "Stable Diffusion 3.5 large",
        8_056_627_520,
        "other",
        _CONVERT_SD3,
        "8B",
    ),
    ShippedBase("flux-dev", "black-forest-labs/FLUX.1-dev", "FLUX.1 dev", 11_901_408_320, "other", _CONVERT_FLUX),
    ShippedBase(
        "flux-schnell",
        "black-forest-labs/FLUX.1-schnell",
        "FLUX.1 schnell",
        11_891_178_560,
        "apache-2.0",
        _CONVERT_FLUX,
    ),
    ShippedBase(
        "flux-krea-dev", "black-forest-labs/FLUX.1-Krea-dev", "FLUX.1 Krea dev", 11_901_408_320, "other", _CONVERT_FLUX
    ),
    ShippedBase(
        "flux-kontext-dev",
        "black-forest-labs/FLUX.1-Kontext-dev",
        "FLUX.1 Kontext dev",
        11_901_408_320,
        "other",
        _CONVERT_FLUX,
    ),
    ShippedBase(
        "flux-fill-dev", "black-forest-labs/FLUX.1-Fill-dev", "FLUX.1 Fill dev", 11_902_391_360, "other", _CONVERT_FLUX
    ),
    ShippedBase(
        "flux-canny-dev",
        "black-forest-labs/FLUX.1-Canny-dev",
        "FLUX.1 Canny dev",
        11_901_604_928,
        "other",
        _CONVERT_FLUX,
        "12B",
    ),
    ShippedBase(
        "flux-depth-dev",
        "black-forest-labs/FLUX.1-Depth-dev",
        "FLUX.1 Depth dev",
        11_901_604_928,
        "other",
        _CONVERT_FLUX,
        "12B",
    ),
    ShippedBase(
        "chroma",
        "lodestones/Chroma1-HD",
        "Chroma1-HD",
        8_899_983_424,
        "apache-2.0",
        _config("lodestones/Chroma1-HD"),
        "8.9B",
    ),
    ShippedBase("flux2-dev", "black-forest-labs/FLUX.2-dev", "FLUX.2 dev", 32_223_281_152, "other", _CONVERT_FLUX2),
    ShippedBase(
        "flux2-klein-4b",
        "black-forest-labs/FLUX.2-klein-4B",
        "FLUX.2 klein 4B",
        3_875_544_576,
        "apache-2.0",
        _CONVERT_FLUX2,
    ),
    ShippedBase(
        "flux2-klein-9b", "black-forest-labs/FLUX.2-klein-9B", "FLUX.2 klein 9B", 9_078_581_248, "other", _CONVERT_FLUX2
    ),
    ShippedBase(
        "qwen-image", "Qwen/Qwen-Image", "Qwen-Image", 20_430_401_088, "apache-2.0", _config("Qwen/Qwen-Image")
    ),
    ShippedBase(
        "qwen-image-edit",
        "Qwen/Qwen-Image-Edit",
        "Qwen-Image-Edit",
        20_430_401_088,
        "apache-2.0",
        _config("Qwen/Qwen-Image-Edit"),
    ),
    ShippedBase(
        "qwen-image-layered",
        "Qwen/Qwen-Image-Layered",
        "Qwen-Image-Layered",
        20_430_407_232,
        "apache-2.0",
        _DIFFSYNTH,
        "20B",
    ),
    ShippedBase(
        "z-image", "Tongyi-MAI/Z-Image", "Z-Image", 6_154_908_736, "apache-2.0", _config("Tongyi-MAI/Z-Image"), "6B"
    ),
    ShippedBase(
        "z-image-turbo",
        "Tongyi-MAI/Z-Image-Turbo",
        "Z-Image-Turbo",
        6_154_908_736,
        "apache-2.0",
        _config("Tongyi-MAI/Z-Image-Turbo"),
    ),
    ShippedBase(
        "krea2",
        "krea/Krea-2-Turbo",
        "Krea 2 Turbo",
        12_820_073_036,
        "other",
        f"{_DIFFUSERS}/src/diffusers/models/transformers/transformer_krea2.py",
    ),
    ShippedBase(
        "lumina2",
        "Alpha-VLLM/Lumina-Image-2.0",
        "Lumina Image 2.0",
        2_609_769_152,
        "apache-2.0",
        _config("Alpha-VLLM/Lumina-Image-2.0"),
    ),
    ShippedBase("hidream-i1", "HiDream-ai/HiDream-I1-Full", "HiDream-I1", 17_105_733_184, "mit", _COMFYUI),
    ShippedBase("auraflow", "fal/AuraFlow", "AuraFlow", 6_842_876_928, "apache-2.0", _config("fal/AuraFlow"), "6.8B"),
    ShippedBase(
        "cogview4",
        "zai-org/CogView4-6B",
        "CogView4",
        6_369_118_272,
        "apache-2.0",
        f"{_DIFFUSERS}/scripts/convert_cogview4_to_diffusers.py",
    ),
    ShippedBase(
        "sana-600m",
        "Efficient-Large-Model/Sana_600M_1024px_diffusers",
        "Sana 600M",
        591_747_872,
        "other",
        _CONVERT_SANA,
        "0.6B",
    ),
    ShippedBase(
        "sana-1600m",
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "Sana 1600M",
        1_604_462_752,
        "other",
        _CONVERT_SANA,
        "1.6B",
    ),
    ShippedBase(
        "sana-1.5-1600m",
        "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
        "Sana 1.5 1.6B",
        1_604_641_952,
        "other",
        _CONVERT_SANA,
        "1.6B",
    ),
    ShippedBase(
        "sana-1.5-4800m",
        "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
        "Sana 1.5 4.8B",
        4_721_825_952,
        "other",
        _CONVERT_SANA,
        "4.8B",
    ),
    ShippedBase(
        "sana-sprint-600m",
        "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",
        "Sana Sprint 0.6B",
        593_501_216,
        "other",
        _CONVERT_SANA,
        "0.6B",
    ),
    ShippedBase(
        "sana-sprint-1600m",
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        "Sana Sprint 1.6B",
        1_610_237_472,
        "other",
        _CONVERT_SANA,
        "1.6B",
    ),
    ShippedBase(
        "wan21-t2v-1.3b",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan 2.1 text to video 1.3B",
        1_418_996_800,
        "apache-2.0",
        _CONVERT_WAN,
    ),
    ShippedBase(
        "wan21-t2v-14b",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "Wan 2.1 text to video 14B",
        14_288_491_584,
        "apache-2.0",
        _CONVERT_WAN,
    ),
    ShippedBase(
        "wan21-i2v-14b-480p",
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "Wan 2.1 image to video 14B 480p",
        16_394_878_784,
        "apache-2.0",
        _CONVERT_WAN,
        "14B",
    ),
    ShippedBase(
        "wan21-i2v-14b-720p",
        "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        "Wan 2.1 image to video 14B 720p",
        16_394_878_784,
        "apache-2.0",
        _CONVERT_WAN,
        "14B",
    ),
    ShippedBase(
        "wan21-flf2v-14b",
        "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        "Wan 2.1 first and last frame to video 14B",
        16_395_536_704,
        "apache-2.0",
        _CONVERT_WAN,
        "14B",
    ),
    ShippedBase(
        "wan21-vace-1.3b",
        "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        "Wan 2.1 VACE 1.3B",
        2_153_972_032,
        "apache-2.0",
        _CONVERT_WAN,
        "1.3B",
    ),
    ShippedBase(
        "wan21-vace-14b",
        "Wan-AI/Wan2.1-VACE-14B-diffusers",
        "Wan 2.1 VACE 14B",
        17_337_592_896,
        "apache-2.0",
        _CONVERT_WAN,
        "14B",
    ),
    ShippedBase(
        "wan22-t2v-a14b",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "Wan 2.2 text to video A14B",
        14_288_491_584,
        "apache-2.0",
        _CONVERT_WAN,
    ),
    ShippedBase(
        "wan22-i2v-a14b",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "Wan 2.2 image to video A14B",
        14_288_901_184,
        "apache-2.0",
        _CONVERT_WAN,
    ),
    ShippedBase(
        "wan22-ti2v-5b",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "Wan 2.2 text and image to video 5B",
        4_999_787_712,
        "apache-2.0",
        _CONVERT_WAN,
    ),
    ShippedBase(
        "wan22-animate-14b",
        "Wan-AI/Wan2.2-Animate-14B-Diffusers",
        "Wan 2.2 Animate 14B",
        17_274_816_884,
        "apache-2.0",
        _CONVERT_WAN,
        "14B",
    ),
    ShippedBase(
        "skyreels-v2-df-1.3b",
        "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers",
        "SkyReels V2 diffusion forcing 1.3B",
        1_435_525_696,
        "other",
        _CONVERT_SKYREELS,
        "1.3B",
    ),
    ShippedBase(
        "skyreels-v2-t2v-14b",
        "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers",
        "SkyReels V2 text to video 14B",
        14_288_491_584,
        "other",
        _CONVERT_SKYREELS,
        "14B",
    ),
    ShippedBase(
        "skyreels-v2-i2v-14b",
        "Skywork/SkyReels-V2-I2V-14B-720P-Diffusers",
        "SkyReels V2 image to video 14B",
        16_394_878_784,
        "other",
        _CONVERT_SKYREELS,
        "14B",
    ),
    ShippedBase(
        "hunyuan-video",
        "hunyuanvideo-community/HunyuanVideo",
        "HunyuanVideo",
        12_821_012_544,
        "other",
        _CONVERT_HUNYUAN,
        "13B",
    ),
    ShippedBase(
        "hunyuan-video-i2v",
        "hunyuanvideo-community/HunyuanVideo-I2V",
        "HunyuanVideo image to video",
        12_821_012_544,
        "other",
        _CONVERT_HUNYUAN,
        "13B",
    ),
    ShippedBase("ltx-video", "Lightricks/LTX-Video", "LTX-Video 2B", 1_923_385_472, "other", _CONVERT_LTX),
    ShippedBase(
        "ltx-video-13b", "Lightricks/LTX-Video-0.9.7-dev", "LTX-Video 13B", 13_042_569_344, "other", _CONVERT_LTX
    ),
    ShippedBase("ltx2", "Lightricks/LTX-2", "LTX-2", 18_876_174_592, "other", _CONVERT_LTX2),
    ShippedBase("ltx2.3", "diffusers/LTX-2.3-Diffusers", "LTX-2.3", 18_988_838_144, "other", _CONVERT_LTX2, "22B"),
    ShippedBase(
        "cogvideox-2b", "zai-org/CogVideoX-2b", "CogVideoX 2B", 1_693_783_872, "apache-2.0", _CONVERT_COGVIDEOX, "2B"
    ),
    ShippedBase("cogvideox-5b", "zai-org/CogVideoX-5b", "CogVideoX 5B", 5_570_283_072, "other", _CONVERT_COGVIDEOX),
    ShippedBase(
        "cogvideox-5b-i2v",
        "zai-org/CogVideoX-5b-I2V",
        "CogVideoX 5B image to video",
        5_570_479_680,
        "other",
        _CONVERT_COGVIDEOX,
        "5B",
    ),
    ShippedBase(
        "cogvideox1.5-5b",
        "zai-org/CogVideoX1.5-5B",
        "CogVideoX 1.5 5B",
        5_570_676_352,
        "other",
        _CONVERT_COGVIDEOX,
        "5B",
    ),
    ShippedBase(
        "cogvideox1.5-5b-i2v",
        "zai-org/CogVideoX1.5-5B-I2V",
        "CogVideoX 1.5 5B image to video",
        5_571_594_880,
        "other",
        _CONVERT_COGVIDEOX,
        "5B",
    ),
    ShippedBase(
        "mochi-1",
        "genmo/mochi-1-preview",
        "Mochi 1",
        10_027_677_744,
        "apache-2.0",
        f"{_DIFFUSERS}/scripts/convert_mochi_to_diffusers.py",
        "10B",
    ),
    ShippedBase(
        "cosmos-predict2.5-2b",
        "nvidia/Cosmos-Predict2.5-2B",
        "Cosmos Predict 2.5 2B",
        2_059_174_912,
        "other",
        _CONVERT_COSMOS,
        "2B",
    ),
    ShippedBase(
        "cosmos-predict2.5-14b",
        "nvidia/Cosmos-Predict2.5-14B",
        "Cosmos Predict 2.5 14B",
        14_368_047_104,
        "other",
        _CONVERT_COSMOS,
        "14B",
    ),
)

_ALIASES = frozenset(base.alias for base in SHIPPED)


def shipped(alias: str) -> Path | None:
    """The pipeline folder, without weights, that comes with adapterline for this alias; None if there is none."""
    return _CONFIGS / alias if alias in _ALIASES else None
