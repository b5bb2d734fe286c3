"""The file with sd-scripts' keys: what is in it, what its header says, and what each program computes from it."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.deltas import Kronecker, LowRank, exact_error
from adapterline.errors import ConversionError
from adapterline.families.base import Base, open_base, read_base
from adapterline.families.kohya import beyond, kohya_of, stems
from adapterline.families.skeleton import targets
from adapterline.layouts import convert
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.validation.consumers import CONSUMERS, Loaded
from adapterline.values import Adapter, Bundle, ExportOptions, FilePlan, LoadCall, Plan
from tests.bases import PeftAdapter, forward, peft_adapter
from tests.families.tiny import CASES, Case, Tiny

BaseOf = Callable[[str], Path]
Deltas = dict[str, LowRank]
Components = dict[str, Deltas]

KOHYA = ExportOptions(layouts=("kohya",))
# Chroma's own module imports it from where it was.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers")

RULES = ("comfyui-rules", "sd-scripts-rules", "musubi-tuner-rules")
#: FLUX.1 and Chroma at FLUX's width, with one block of each kind: diffusers splits their fused layers at fixed sizes.
_WIDE = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 64, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
WIDE = {
    "flux-wide": Case(
        "FluxPipeline",
        {"transformer": Tiny("FluxTransformer2DModel", _WIDE | {"pooled_projection_dim": 32, "guidance_embeds": True})},
    ),
    "chroma-wide": Case("ChromaPipeline", {"transformer": Tiny("ChromaTransformer2DModel", _WIDE)}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """The base of a family, without weights."""
    made: dict[str, Base] = {}

    def open_tiny(name: str) -> Base:
        if name not in made:
            case = WIDE.get(name) or CASES[name]
            made[name] = read_base(case.write(tmp_path_factory.mktemp(name) / "base"))
        return made[name]

    return open_tiny


def deltas_for(
    base: Base, component: str, pattern: str, setting: Callable[[int], tuple[int, float]], dtype: torch.dtype
) -> Deltas:
    """A LoRA for each layer that matches; `setting` gives rank and scale of the n-th."""
    found: Deltas = {}
    for module, target in targets(base, component).items():
        if re.search(pattern, f"{component}.{module}"):
            rank, scale = setting(len(found))
            generator = torch.Generator().manual_seed(len(found))
            a = torch.randn(rank, *target.shape[1:], generator=generator)
            b = torch.randn(target.shape[0], rank, *[1] * (len(target.shape) - 2), generator=generator)
            found[module] = LowRank(a.to(dtype), b.to(dtype), scale)
    return found


def uniform(number: int) -> tuple[int, float]:
    return 4, 1.5  # alpha 6


def quarter(number: int) -> tuple[int, float]:
    return 4, 0.25  # alpha 1


def mixed(number: int) -> tuple[int, float]:
    return 2 + number % 3, (1.5, 0.25, 1 / 3, 5.656854249492381)[number % 4]


def components_for(
    base: Base,
    pattern: str,
    setting: Callable[[int], tuple[int, float]] = uniform,
    dtype: torch.dtype = torch.float32,
) -> Components:
    known = kohya_of(base)
    assert known is not None
    named = {name: deltas_for(base, name, pattern, setting, dtype) for name in base.models if name in known.prefixes}
    return {name: deltas for name, deltas in named.items() if deltas}


def plan_of(base: Base, components: Any, **options: Any) -> Plan:
    return convert(Adapter(base.family.name, components), base, ExportOptions(layouts=("kohya",), **options), "mine")


def file_of(plan: Plan) -> FilePlan:
    (file,) = plan.files
    return file


def made(file: FilePlan) -> dict[str, torch.Tensor]:
    return {key: tensor.make() for key, tensor in file.tensors.items()}


@dataclass(frozen=True)
class Written:
    """An export on the disk."""

    plan: Plan
    bundle: Bundle
    folder: Path
    base: Base

    def loaded(self) -> dict[str, Loaded]:
        """What each program makes of it, by name, as far as it is for that program."""
        paths, found = tuple(file.path for file in self.bundle.files), {}
        for consumer in CONSUMERS["kohya"]:
            loaded = consumer.load(self.folder, paths, self.plan.loads, self.base, set(self.base.models))
            if loaded is not None:
                assert not loaded.error, f"{consumer.name}: {loaded.error}"
                found[consumer.name] = loaded
        return found


def written(base: Base, components: Components, work: Path, **options: Any) -> Written:
    plan = plan_of(base, components, **options)
    scratch = Scratch(work / "scratch", 10**9, 1e6)
    bundle = serialize(plan, scratch)
    return Written(plan, bundle, scratch.folder(bundle.digest), base)


def assert_effect(loaded: Loaded, components: Components, limit: float = 1e-6) -> None:
    """Every adapted layer changes by what was trained, and no other does."""
    real = {
        name: {module: layer for module, layer in layers.items() if not layer.is_filler}
        for name, layers in loaded.components.items()
    }
    found = {name: layers for name, layers in real.items() if layers}
    assert {name: set(layers) for name, layers in found.items()} == {n: set(deltas) for n, deltas in components.items()}
    for name, deltas in components.items():
        for module, delta in deltas.items():
            layer = found[name][module].delta
            assert isinstance(layer, LowRank)
            assert exact_error(layer, delta) <= limit, f"{name}.{module}"


# --- the effect -------------------------------------------------------------------------------------------------------

EVERYONE = ("diffusers", *RULES[:2])
#: (family, layers, the programs that the file is for)
EFFECTS: list[tuple[str, str, tuple[str, ...]]] = [
    ("sd15", r"_block|encoder\.", EVERYONE),
    ("sd15", r".", ("diffusers", "comfyui-rules")),
    ("sd15", r"conv|attn1\.to_k", ("diffusers", "comfyui-rules")),
    ("sdxl", r"_block|encoder\.layers", EVERYONE),
    ("sdxl", r"to_q|q_proj", EVERYONE),
    ("sdxl", r".", ("comfyui-rules",)),
    ("flux", r"\.transformer_blocks|encoder\.", EVERYONE),
    ("flux", r"blocks|encoder\.", ("comfyui-rules", "sd-scripts-rules")),
    ("flux", r".", ("comfyui-rules",)),
    ("flux-wide", r"blocks", EVERYONE),
    ("flux-wide", r"attn\.to_q|proj_mlp", EVERYONE),
    ("chroma-wide", r"blocks", EVERYONE),
    ("chroma-wide", r".", ("comfyui-rules",)),
    ("flux2", r"blocks", ("diffusers", "comfyui-rules", "musubi-tuner-rules")),
    ("flux2", r"blocks|embedder$", ("diffusers", "comfyui-rules")),
    ("flux2", r".", ("comfyui-rules",)),
    ("sd3", r"transformer_blocks|encoder\.layers", ("comfyui-rules", "sd-scripts-rules")),
    ("sd3", r".", ("comfyui-rules",)),
    ("qwenimage", r"blocks", ("diffusers", "comfyui-rules", "musubi-tuner-rules")),
    ("qwenimage", r".", ("diffusers", "comfyui-rules")),
    ("z_image", r"layers|refiner|cap_embedder|t_embedder", ("diffusers", "comfyui-rules")),
    ("z_image", r"to_[qv]", ("diffusers", "comfyui-rules")),
    ("z_image", r".", ("comfyui-rules",)),
    ("wan", r"blocks", ("diffusers", "comfyui-rules", "musubi-tuner-rules")),
    ("wan", r"attn1\.to_q", ("diffusers", "comfyui-rules", "musubi-tuner-rules")),
    ("wan", r".", ("comfyui-rules",)),
    ("lumina2", r"layers|refiner", ("comfyui-rules", "sd-scripts-rules")),
    ("lumina2", r".", ("comfyui-rules",)),
    ("hunyuan_video", r".", ("comfyui-rules",)),
    ("krea2", r"blocks", ("comfyui-rules", "musubi-tuner-rules")),
    ("ideogram4", r"layers\.\d", ("comfyui-rules", "musubi-tuner-rules")),
    ("ideogram4", r".", ("comfyui-rules",)),
    ("anima", r".", ("comfyui-rules", "sd-scripts-rules")),
]


@pytest.mark.parametrize("setting", [uniform, mixed], ids=["uniform", "mixed"])
@pytest.mark.parametrize(("family", "pattern", "programs"), EFFECTS, ids=[f"{f}-{p}" for f, p, _ in EFFECTS])
def test_each_program_that_the_file_is_for_computes_what_was_trained(
    tiny: Callable[[str], Base],
    tmp_path: Path,
    family: str,
    pattern: str,
    programs: tuple[str, ...],
    setting: Callable[[int], tuple[int, float]],
) -> None:
    base = tiny(family)
    components = components_for(base, pattern, setting)
    loaded = written(base, components, tmp_path).loaded()
    assert tuple(loaded) == programs
    for each in loaded.values():
        assert_effect(each, components)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "pattern"), [("sd15", r"_block|encoder\."), ("flux", r"\.transformer_blocks"), ("z_image", r"layers")]
)
def test_half_precision_keeps_its_effect(
    tiny: Callable[[str], Base], tmp_path: Path, family: str, pattern: str, dtype: torch.dtype
) -> None:
    components = components_for(tiny(family), pattern, mixed, dtype)
    for loaded in written(tiny(family), components, tmp_path).loaded().values():
        assert_effect(loaded, components, 5e-4)


UNET = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "k_proj", "v_proj", "fc1"]
PATTERNS = {
    "rank_pattern": {"(to_k|k_proj)": 2, r".*\.0\..*(to_v|v_proj)": 3},
    "alpha_pattern": {"(to_v|v_proj)": 1.5, r".*\.0\..*(to_q|q_proj)": 7},
}
TRAINED: dict[tuple[str, str], list[str] | str] = {
    ("sd15", "unet"): [*UNET, "conv1", "conv2", "conv_shortcut", "proj_in", "time_emb_proj"],
    ("sd15", "text_encoder"): CLIP,
    ("sdxl", "unet"): UNET,
    ("sdxl", "text_encoder"): CLIP,
    ("sdxl", "text_encoder_2"): CLIP,
    (
        "flux",
        "transformer",
    ): r"(?!single_).*blocks\.\d\.(attn\.(to_[qkv]|to_out\.0|add_[qv]_proj)|ff\.net\.2|norm1\.linear)",
    ("flux", "text_encoder"): CLIP,
}


@contextmanager
def loaded_into(pipeline: Any, exported: Written) -> Iterator[None]:
    (call,) = exported.plan.loads
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
        pipeline.load_lora_weights(str(exported.folder), weight_name=call.weight_name)
    try:
        yield
    finally:
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, PATTERNS], ids=["alpha", "rslora", "patterns"])
@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow), "flux"])
def test_pipeline_computes_what_peft_computes(
    base: BaseOf, tmp_path: Path, family: str, variant: dict[str, Any]
) -> None:
    adapters: dict[str, PeftAdapter] = {}
    for seed, (place, layers) in enumerate(TRAINED.items()):
        if place[0] == family:
            peft = tmp_path / "peft" / place[1]
            adapters[place[1]] = peft_adapter(base(family), place[1], peft, 4, 6 + seed, layers, seed=seed, **variant)
    model = read_base(base(family))
    adapter = extract(load_checkpoint(str(tmp_path / "peft"), KOHYA, tmp_path), model, KOHYA)
    assert set(adapter.components) == set(adapters)
    exported = written(model, adapter.components, tmp_path)  # type: ignore[arg-type]
    pipeline = DiffusionPipeline.from_pretrained(base(family))
    with loaded_into(pipeline, exported):
        for name, trained in adapters.items():
            effect = (trained.adapted_output - trained.base_output).norm()
            assert effect > 1e-3 * trained.base_output.norm(), "an adapter without effect would prove nothing"
            assert (forward(getattr(pipeline, name)) - trained.adapted_output).norm() <= 1e-4 * effect


# --- what is in the file ----------------------------------------------------------------------------------------------


def test_keys_are_sd_scripts(tiny: Callable[[str], Base]) -> None:
    for family, pattern, expected in (
        ("sd15", r"down_blocks\.0\.att.*attn1\.to_q", "lora_unet_down_blocks_0_attentions_0_{}_0_attn1_to_q"),
        ("sd15", r"layers\.0\.mlp\.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("sdxl", r"down_blocks\.1\.attentions\.0\.proj_in", "lora_unet_input_blocks_4_1_proj_in"),
        ("sdxl", r"encoder\.enc.*0\.mlp\.fc2", "lora_te1_text_model_encoder_layers_0_mlp_fc2"),
        ("sdxl", r"encoder_2\.enc.*0\.mlp\.fc2", "lora_te2_text_model_encoder_layers_0_mlp_fc2"),
        ("sdxl", r"text_projection", "lora_te2_text_projection"),
        ("flux", r"\.transformer_blocks\.0\.ff\.net\.2", "lora_unet_double_blocks_0_img_mlp_2"),
        ("flux", r"encoder\.layers\.0\.mlp\.fc2", "lora_te1_text_model_encoder_layers_0_mlp_fc2"),
        ("sd3", r"blocks\.0\.norm1\.linear", "lora_unet_joint_blocks_0_x_block_adaLN_modulation_1"),
        ("qwenimage", r"blocks\.0\.attn\.to_out", "lora_unet_transformer_blocks_0_attn_to_out_0"),
        ("lumina2", r"noise_refiner\.0\.attn\.to_out", "lora_unet_noise_refiner_0_attention_out"),
        ("hunyuan_video", r"\.transformer_blocks\.0\.ff\.net\.0", "lora_unet_double_blocks_0_img_mlp_0"),
    ):
        stem = expected.format("transformer_blocks")
        file = file_of(plan_of(tiny(family), components_for(tiny(family), pattern)))
        found = {key.partition(".")[0] for key in file.tensors}
        assert stem in found
        assert {f"{stem}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")} <= set(file.tensors)
        assert (file.path, file.role, file.layout) == ("kohya/mine.safetensors", "weights", "kohya")


def test_one_rank_and_one_alpha_are_left_as_they_were_trained(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("sd15"), r"attn1\.to_|conv1|k_proj|_proj|fc")
    tensors = made(file_of(plan_of(tiny("sd15"), components)))
    assert {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")} == {6.0}
    for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for module, delta in components[component].items():
            stem = prefix + module.replace(".", "_")
            assert torch.equal(tensors[f"{stem}.lora_down.weight"], delta.a)
            assert torch.equal(tensors[f"{stem}.lora_up.weight"], delta.b)
    assert plan_of(tiny("sd15"), components).transforms == ()


def test_alpha_is_a_number_in_float32(tiny: Callable[[str], Base]) -> None:
    for dtype in (torch.float16, torch.float32):
        components = components_for(tiny("sd15"), "to_q", uniform, dtype)
        for key, tensor in file_of(plan_of(tiny("sd15"), components)).tensors.items():
            assert (tensor.dtype, tensor.shape) == ("F32", ()) or not key.endswith(".alpha")
            assert tensor.make().dtype == (torch.float32 if key.endswith(".alpha") else dtype)


@pytest.mark.parametrize("setting", [mixed, lambda number: (4, 1 + number % 2), lambda number: (4, 1.5001)])
def test_several_ranks_or_alphas_of_a_unet_become_one(
    tiny: Callable[[str], Base], setting: Callable[[int], tuple[int, float]]
) -> None:
    """diffusers knows one of each for a whole component; a scale that alpha does not give exactly is no alpha."""
    components = components_for(tiny("sd15"), "attn1.to_", setting)
    tensors = made(file_of(plan_of(tiny("sd15"), components)))
    largest = max(delta.rank for delta in components["unet"].values())
    for key, tensor in tensors.items():
        if key.endswith("lora_down.weight"):
            assert tensor.shape[0] == largest
        elif key.endswith("lora_up.weight"):
            assert tensor.shape[1] == largest
        else:
            assert float(tensor) == largest


def test_each_component_has_a_rank_of_its_own(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("sd15"), "to_q|_proj$")
    components["text_encoder"] = deltas_for(tiny("sd15"), "text_encoder", "_proj$", lambda n: (2, 2.0), torch.float32)
    file = file_of(plan_of(tiny("sd15"), components))
    alphas = {key.split("_")[1]: float(tensor) for key, tensor in made(file).items() if key.endswith(".alpha")}
    assert alphas == {"unet": 6.0, "te": 4.0}


def test_convolution_has_its_kernel_below_and_none_above(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("sd15"), r"resnets\.0\.conv1")
    tensors = made(file_of(plan_of(tiny("sd15"), components)))
    assert len(tensors) >= 3
    for key, tensor in tensors.items():
        if key.endswith("lora_down.weight"):
            assert tensor.shape[0] == 4
            assert tensor.shape[2:] == (3, 3)
        if key.endswith("lora_up.weight"):
            assert tensor.shape[1:] == (4, 1, 1)


QKV = "lora_unet_double_blocks_0_img_attn_qkv"


def test_fused_layer_has_its_parts_along_the_diagonal(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("flux"), r"\.transformer_blocks\.0\.attn\.to_[qkv]$", quarter)
    tensors = made(file_of(plan_of(tiny("flux"), components)))
    q, k, v = (components["transformer"][f"transformer_blocks.0.attn.to_{name}"] for name in "qkv")
    assert set(tensors) == {f"{QKV}.lora_down.weight", f"{QKV}.lora_up.weight", f"{QKV}.alpha"}
    assert torch.equal(tensors[f"{QKV}.lora_down.weight"], torch.cat([q.a, k.a, v.a]))
    assert torch.equal(tensors[f"{QKV}.lora_up.weight"], torch.block_diag(q.b, k.b, v.b))  # type: ignore[no-untyped-call]
    assert float(tensors[f"{QKV}.alpha"]) == 0.25 * 12


def test_part_of_a_fused_layer_that_was_not_adapted_is_zero(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("flux"), r"\.transformer_blocks\.0\.attn\.to_[qv]$", quarter)
    components["transformer"]["transformer_blocks.0.attn.to_v"] = replace(
        components["transformer"]["transformer_blocks.0.attn.to_v"],
        a=torch.ones(2, 32),
        b=torch.ones(32, 2),
    )
    tensors = made(file_of(plan_of(tiny("flux"), components)))
    down, up = tensors[f"{QKV}.lora_down.weight"], tensors[f"{QKV}.lora_up.weight"]
    assert down.shape == (12, 32), "the ranks of all parts are one"
    assert not down[4:8].any()
    assert not down[10:].any()
    assert not up[32:64].any()
    assert torch.equal(up[64:, 8:10], torch.ones(32, 2))
    assert float(tensors[f"{QKV}.alpha"]) == 0.25 * 12


def test_parts_with_scales_of_their_own_have_them_in_their_factors(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("sd3"), r"blocks\.0\.attn\.to_[qkv]$", lambda number: (4, 1.0 + number))
    tensors = made(file_of(plan_of(tiny("sd3"), components)))
    (alpha,) = (float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha"))
    assert alpha == 12
    (up,) = (tensor for key, tensor in tensors.items() if key.endswith("lora_up.weight"))
    (down,) = (tensor for key, tensor in tensors.items() if key.endswith("lora_down.weight"))
    wanted = torch.cat([delta.scale * delta.b @ delta.a for delta in components["transformer"].values()])
    torch.testing.assert_close(up @ down, wanted)


def test_parts_of_one_stem_have_one_dtype(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    """bfloat16 does not hold a scale of 1.1, so that part alone would become float32."""
    components = components_for(tiny("flux"), r"\.transformer_blocks\.0\.attn\.to_[qkv]$", quarter, torch.bfloat16)
    name = "transformer_blocks.0.attn.to_k"
    components["transformer"][name] = replace(components["transformer"][name], scale=1.1)
    exported = written(tiny("flux"), components, tmp_path)
    (up,) = (tensor for key, tensor in file_of(exported.plan).tensors.items() if key.endswith("lora_up.weight"))
    assert up.dtype == "F32"
    (said,) = (each for each in exported.plan.transforms if each.kind == "store-fp32")
    assert set(said.modules) == set(components["transformer"])
    for loaded in exported.loaded().values():
        assert_effect(loaded, components)


def test_swapped_halves_are_swapped_back(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("flux"), r"norm_out", quarter)
    tensors = made(file_of(plan_of(tiny("flux"), components)))
    (delta,) = components["transformer"].values()
    scale, shift = delta.b.chunk(2)
    stem = "lora_unet_final_layer_adaLN_modulation_1"
    assert torch.equal(tensors[f"{stem}.lora_up.weight"], torch.cat([shift, scale]))
    assert torch.equal(tensors[f"{stem}.lora_down.weight"], delta.a)


@pytest.mark.parametrize(("scale", "left"), [(0.25, True), (2.0, True), (1.5, False)])
def test_alpha_is_left_where_diffusers_multiplies_without_rounding(
    tiny: Callable[[str], Base], scale: float, left: bool
) -> None:
    """Its converters multiply the factors by alpha / rank in their dtype, before any layer is built."""
    components = components_for(tiny("qwenimage"), r"attn\.to_q", lambda number: (4, scale), torch.bfloat16)
    file = file_of(plan_of(tiny("qwenimage"), components))
    assert {float(t.make()) for key, t in file.tensors.items() if key.endswith("alpha")} == {scale * 4 if left else 4}
    assert {t.dtype for key, t in file.tensors.items() if "lora_" in key.partition(".")[2]} == {
        "BF16" if left else "F32"
    }


def test_scale_that_would_lose_bits_in_diffusers_is_folded(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    """fp16, alpha 1 and rank 64: 2**-6 of a B of 1e-4 is subnormal."""
    components = components_for(tiny("qwenimage"), r"attn\.to_q", lambda number: (64, 1 / 64))
    components["transformer"] = {
        module: replace(delta, a=delta.a.half(), b=(delta.b * 1e-4).half())
        for module, delta in components["transformer"].items()
    }
    exported = written(tiny("qwenimage"), components, tmp_path)
    tensors = file_of(exported.plan).tensors
    assert {float(tensor.make()) for key, tensor in tensors.items() if key.endswith("alpha")} == {64.0}
    for loaded in exported.loaded().values():
        assert_effect(loaded, components, 5e-4)


@pytest.mark.parametrize("family", ["sd3", "lumina2"])
def test_any_alpha_is_left_where_no_converter_of_diffusers_reads_it(tiny: Callable[[str], Base], family: str) -> None:
    components = components_for(tiny(family), r"ff\.|feed_forward", uniform, torch.bfloat16)
    file = file_of(plan_of(tiny(family), components))
    assert {float(t.make()) for key, t in file.tensors.items() if key.endswith("alpha")} == {6.0}
    assert {t.dtype for key, t in file.tensors.items() if not key.endswith("alpha")} == {"BF16"}


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_dtype_is_that_which_was_asked_for(
    tiny: Callable[[str], Base], tmp_path: Path, family: str, dtype: str, stored: str
) -> None:
    components = components_for(tiny(family), r"transformer_blocks\.0\.(attn|ff)|layers", quarter)
    exported = written(tiny(family), components, tmp_path, dtype=dtype)
    factors = {t.dtype for key, t in file_of(exported.plan).tensors.items() if not key.endswith(".alpha")}
    assert factors == {stored}
    for loaded in exported.loaded().values():
        assert_effect(loaded, components, {"F16": 1e-3, "BF16": 8e-3, "F32": 1e-6}[stored])


def test_tensors_are_made_as_they_are_planned(tiny: Callable[[str], Base]) -> None:
    for family, dtype in (("sd15", None), ("flux", "bfloat16"), ("wan", "float16"), ("z_image", None)):
        for setting in (uniform, mixed):
            plan = plan_of(tiny(family), components_for(tiny(family), r"block|layers", setting), dtype=dtype)
            for file in plan.files:
                for key, tensor in file.tensors.items():
                    result = tensor.make()
                    assert tuple(result.shape) == tensor.shape, key
                    assert {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[
                        tensor.dtype
                    ] == result.dtype


def test_bytes_are_the_same_whatever_the_order_of_the_layers(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    components = components_for(tiny("flux"), "blocks|encoder", mixed)
    backwards = {name: dict(reversed(deltas.items())) for name, deltas in reversed(components.items())}
    one = written(tiny("flux"), components, tmp_path / "1").bundle
    other = written(tiny("flux"), backwards, tmp_path / "2").bundle
    assert one.digest == other.digest


# --- layers of zeros --------------------------------------------------------------------------------------------------


def test_attention_of_a_text_encoder_comes_whole(tiny: Callable[[str], Base]) -> None:
    """A1111 has OpenCLIP's attention as one module, and diffusers tells these names by `out_proj` alone."""
    components = components_for(tiny("sdxl"), r"encoder_2\.encoder\.layers\.1\.self_attn\.q_proj")
    plan = plan_of(tiny("sdxl"), components)
    tensors = made(file_of(plan))
    stem = "lora_te2_text_model_encoder_layers_1_self_attn"
    for name in ("q", "k", "v", "out"):
        assert tensors[f"{stem}_{name}_proj.lora_down.weight"].shape[0] == 4, "of one rank, as all of the component"
        assert tensors[f"{stem}_{name}_proj.lora_up.weight"].any() == (name == "q")
        assert float(tensors[f"{stem}_{name}_proj.alpha"]) == 6.0
    assert len(tensors) == 12
    (filled,) = (each for each in plan.transforms if each.kind == "fill")
    assert filled.modules == tuple(f"encoder.layers.1.self_attn.{n}_proj" for n in ("k", "out", "v"))


