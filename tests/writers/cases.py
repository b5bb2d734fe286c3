"""What each trainer writes, as cases: a trainer, a family, a type of adapter, and the file with its truth.

A cell of docs/compatibility.md is a case. Keys and prefixes are those of the trainers' savers, which each writer names.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from adapterline.families import family_named
from tests.writers import forms
from tests.writers.forms import Draw, Form
from tests.writers.names import (
    CONVOLUTIONS,
    DEPTHWISE,
    DIFFUSERS,
    ORIGINAL,
    ORIGINAL_CONVOLUTIONS,
    WAN_TWO,
    Layer,
    clip,
    t5,
)


@dataclass(frozen=True)
class Truth:
    """The change of a module of diffusers' model: weight [out, in, *kernel] in float64, what DoRA and biases add."""

    weight: torch.Tensor
    magnitude: torch.Tensor | None = None
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Written:
    """A file and what it does: truth by component and module."""

    tensors: dict[str, torch.Tensor]
    truth: dict[str, dict[str, Truth]]
    header: dict[str, str]


#: (component, name of the layer, suffix) -> the key
Spelling = Callable[[str, str, str], str]
#: Shape [out, in, *kernel] of a module of a component.
Shapes = Mapping[tuple[str, str], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Case:
    """One file of a trainer.

    `form` may differ between layers. `refused` is what a refusal says; None: the adapter is exported exactly.
    `rank_grows`: as LoRA it needs a higher rank than it was trained with, so that a large one is approximated, on
    request.
    """

    trainer: str
    kind: str
    family: str
    layers: tuple[Layer, ...]
    form: Form | Callable[[Layer], Form]
    spell: Spelling
    refused: str | None = None
    rank_grows: bool = False
    dtype: torch.dtype = torch.float32
    header: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.trainer} {self.kind} {self.family}".lower())

    def write(self, shapes: Shapes) -> Written:
        """The file for a model with these shapes: the same one each time."""
        draw = Draw(zlib.crc32(self.id.encode()), self.dtype)
        tensors: dict[str, torch.Tensor] = {}
        truth: dict[str, dict[str, Truth]] = {}
        for layer in self.layers:
            sizes = [shapes[layer.component, module] for module in layer.modules]
            shape = (sum(size[0] for size in sizes), *sizes[0][1:])
            form = self.form(layer) if getattr(self.form, "by_layer", False) else self.form
            change = form(draw, shape)  # type: ignore[arg-type, call-arg]
            for suffix, tensor in change.stored.items():
                tensors[self.spell(layer.component, layer.name, suffix)] = tensor.contiguous()
            truth.setdefault(layer.component, {}).update(_pieces(layer, change, [size[0] for size in sizes]))
        return Written(tensors, truth, dict(self.header))


def _pieces(layer: Layer, change: forms.Change, outs: list[int]) -> Iterator[tuple[str, Truth]]:
    parts = [change.weight, change.magnitude, change.bias]
    if layer.swapped:
        parts = [None if part is None else torch.cat(part.chunk(2)[::-1]) for part in parts]
    split = [[None] * len(outs) if part is None else list(part.split(outs)) for part in parts]
    for module, weight, magnitude, bias in zip(layer.modules, *split, strict=True):
        assert weight is not None
        yield module, Truth(weight, magnitude, bias)


def by_layer(choose: Callable[[Layer], Form]) -> Callable[[Layer], Form]:
    """A form for each layer."""
    choose.by_layer = True  # type: ignore[attr-defined]
    return choose


# --- spellings --------------------------------------------------------------------------------------------------------


def flat(**prefixes: str) -> Spelling:
    """`lora_unet_down_blocks_0_..._to_q.lora_down.weight`: sd-scripts and everyone after it."""
    return lambda component, name, suffix: f"{prefixes[component]}_{name.replace('.', '_')}.{suffix}"


