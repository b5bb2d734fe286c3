"""What trainers call the architecture of a base in what they write, and which families and shipped bases they mean.

Sources: sd-scripts library/sai_model_spec.py, library/train_util.py and *_train_network.py; musubi-tuner
utils/sai_model_spec.py and dataset/architectures.py; OneTrainer resources/sd_model_spec/*.json; ai-toolkit
get_base_model_version and ModelArch; SimpleTuner's model_family. Their words do not collide, so there is one table.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Stands for a base of a known family whose configuration does not come with adapterline.
ANOTHER = "another"


@dataclass(frozen=True)
class Architecture:
    """What a word means.

    The first of `families` is the one that is meant, the others have the same layers, so that an adapter may be for
    them all the same. `base` is the alias of the shipped configuration that has every layer that can be meant, ANOTHER
    if none of the shipped ones has, None if the word does not say it.
    """

    families: tuple[str, ...]
    base: str | None = None


def architecture_of(word: str) -> Architecture | None:
    """What a trainer means by it: `stable-diffusion-v1`, `sdxl_base_v1-0`, `flux.1`. None: it is not known."""
    return _WORDS.get(word.lower())


_SD, _SDXL, _SD3, _FLUX = ("sd15",), ("sdxl",), ("sd3",), ("flux",)
_FLUX2, _QWEN, _Z, _HUNYUAN = ("flux2",), ("qwenimage",), ("z_image",), ("hunyuan_video",)
#: SkyReels V2 and Helios were made of Wan 2.1, and are trained with its scripts.
OF_WAN = ("wan", "skyreels_v2", "helios")
#: FLUX.1 schnell is dev without one of its embedders, so dev has every layer that either has.
_WORDS: dict[str, Architecture] = {
    word: Architecture(families, base)
    for families, base, words in (
        (_SD, "sd15", "stable-diffusion-v1 sd_v1 sd_1.5 sd1"),
        (_SD, "sd21-base", "stable-diffusion-v2-512 sd_v2"),
        (_SD, "sd21", "stable-diffusion-v2-768-v stable-diffusion-v2 sd_v2_v sd_2.1 sd2"),
        (_SD, None, "sd1x sd2x"),
        (
            _SD,
            ANOTHER,
            "stable-diffusion-v1-inpainting stable-diffusion-v2-inpainting stable-diffusion-v2-depth",
        ),
        (_SDXL, "sdxl", "stable-diffusion-xl-v1-base sdxl_base_v1-0 sdxl_1.0 sdxl_ sdxl"),
        (_SDXL, ANOTHER, "stable-diffusion-xl-v1-base-inpainting ssd vega"),
        (_SD3, "sd3-medium", "stable-diffusion-3-medium stable-diffusion-v3-medium"),
        (_SD3, "sd35-medium", "stable-diffusion-3-5-medium"),
        (_SD3, "sd35-large", "stable-diffusion-3-5-large"),
        (_SD3, None, "stable-diffusion-v3.5 sd_3 sd3"),
        (_FLUX, "flux-dev", "flux-1-dev flux.1-dev flux1 flux.1 flux"),
        (_FLUX, "flux-schnell", "flux-1-schnell"),
        (_FLUX, "flux-kontext-dev", "flux_kontext flux.1_kontext"),
        (_FLUX, "flux-fill-dev", "flux.1-fill-dev"),
        (_FLUX, "chroma", "chroma chroma1"),
        (_FLUX, ANOTHER, "flex1 flex2 chroma_radiance zeta_chroma"),
        (_FLUX2, "flux2-dev", "flux.2-dev flux_2_dev"),
        (_FLUX2, "flux2-klein-4b", "flux.2-klein-4b flux_2_klein_4b flux2_klein_4b"),
        (_FLUX2, "flux2-klein-9b", "flux.2-klein-9b flux_2_klein_9b flux2_klein_9b"),
        (_FLUX2, None, "flux.2 flux2"),
        (_QWEN, "qwen-image", "qwen-image"),
        (_QWEN, "qwen-image-edit", "qwen-image-edit qwen_image_edit"),
        (_QWEN, "qwen-image-layered", "qwen-image-layered qwen_image_layered"),
        (_QWEN, "qwen-image", "qwen_image"),
        (_QWEN, ANOTHER, "qwen-image-edit-plus qwen-image-edit-2511 qwen_image_edit_plus"),
        (_Z, "z-image", "z-image z_image zimage"),
        (_Z, ANOTHER, "zimage_l2p z_image_omni"),
        (("lumina2",), "lumina2", "lumina-2 lumina2"),
        (("sana",), None, "sana"),
        (("auraflow",), "auraflow", "auraflow"),
        (("hidream",), "hidream-i1", "hidream-i1 hidream_i1 hidream"),
        (("krea2",), "krea2", "krea-2 krea2"),
        (("ideogram4",), ANOTHER, "ideogram-4 ideogram4 ideogram"),
        (("ernie_image",), ANOTHER, "ernie ernie_image"),
        (("anima",), ANOTHER, "anima-preview anima-unknown anima"),
        (OF_WAN, "wan22-ti2v-5b", "wan_2.2_5b wan22_5b"),
        (OF_WAN, None, "wan2.1 wan wan_2.1 wan_2.2_14b wan21 wan22_14b wan22_14b_i2v"),
        (_HUNYUAN, "hunyuan-video", "hunyuan-video hunyuan_video hunyuanvideo"),
        (_HUNYUAN, ANOTHER, "framepack hunyuan-video-1.5 hunyuan_video_1_5"),
        (("ltx_video",), None, "ltxvideo"),
        (("ltx2",), None, "ltx2 ltx2.3 ltxvideo2"),
        (("ltx2",), ANOTHER, "ltx2.5"),
        (("kandinsky5",), ANOTHER, "kandinsky-5 kandinsky5"),
        (("minimax_h3",), ANOTHER, "minimax_h3 minimax_h3_ref2va"),
        (("ace_step",), ANOTHER, "ace_step_15"),
    )
    for word in words.split()
}
#: Network modules of sd-scripts and musubi-tuner that are made for one architecture.
NETWORK_MODULES: dict[str, tuple[str, ...]] = {
    "lora_flux": _FLUX, "oft_flux": _FLUX, "lora_sd3": _SD3, "lora_lumina": ("lumina2",), "lora_anima": ("anima",),
    "lora_flux_2": _FLUX2, "lora_framepack": _HUNYUAN, "lora_hv_1_5": _HUNYUAN, "lora_ideogram4": ("ideogram4",),
    "lora_kandinsky": ("kandinsky5",), "lora_krea2": ("krea2",), "lora_qwen_image": _QWEN, "lora_wan": OF_WAN,
    "lora_zimage": _Z,
}  # fmt: skip