def test_every_block_of_wan_comes_whole(tiny: Callable[[str], Base]) -> None:
    """diffusers' converter asks for each layer of each block. A row of zeros is enough for those that are not there."""
    components = components_for(tiny("wan"), r"transformer\.blocks\.1\.attn1\.to_q")
    tensors = made(file_of(plan_of(tiny("wan"), components)))
    adapted = "lora_unet_blocks_1_self_attn_q"
    ranks = {key.partition(".")[0]: len(t) for key, t in tensors.items() if key.endswith("lora_down.weight")}
    assert len(ranks) == 20
    assert {stem: rank for stem, rank in ranks.items() if rank > 1} == {adapted: 4}
    assert all(not tensors[f"{stem}.lora_down.weight"].any() for stem in ranks if stem != adapted)


def test_both_experts_of_wan_have_a_file(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("wan"), r"attn1\.to_q")
    plan = plan_of(tiny("wan"), components)
    assert [file.path for file in plan.files] == ["kohya/mine.safetensors", "kohya/mine_2.safetensors"]
    assert set(plan.files[0].tensors) == set(plan.files[1].tensors)
    assert [load.kwargs for load in plan.loads] == [{}, {"load_into_transformer_2": True}]
    alone = plan_of(tiny("wan"), {"transformer_2": components["transformer_2"]})
    assert [file.path for file in alone.files] == ["kohya/mine_2.safetensors"]