_AB = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def dotted(renamed: Mapping[str, str] = _AB, **prefixes: str) -> Spelling:
    """`diffusion_model.blocks.0.attn.lora_A.weight`."""

    def spell(component: str, name: str, suffix: str) -> str:
        prefix = prefixes.get(component, component)
        return f"{prefix}.{name}.{renamed.get(suffix, suffix)}".removeprefix(".")

    return spell


SCRIPTS = {
    "sd15": flat(unet="lora_unet", text_encoder="lora_te"),  # networks/lora.py LORA_PREFIX_TEXT_ENCODER
    "sdxl": flat(unet="lora_unet", text_encoder="lora_te1", text_encoder_2="lora_te2"),
    "sd3": flat(transformer="lora_unet", text_encoder="lora_te1", text_encoder_2="lora_te2", text_encoder_3="lora_te3"),
    # networks/lora_flux.py LORA_PREFIX_TEXT_ENCODER_T5 is lora_te3, of diffusers' text_encoder_2
    "flux": flat(transformer="lora_unet", text_encoder="lora_te1", text_encoder_2="lora_te3"),
}
UNET = flat(transformer="lora_unet", unet="lora_unet")
LYCORIS = flat(transformer="lycoris", unet="lycoris")
ONETRAINER_KOHYA = {
    "sd15": SCRIPTS["sd15"],
    "sdxl": SCRIPTS["sdxl"],
    "flux": flat(transformer="lora_unet", text_encoder="lora_te1", text_encoder_2="lora_te2"),
}
#: LoRASaverMixin._save_comfy: alpha stays, suffixes become lora_A and lora_B.
ONETRAINER_COMFY = dotted(
    transformer="diffusion_model",
    unet="diffusion_model",
    text_encoder="text_encoders.clip_l.transformer",
    text_encoder_2="text_encoders.clip_g.transformer",
)
ONETRAINER_COMFY_FLUX = dotted(
    transformer="diffusion_model",
    text_encoder="text_encoders.clip_l.transformer",
    text_encoder_2="text_encoders.t5xxl.transformer",
)
ONETRAINER_LEGACY = flat(
    transformer="lora_transformer",
    unet="lora_unet",
    text_encoder="lora_te1",
    text_encoder_2="lora_te2",
    text_encoder_3="lora_te3",
)
#: _save_internal: what the wrapper's state_dict has, lora_down and lora_up.
ONETRAINER_INTERNAL = dotted({})
DIFFUSION_MODEL = dotted(transformer="diffusion_model", unet="diffusion_model")
#: LoRASaverMixin._save_original: no prefix at all.
BARE = dotted(transformer="", unet="")

# --- sd-scripts -------------------------------------------------------------------------------------------------------

_DEPENDS = "the change depends on the base weights"
_ON_INPUTS = "What it does depends on the base weights"


def _dropped(family: str) -> str:
    return f"load_lora_weights of {family_named(family).title} drops it without a word"


def _mixed(layer: Layer) -> Form:
    """Block dims and alphas: every layer has its own."""
    return forms.lora(rank=2 + len(layer.name) % 4, alpha=1.0 + len(layer.name) % 3)


def _denoiser(family: str) -> tuple[Layer, ...]:
    """sd-scripts' names: diffusers' for SD 1.5, the original's for everything since."""
    return ORIGINAL[family] if family in ORIGINAL else DIFFUSERS[family]


def _sd_scripts() -> Iterator[Case]:
    def case(kind: str, family: str, layers: tuple[Layer, ...], form: Any, **more: Any) -> Case:
        return Case("sd-scripts", kind, family, layers, form, SCRIPTS.get(family, UNET), **more)

    clips = {
        "sd15": clip("text_encoder"),
        "sdxl": clip("text_encoder") + clip("text_encoder_2"),
        "sd3": clip("text_encoder") + clip("text_encoder_2"),
        "flux": clip("text_encoder"),
        "lumina2": (),
        "anima": (),
    }
    for family, encoders in clips.items():
        yield case("LoRA", family, _denoiser(family), forms.lora())
        yield case("LoRA, fp16", family, _denoiser(family) + encoders, forms.lora(alpha=1.0), dtype=torch.float16)
        yield case("LoRA, bf16", family, _denoiser(family), forms.lora(rank=3, alpha=1.0), dtype=torch.bfloat16)
        yield case("LoRA, a rank and an alpha for each block", family, _denoiser(family) + encoders, by_layer(_mixed))
        if encoders:
            yield case("LoRA on text encoders alone", family, encoders, forms.lora())
    for family, encoder in {"sd3": "text_encoder_3", "flux": "text_encoder_2"}.items():
        layers = _denoiser(family) + t5(encoder)
        yield case("LoRA with T5", family, layers, forms.lora(), refused=_dropped(family))
    for family, names in (("sd15", CONVOLUTIONS), ("sdxl", ORIGINAL_CONVOLUTIONS)):
        layers = _denoiser(family) + names[family]
        yield case("LoCon", family, layers, forms.lora(rank=3))
        yield case("OFT", family, layers[:1], forms.OFT_KOHYA, refused=_DEPENDS)
    yield case("LoRA, q, k and v apart (split_qkv)", "flux", _split("flux"), by_layer(_split_form), header=_SPLIT)
    yield case("LoRA, q, k and v apart (split_qkv)", "sd3", _split("sd3"), by_layer(_split_form), header=_SPLIT)


_SPLIT = {"ss_network_args": '{"split_qkv": "True"}', "ss_network_module": "networks.lora_flux"}
#: Sizes of the tests' small models.
_SPLIT_SIZES = {"qkv": (32, 32, 32), "linear1": (32, 32, 32, 128)}


def _split(family: str) -> tuple[Layer, ...]:
    return tuple(layer for layer in ORIGINAL[family] if not layer.swapped)


def _split_form(layer: Layer) -> Form:
    sizes = _SPLIT_SIZES.get(layer.name.rpartition(".")[2])
    return forms.split_lora(sizes) if sizes else forms.lora(rank=2, alpha=3.0)


# --- LyCORIS ----------------------------------------------------------------------------------------------------------

#: kind -> form, and whether its rank grows.
_LYCORIS: dict[str, tuple[Form, bool]] = {
    "LoCon": (forms.lora(), False),
    "LoCon, Tucker": (forms.tucker_lora(), False),
    "LoCon, rsLoRA": (forms.rank_stabilized(), False),
    "LoHa": (forms.loha(), True),
    "LoHa, Tucker": (forms.loha(tucker=True), True),
    "LoKr": (forms.lokr(), True),
    "LoKr, both factors decomposed": (forms.lokr(first="decomposed"), True),
    "LoKr, both factors whole": (forms.lokr(second="whole"), True),
    "LoKr, first factor decomposed": (forms.lokr(first="decomposed", second="whole"), True),
    "LoKr, Tucker": (forms.lokr(second="tucker"), True),
    "full": (forms.full(bias=False), True),
    "full, with biases": (forms.full(), True),
    "DoRA (LoCon)": (forms.dora(forms.lora()), False),
    "DoRA (LoHa)": (forms.dora(forms.loha()), True),
    "DoRA (LoKr)": (forms.dora(forms.lokr()), True),
}
_LYCORIS_REFUSED: dict[str, tuple[Form, str]] = {
    "DoRA on inputs": (forms.dora_on_inputs(forms.lora()), _ON_INPUTS),
    "Diag-OFT": (forms.DIAG_OFT, _DEPENDS),
    "BOFT": (forms.BOFT, _DEPENDS),
    "(IA)³": (forms.IA3, _DEPENDS),
    "GLoRA": (forms.GLORA, _DEPENDS),
    "trained norms": (forms.NORM, "a LoRA file has no place for it"),
}