# --- which programs ---------------------------------------------------------------------------------------------------


def test_call_is_the_pipelines_own(tiny: Callable[[str], Base]) -> None:
    plan = plan_of(tiny("sdxl"), components_for(tiny("sdxl"), "to_q"))
    assert plan.loads == (
        LoadCall(
            pipeline="StableDiffusionXLPipeline", method="load_lora_weights", weight_name="kohya/mine.safetensors"
        ),
    )


@pytest.mark.parametrize(
    ("family", "pattern", "lost"),
    [
        (
            "flux",
            r"x_embedder|\.transformer_blocks\.0\.ff\.",
            {"diffusers": ["x_embedder"], "sd-scripts": ["x_embedder"]},
        ),
        ("sd15", r"conv_in|to_q", {"sd-scripts": ["conv_in"]}),
        ("sdxl", r"text_projection|to_q", {"diffusers": ["text_projection"], "sd-scripts": ["text_projection"]}),
        ("wan", r"proj_out|attn1", {"diffusers": ["proj_out"], "musubi-tuner": ["proj_out"]}),
        ("z_image", r"x_embedder|to_q", {"diffusers": ["all_x_embedder.2-1"]}),
    ],
)
def test_program_that_lacks_a_layer_is_named_with_it_and_has_no_call(
    tiny: Callable[[str], Base], family: str, pattern: str, lost: dict[str, list[str]]
) -> None:
    plan = plan_of(tiny(family), components_for(tiny(family), pattern))
    said = [each for each in plan.transforms if each.kind == "not-for"]
    found = {each.detail.split("not for ")[1].split(":")[0]: list(each.modules) for each in said}
    assert found == lost
    assert bool(plan.loads) == ("diffusers" not in lost)