def _lycoris() -> Iterator[Case]:
    """lycoris/kohya.py: sd-scripts' prefixes and names, whatever the type."""
    plans = {
        "sd15": DIFFUSERS["sd15"] + CONVOLUTIONS["sd15"] + clip("text_encoder"),
        "sdxl": ORIGINAL["sdxl"] + ORIGINAL_CONVOLUTIONS["sdxl"] + clip("text_encoder_2"),
        "flux": ORIGINAL["flux"],
    }
    for family, layers in plans.items():
        spell = SCRIPTS[family]
        for kind, (form, grows) in _LYCORIS.items():
            if "Tucker" in kind and family == "flux":
                continue  # there are no kernels
            yield Case("LyCORIS", kind, family, layers, form, spell, rank_grows=grows)
        for kind, (form, why) in _LYCORIS_REFUSED.items():
            yield Case("LyCORIS", kind, family, layers[:1], form, spell, refused=why)
    rescaled = {"ss_network_args": '{"algo": "lokr", "rs_lora": "True"}'}
    yield Case(
        "LyCORIS", "LoKr, both factors whole, rsLoRA", "sd15", plans["sd15"], forms.lokr(second="whole"),
        SCRIPTS["sd15"], refused="nothing tells its scale", header=rescaled,
    )  # fmt: skip


# --- SimpleTuner ------------------------------------------------------------------------------------------------------

_SIMPLE_TUNER = (
    *("sd15", "sdxl", "sd3", "flux", "flux2", "qwenimage", "z_image", "lumina2", "wan", "hunyuan_video", "sana"),
    *("kandinsky5", "krea2", "cogvideox", "ltx_video", "hidream", "auraflow", "ernie_image"),
)


def _simple_tuner() -> Iterator[Case]:
    """simpletuner/helpers/training/lycoris.py: the LyCORIS wrapper around diffusers' models."""
    for family in _SIMPLE_TUNER:
        # Both of Wan's models have all these layers.
        options = {"components": ("transformer",)} if family == "wan" else {}
        for kind in ("LoCon", "LoKr"):
            form, grows = _LYCORIS[kind]
            kind = "LoRA" if kind == "LoCon" else kind
            layers = DIFFUSERS[family]
            yield Case("SimpleTuner", kind, family, layers, form, LYCORIS, rank_grows=grows, options=options)


# --- ai-toolkit -------------------------------------------------------------------------------------------------------


def _ai_toolkit() -> Iterator[Case]:
    """toolkit/network_mixins.py get_state_dict in peft_format: alpha is the rank and is left out, but for LoKr."""
    plain = forms.lora(alpha=None)
    dora = forms.dora(plain, "magnitude", flat=True)
    #: LoKr's default is a "rank" of 9999999999 with that alpha: both factors are whole, and float16 holds it as inf.
    whole = forms.lokr(second="whole", stored_alpha=9999999999.0)
    half = {"dtype": torch.float16}
    for family in ("flux", "sd3", "lumina2"):
        layers = DIFFUSERS[family]
        spell = dotted()
        yield Case("ai-toolkit", "LoRA", family, layers, plain, spell, **half)
        yield Case("ai-toolkit", "DoRA", family, layers, dora, spell, **half)
        yield Case("ai-toolkit", "LoKr", family, layers, whole, spell, rank_grows=True, **half)
        small = forms.lokr()
        yield Case("ai-toolkit", "LoKr with a rank", family, layers, small, spell, rank_grows=True, **half)
    # convert_lora_weights_before_save: "diffusion_model." for ComfyUI
    for family in ("flux2", "qwenimage", "z_image", "hidream", "krea2", "ernie_image", "wan"):
        layers = ORIGINAL[family] if family in ("wan", "flux2", "krea2") else DIFFUSERS[family]
        options = {"components": ("transformer",)} if family == "wan" else {}
        yield Case("ai-toolkit", "LoRA", family, layers, plain, DIFFUSION_MODEL, options=options, **half)
        yield Case(
            "ai-toolkit", "LoKr", family, layers, whole, DIFFUSION_MODEL, rank_grows=True, options=options, **half
        )
    # Stable Diffusion: sd-scripts' keys, with the original's names for SDXL (keymaps/stable_diffusion_locon_sdxl.json)
    both = dotted(transformer="diffusion_model", transformer_2="diffusion_model")
    yield Case("ai-toolkit", "LoRA of both models in one file", "wan", WAN_TWO, plain, both, **half)
    for family, layers in (("sd15", DIFFUSERS["sd15"]), ("sdxl", DIFFUSERS["sdxl"])):
        convolutions = CONVOLUTIONS[family]
        yield Case("ai-toolkit", "LoRA", family, layers, forms.lora(), SCRIPTS[family], **half)
        yield Case("ai-toolkit", "LoRA on convolutions", family, layers + convolutions, forms.lora(), SCRIPTS[family])
    yield Case("ai-toolkit", "LoKr, old keys", "flux", DIFFUSERS["flux"], whole, LYCORIS, rank_grows=True, **half)