@pytest.mark.parametrize(
    "alias",
    ["sd15", "sd21", "sdxl", "sd35-medium", "flux-dev", "chroma", "flux2-dev", "qwen-image", "z-image", "lumina2"]
    + ["wan21-i2v-14b-480p", "wan21-vace-14b", "hunyuan-video"],
)
def test_every_layer_of_a_public_model_has_one_name_that_comfyui_has(alias: str, tmp_path: Path) -> None:
    base = open_base(alias, tmp_path)
    known = kohya_of(base)
    assert known is not None
    for component in known.prefixes:
        if component in base.models:
            table = stems(base, known, component)
            modules = [piece.module for pieces in table.values() for piece in pieces]
            assert sorted(modules) == sorted(targets(base, component)), "each once"
            assert beyond(known.comfyui, table) == []


# --- the header -------------------------------------------------------------------------------------------------------


def header_of(exported: Written) -> dict[str, str]:
    with safe_open(exported.folder / file_of(exported.plan).path, framework="pt") as file:
        return dict(file.metadata())


def test_header_says_what_sd_scripts_says(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    exported = written(tiny("sd15"), components_for(tiny("sd15"), "to_q|_proj"), tmp_path)
    (file,) = exported.bundle.files
    header = header_of(exported)
    assert re.fullmatch("[0-9a-f]{8}", header.pop("sshs_legacy_hash"))
    assert header == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "mine",
        "modelspec.hash_sha256": f"0x{file.tensors_sha256}",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "6.0",
        "ss_output_name": "mine",
        "sshs_model_hash": file.tensors_sha256,
    }


def test_hash_is_of_the_tensors_as_they_lie_in_the_file(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    """What a reader computes: sha256 of everything after the header."""
    import hashlib

    exported = written(tiny("flux"), components_for(tiny("flux"), "blocks", mixed, torch.bfloat16), tmp_path)
    content = (exported.folder / "kohya/mine.safetensors").read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    header = header_of(exported)
    assert header["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors).hexdigest()}"
    assert header["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()


def test_layers_that_differ_are_said_to(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    header = header_of(written(tiny("flux"), components_for(tiny("flux"), r"\.transformer_blocks"), tmp_path))
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("Dynamic", "Dynamic")


@pytest.mark.parametrize(
    ("alias", "architecture", "version", "module", "v2"),
    [
        ("sd15", "stable-diffusion-v1", "sd_v1", "lora", "False"),
        ("sd21-base", "stable-diffusion-v2-512", "sd_v2", "lora", "True"),
        ("sd21", "stable-diffusion-v2-768-v", "sd_v2_v", "lora", "True"),
        ("sdxl", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "lora", "False"),
        ("sd3-medium", "stable-diffusion-3-medium", "sd3-medium", "lora_sd3", None),
        ("sd35-medium", "stable-diffusion-3-5-medium", "sd3-5-medium", "lora_sd3", None),
        ("sd35-large", "stable-diffusion-3-5-large", "sd3-5-large", "lora_sd3", None),
        ("flux-dev", "flux-1-dev", "flux1", "lora_flux", None),
        ("flux-schnell", "flux-1-schnell", "flux1", "lora_flux", None),
        ("chroma", "chroma", "chroma", "lora_flux", None),
        ("flux2-dev", "Flux.2-dev", "flux_2_dev", "lora_flux_2", None),
        ("flux2-klein-4b", "Flux.2-klein-4b", "flux_2_klein_4b", "lora_flux_2", None),
        ("flux2-klein-9b", "Flux.2-klein-9b", "flux_2_klein_9b", "lora_flux_2", None),
        ("qwen-image", "Qwen-Image", "qwen_image", "lora_qwen_image", None),
        ("z-image", "Z-Image", "z_image", "lora_zimage", None),
        ("lumina2", "lumina-2", "lumina2", "lora_lumina", None),
        ("wan22-t2v-a14b", "wan2.1", "wan", "lora_wan", None),
        ("hunyuan-video", "hunyuan-video", "hunyuan_video", "lora", None),
        ("krea2", "Krea-2", "krea2", "lora_krea2", None),
    ],
)
def test_header_tells_the_base(
    tmp_path: Path, alias: str, architecture: str, version: str, module: str, v2: str | None
) -> None:
    base = open_base(alias, tmp_path)
    (component, *_) = base.models
    name = next(
        name
        for name in targets(base, component)
        if re.search(r"blocks\.0\.(.*\.)?(to_q|ff|mlp|ffn)|layers\.0\.f", name)
    )
    target = targets(base, component)[name]
    delta = LowRank(torch.ones(1, *target.shape[1:]), torch.ones(target.shape[0], 1), 1.0)
    header = file_of(plan_of(base, {component: {name: delta}})).header
    assert header["modelspec.architecture"] == f"{architecture}/lora"
    assert header["ss_base_model_version"] == version
    assert header["ss_network_module"] == f"networks.{module}"
    assert header.get("ss_v2") == v2


def test_flux_names_its_implementation(tiny: Callable[[str], Base]) -> None:
    header = file_of(plan_of(tiny("flux"), components_for(tiny("flux"), "to_q"))).header
    assert header["modelspec.implementation"] == "https://github.com/black-forest-labs/flux"
    sdxl = file_of(plan_of(tiny("sdxl"), components_for(tiny("sdxl"), "to_q"))).header
    assert sdxl["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"


def test_date_is_the_end_of_the_training_where_it_is_known(tiny: Callable[[str], Base]) -> None:
    base = tiny("sd15")
    adapter = Adapter("sd15", components_for(base, "to_q"))
    ended = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    dated, undated = convert(adapter, base, KOHYA, "mine", ended), convert(adapter, base, KOHYA, "mine")
    assert file_of(dated).header["modelspec.date"] == "2026-02-28T23:30:00Z"
    assert "modelspec.date" not in file_of(undated).header


@pytest.mark.parametrize("options", [{}, {"scale": "header"}])
def test_header_has_no_adapter_metadata(tiny: Callable[[str], Base], options: dict[str, Any]) -> None:
    for family in ("sd15", "flux"):
        for setting in (uniform, mixed):
            file = file_of(plan_of(tiny(family), components_for(tiny(family), "to_q", setting), **options))
            assert "lora_adapter_metadata" not in file.header


def test_name_is_the_exports(tiny: Callable[[str], Base]) -> None:
    adapter = Adapter("sd15", components_for(tiny("sd15"), "to_q"))
    for given, name in ((("my.lora",), "my.lora"), ((), "adapter")):
        file = file_of(convert(adapter, tiny("sd15"), KOHYA, *given))
        assert file.path == f"kohya/{name}.safetensors"
        assert file.header["ss_output_name"] == file.header["modelspec.title"] == name


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(base: Base, components: Any, **options: Any) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        plan_of(base, components, **options)
    assert caught.value.expected
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("part", "said"), [({"magnitude": torch.ones(32)}, "dora_scale"), ({"bias": torch.ones(32)}, "lora_B bias")]
)
def test_what_these_keys_do_not_carry_is_refused(
    tiny: Callable[[str], Base], part: dict[str, torch.Tensor], said: str
) -> None:
    components = components_for(tiny("sd15"), "attn1.to_q")
    name = next(iter(components["unet"]))
    components["unet"][name] = replace(components["unet"][name], **part)
    error = refusal(tiny("sd15"), components)
    assert said in error.found
    assert ("1 of " in error.found) == ("magnitude" in part), "a bias is given to every layer before"
    assert "diffusers" in error.remedy


def test_lokr_that_is_kept_is_refused(tiny: Callable[[str], Base]) -> None:
    (name, target), *_ = (item for item in targets(tiny("flux2"), "transformer").items() if "to_q" in item[0])
    out, inner = target.shape
    delta = Kronecker(torch.ones(2, 2), torch.eye(2), torch.ones(out // 2, inner // 2), torch.eye(out // 2), 1.0)
    assert "LoKr" in refusal(tiny("flux2"), {"transformer": {name: delta}}, keep_form=True).found
    assert plan_of(tiny("flux2"), {"transformer": {name: delta}}).files, "as LoRA it is carried"


def test_grouped_factors_are_refused(tiny: Callable[[str], Base]) -> None:
    components = components_for(tiny("sd15"), r"down_blocks\.0\.resnets\.0\.conv1")
    (name, delta), *_ = components["unet"].items()
    components["unet"][name] = replace(delta, b=delta.b[:, :2], groups=2)
    assert "grouped" in refusal(tiny("sd15"), components).found


def test_control_adapter_is_refused(tiny: Callable[[str], Base]) -> None:
    out, inner = targets(tiny("flux"), "transformer")["x_embedder"].shape
    wide = LowRank(torch.ones(4, 2 * inner), torch.ones(out, 4), 1.0)
    assert "control adapter" in refusal(tiny("flux"), {"transformer": {"x_embedder": wide}}).found


def test_norms_are_refused(tiny: Callable[[str], Base]) -> None:
    adapter = Adapter(
        "flux",
        components_for(tiny("flux"), "to_q"),
        norms={"transformer": {"transformer_blocks.0.attn.norm_q.weight": torch.ones(16)}},
    )
    with pytest.raises(ConversionError, match="norms"):
        convert(adapter, tiny("flux"), KOHYA)


@pytest.mark.parametrize("family", ["sana", "auraflow", "ltx_video", "hidream", "cogvideox", "mochi", "skyreels_v2"])
def test_family_of_which_it_is_not_known_who_reads_it_is_refused(tiny: Callable[[str], Base], family: str) -> None:
    (name, target), *_ = ((n, t) for n, t in targets(tiny(family), "transformer").items() if len(t.shape) == 2)
    delta = LowRank(torch.ones(1, target.shape[1]), torch.ones(target.shape[0], 1), 1.0)
    error = refusal(tiny(family), {"transformer": {name: delta}})
    assert tiny(family).family.title in error.found
    assert "kohya layout" in error.remedy


def test_component_that_has_no_keys_is_refused(tiny: Callable[[str], Base]) -> None:
    components = {"text_conditioner": deltas_for(tiny("anima"), "text_conditioner", ".", uniform, torch.float32)}
    assert "text_conditioner" in refusal(tiny("anima"), components).found


def test_layers_that_comfyui_lacks_are_refused_by_name(tiny: Callable[[str], Base]) -> None:
    error = refusal(tiny("krea2"), components_for(tiny("krea2"), r"img_in|txt_in|blocks\.0\.ff"))
    assert "img_in, txt_in.linear_1, txt_in.linear_2" in error.found
    assert "blocks" not in error.found


def test_written_file_is_what_the_plan_says(tiny: Callable[[str], Base], tmp_path: Path) -> None:
    exported = written(tiny("sd15"), components_for(tiny("sd15"), "to_q|_proj", mixed), tmp_path)
    tensors = load_file(exported.folder / "kohya/mine.safetensors")
    planned = made(file_of(exported.plan))
    assert set(tensors) == set(planned)
    assert all(torch.equal(tensors[key], planned[key]) for key in planned)
    assert json.loads(json.dumps(header_of(exported)))["ss_network_alpha"] == "4.0"
    assert math.isfinite(float(tensors[next(key for key in tensors if key.endswith(".alpha"))]))