# --- OneTrainer -------------------------------------------------------------------------------------------------------


def _onetrainer() -> Iterator[Case]:
    """modules/util/convert_lora_util.py and the model savers: one in-memory state dict, five formats."""
    encoders = {
        "sd15": clip("text_encoder"),
        "sdxl": clip("text_encoder") + clip("text_encoder_2"),
        "flux": clip("text_encoder"),
        "sd3": clip("text_encoder") + clip("text_encoder_2"),
    }
    folded = forms.lora(alpha=None)
    for family in (
        *("sd15", "sdxl", "sd3", "flux", "flux2", "qwenimage", "z_image", "hunyuan_video", "sana", "krea2"),
        *("hidream", "ernie_image"),
    ):
        layers = DIFFUSERS[family]
        more = encoders.get(family, ())
        native = ORIGINAL.get(family, layers)
        yield Case("OneTrainer", "LoRA, diffusers", family, layers + more, folded, dotted())
        yield Case("OneTrainer", "LoRA, backup", family, layers + more, forms.lora(), ONETRAINER_INTERNAL)
        yield Case("OneTrainer", "LoHa, diffusers", family, layers, forms.loha(), dotted(), rank_grows=True)
        yield Case("OneTrainer", "LoKr, diffusers", family, layers, forms.lokr(), dotted(), rank_grows=True)
        yield Case(
            "OneTrainer", "DoRA on outputs, diffusers", family, layers,
            forms.dora(folded, "lora_magnitude_vector.weight", flat=True), dotted(),
        )  # fmt: skip
        yield Case(
            "OneTrainer", "DoRA on inputs, diffusers", family, layers, forms.dora_on_inputs(folded), dotted(),
            refused=_ON_INPUTS,
        )  # fmt: skip
        yield Case("OneTrainer", "OFT, diffusers", family, layers[:1], forms.OFT_ONETRAINER, dotted(), refused=_DEPENDS)
        if family == "sana":
            continue  # "ComfyUI cannot load Sana"
        kohya_layers = layers if family == "sd15" else native
        kohya = ONETRAINER_KOHYA.get(family, ONETRAINER_LEGACY if family == "sd3" else UNET)
        if family != "sd3":
            yield Case("OneTrainer", "LoRA, kohya", family, kohya_layers + more, forms.lora(), kohya)
        comfy = ONETRAINER_COMFY_FLUX if family == "flux" else ONETRAINER_COMFY
        if family != "sd15":
            yield Case("OneTrainer", "LoRA, comfy", family, native + more, forms.lora(), comfy)
            yield Case("OneTrainer", "DoRA on outputs, comfy", family, native, forms.dora(forms.lora()), comfy)
            yield Case("OneTrainer", "LoRA, original", family, native, forms.lora(), BARE)
    for family in ("sdxl", "sd3", "flux", "qwenimage", "hunyuan_video"):
        layers = DIFFUSERS[family] + encoders.get(family, ())
        yield Case("OneTrainer", "LoRA, legacy", family, layers, forms.lora(), ONETRAINER_LEGACY)
    for spell, kind in ((dotted(), "diffusers"), (ONETRAINER_COMFY_FLUX, "comfy"), (ONETRAINER_LEGACY, "legacy")):
        native = ORIGINAL["flux"] if kind == "comfy" else DIFFUSERS["flux"]
        form = folded if kind == "diffusers" else forms.lora()
        layers = native + t5("text_encoder_2")
        yield Case("OneTrainer", f"LoRA with T5, {kind}", "flux", layers, form, spell, refused=_dropped("flux"))
    for family in ("sd15", "sdxl"):
        layers = DIFFUSERS[family] + CONVOLUTIONS[family]
        kernels = forms.loha(whole_kernels=True)
        yield Case("OneTrainer", "LoRA on convolutions, backup", family, layers, forms.lora(), ONETRAINER_INTERNAL)
        yield Case("OneTrainer", "LoHa on convolutions, diffusers", family, layers, kernels, dotted(), rank_grows=True)
    yield Case("OneTrainer", "LoRA on depthwise convolutions, backup", "sana", DEPTHWISE, forms.depthwise(),
               ONETRAINER_INTERNAL, rank_grows=True)  # fmt: skip


# --- musubi-tuner -----------------------------------------------------------------------------------------------------


def _musubi() -> Iterator[Case]:
    """src/musubi_tuner/networks: `lora_unet_` and its models' names; convert_lora.py --target other."""
    for family in ("hunyuan_video", "wan", "flux", "flux2", "qwenimage", "z_image", "kandinsky5", "krea2", "ideogram4"):
        layers = _denoiser(family)
        options = {"components": ("transformer",)} if family == "wan" else {}
        for kind, form, grows in (
            ("LoRA", forms.lora(), False),
            ("LoHa", forms.loha(), True),
            ("LoKr", forms.lokr(), True),
        ):
            yield Case("musubi-tuner", kind, family, layers, form, UNET, rank_grows=grows, options=options)
        converted = forms.lora(alpha=None)  # sqrt(alpha / dim) went into either factor
        yield Case("musubi-tuner", "LoRA, converted", family, layers, converted, DIFFUSION_MODEL, options=options)
        yield Case(
            "musubi-tuner", "LoHa, converted", family, layers, forms.loha(), DIFFUSION_MODEL, rank_grows=True,
            options=options,
        )  # fmt: skip
    layers = DIFFUSERS["hunyuan_video"]
    yield Case("musubi-tuner", "LoRA, FramePack's names", "hunyuan_video", layers, forms.lora(), UNET)
    yield Case(
        "musubi-tuner", "LoRA of one of two models", "wan", ORIGINAL["wan"], forms.lora(), UNET,
        refused="do not say whether transformer or transformer_2",
    )  # fmt: skip


# --- diffusers --------------------------------------------------------------------------------------------------------

_OLD = {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}
_PEFT_DORA = forms.dora(forms.lora(alpha=None), "lora_magnitude_vector", flat=True)


def _diffusers() -> Iterator[Case]:
    """`save_lora_weights` of each family's pipeline, as the training scripts call it."""
    for family, layers in DIFFUSERS.items():
        yield Case("diffusers", "LoRA", family, layers, forms.lora(alpha=None), dotted())
        linear = tuple(layer for layer in layers if not re.search(r"conv_|proj_in$|proj_out$", layer.name))
        yield Case("diffusers", "DoRA", family, linear, _PEFT_DORA, dotted())
    for family in ("sd15", "sdxl"):
        yield Case(
            "diffusers", "LoRA, keys before 0.27", family, DIFFUSERS[family], forms.lora(alpha=None), dotted(_OLD)
        )


CASES: tuple[Case, ...] = (
    *_diffusers(), *_sd_scripts(), *_lycoris(), *_onetrainer(), *_musubi(), *_ai_toolkit(), *_simple_tuner(),
)  # fmt: skip
