"""Names, components and layers: where what a checkpoint spells belongs in the base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from adapterline.checkpoints.placing import misfit_of, place
from adapterline.checkpoints.roles import component_for
from adapterline.deltas import Delta, Full, Hadamard, Kronecker, LowRank
from adapterline.errors import CheckpointError, ConversionError, FamilyError
from adapterline.families.base import Base, read_base
from adapterline.families.names import look_up, name_table, names
from adapterline.families.originals.base import rename
from adapterline.families.skeleton import Target, targets
from adapterline.values import ExportOptions
from tests.families.tiny import CASES
from tests.writers.cases import CASES as WRITTEN
from tests.writers.observe import Bases, write

PROJECTION = "down_blocks.1.attentions.0.proj_in"  # a 1 x 1 convolution in SD 1.5
KERNEL = "down_blocks.0.resnets.0.conv1"
DEPTHWISE = "transformer_blocks.0.ff.conv_depth"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def linear(shape: tuple[int, ...], seed: int = 0) -> Full:
    return Full(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), 1.0)


def lora(out: int, *tail: int, rank: int = 3) -> LowRank:
    generator = torch.Generator().manual_seed(out)
    ones = [1] * (len(tail) - 1)
    return LowRank(
        torch.randn(rank, *tail, generator=generator), torch.randn(out, rank, *ones, generator=generator), 0.5
    )


def weight(delta: Delta) -> torch.Tensor:
    width = int(torch.Size(delta.shape[1:]).numel())
    return delta.apply(torch.eye(width, dtype=torch.float64)).reshape(delta.shape)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CASES)
def test_every_name_is_of_whole_layers(family: str, tmp_path: Path) -> None:
    base = read_base(CASES[family].write(tmp_path / "base"))
    for component in base.models:
        layers = targets(base, component)
        table = names(base, component)
        assert set(layers) <= set(table), "every layer has its own name"
        for name, pieces in table.items():
            rows = [piece.rows for piece in pieces]
            assert all(piece.module in layers for piece in pieces), name
            if len(pieces) == 1 and rows[0] is None:
                continue
            taken = [range_ for ranges in rows for range_ in ranges or ()]
            covered = sorted(row for start, stop in taken for row in range(start, stop))
            assert covered == list(range(len(covered))), f"{name}: every row once"
            for piece in pieces:
                assert sum(stop - start for start, stop in piece.rows or ()) == layers[piece.module].shape[0], name


def test_name_that_may_be_two_layers_is_left_out() -> None:
    layers = {"a.b_c": Target("Linear", (2, 2)), "a_b.c": Target("Linear", (2, 2)), "d.e": Target("Linear", (2, 2))}
    table = name_table(layers, ())
    assert set(table) == {"a.b_c", "a_b.c", "d.e", "d_e"}


def test_own_name_comes_before_the_originals() -> None:
    layers = {"out": Target("Linear", (2, 2)), "proj": Target("Linear", (2, 2))}
    table = name_table(layers, [rename("out", "proj")])
    assert [piece.module for piece in table["out"]] == ["out"]


def test_fused_layer_that_the_model_lacks_a_part_of_has_no_name() -> None:
    layers = {"q": Target("Linear", (2, 2)), "k": Target("Linear", (2, 2))}
    assert "qkv" not in name_table(layers, [rename("qkv", "q", "k", "v")])
    assert "qk" in name_table(layers, [rename("qk", "q", "k")])


def test_text_model_may_be_left_out_of_a_name(bases: Bases) -> None:
    table = names(bases.base("sd15"), "text_encoder")
    found = {
        look_up(table, name)
        for name in (
            "text_model.encoder.layers.0.mlp.fc1",
            "text_model_encoder_layers_0_mlp_fc1",
            "encoder.layers.0.mlp.fc1",
            "encoder_layers_0_mlp_fc1",
        )
    }
    assert len(found) == 1
    assert None not in found


@pytest.mark.parametrize(
    ("family", "guessed", "module"),
    [  # convert_to_diffusers of musubi-tuner's convert_lora.py, of `lora_unet_` and a name without dots
        ("flux", "double_blocks.0.img_attn_proj", "transformer_blocks.0.attn.to_out.0"),
        ("flux2", "double_blocks.0.txt_attn_proj", "transformer_blocks.0.attn.to_add_out"),
        ("hunyuan_video", "single.transformer.blocks.0.attn.to.k", "single_transformer_blocks.0.attn.to_k"),
    ],
)
def test_dots_that_a_converter_guessed_do_not_matter(family: str, guessed: str, module: str, tmp_path: Path) -> None:
    base = read_base(CASES[family].write(tmp_path / "base"))
    pieces = look_up(names(base, "transformer"), guessed)
    assert [piece.module for piece in pieces or ()] == [module]


def test_guessed_dots_never_choose_between_two_layers() -> None:
    layers = {"a.b_c.d": Target("Linear", (2, 2)), "a_b.c.d": Target("Linear", (2, 2))}
    table = name_table(layers, ())
    assert look_up(table, "a.b.c.d") is None
    assert look_up(table, "a_b_c_d") is None


# --- placing ----------------------------------------------------------------------------------------------------------


def place_one(base: Base, component: str, module: str, delta: Delta) -> Delta:
    placed = place({module: delta}, base, component)
    assert list(placed) == [module]
    return placed[module]


def test_kernel_that_was_stored_flat_gets_its_shape(bases: Bases) -> None:
    base = bases.base("sd15")
    out, width, *kernel = targets(base, "unet")[KERNEL].shape
    flat = width * kernel[0] * kernel[1]
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for delta in (
        lora(out, flat),
        linear((out, flat)),
        Hadamard(draw(2, flat), draw(out, 2), draw(3, flat), draw(out, 3), 0.5),
        Kronecker(draw(2, 4), draw(2, 2), draw(2, flat // 4), draw(out // 2, 2), 0.5),
    ):
        found = place_one(base, "unet", KERNEL, delta)
        assert found.shape == (out, width, *kernel)
        assert torch.equal(weight(found).flatten(1), weight(delta))


def test_flat_factors_that_no_kernel_fits_keep_their_effect(bases: Bases) -> None:
    """LoKr's left factor has as many inputs as divide the channels; of these nine it cannot have been."""
    base = bases.base("sd15")
    out, width, *kernel = targets(base, "unet")[KERNEL].shape
    flat = width * kernel[0] * kernel[1]
    assert width % 9
    delta = Kronecker(torch.rand(2, 9), torch.rand(2, 2), torch.rand(2, flat // 9), torch.rand(out // 2, 2), 0.5)
    assert torch.equal(weight(place_one(base, "unet", KERNEL, delta)), weight(delta))


@pytest.mark.parametrize("kernel", [(), (1, 1)])
def test_one_by_one_convolutions_and_linear_layers_are_the_same(bases: Bases, kernel: tuple[int, ...]) -> None:
    for family in ("sd15", "sdxl"):
        base = bases.base(family)
        out, width = targets(base, "unet")[PROJECTION].shape[:2]
        delta = lora(out, width, *kernel)
        found = place_one(base, "unet", PROJECTION, delta)
        assert found.shape == targets(base, "unet")[PROJECTION].shape
        assert torch.equal(weight(found).flatten(), weight(delta).flatten())


def test_magnitude_has_the_shape_that_peft_gives_it(bases: Bases) -> None:
    base = bases.base("sd15")
    for module, shape in (
        (KERNEL, (1, -1, 1, 1)),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", (-1,)),
    ):
        out, *tail = targets(base, "unet")[module].shape
        values = torch.rand(out)
        stored = replace(lora(out, *tail), magnitude=values.reshape(out, *[1] * len(tail)))
        magnitude = place_one(base, "unet", module, stored).magnitude
        assert magnitude is not None
        assert torch.equal(magnitude, values.reshape(shape))


def test_parts_of_a_fused_layer_get_their_rows(bases: Bases) -> None:
    base = bases.base("flux")
    modules = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    outs = [targets(base, "transformer")[module].shape[0] for module in modules]
    whole = lora(sum(outs), 32)
    placed = place({"double_blocks.0.img_attn.qkv": whole}, base, "transformer")
    assert sorted(placed) == sorted(modules)
    assert torch.equal(torch.cat([weight(placed[module]) for module in modules]), weight(whole))


def test_part_of_a_fused_layer_that_was_not_trained_gets_nothing(bases: Bases) -> None:
    """A trainer of q and v alone writes zeros for k."""
    base = bases.base("flux")
    whole = lora(96, 32)
    whole.b[32:64] = 0
    placed = place({"double_blocks.0.img_attn.qkv": whole}, base, "transformer")
    assert set(placed) == {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v"}


def test_fused_layer_of_zeros_is_all_its_parts(bases: Bases) -> None:
    whole = lora(96, 32)
    whole.b.zero_()
    placed = place({"double_blocks.0.img_attn.qkv": whole}, bases.base("flux"), "transformer")
    assert set(placed) == {f"transformer_blocks.0.attn.to_{x}" for x in "qkv"}


def test_parts_of_a_fused_layer_get_their_own_magnitude_and_bias(bases: Bases) -> None:
    """Also where B is a diagonal of the parts' own, of which each takes the columns that are not zero."""
    modules = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    magnitude, bias = torch.rand(96) + 0.5, torch.rand(96)
    for b in (torch.rand(96, 3), torch.block_diag(*torch.rand(3, 32, 1))):
        whole = LowRank(torch.rand(3, 32), b, 0.5, magnitude.reshape(96, 1), bias)
        placed = place({"double_blocks.0.img_attn.qkv": whole}, bases.base("flux"), "transformer")
        magnitudes, biases = zip(*((placed[module].magnitude, placed[module].bias) for module in modules), strict=True)
        assert torch.equal(torch.cat(magnitudes), magnitude)
        assert torch.equal(torch.cat(biases), bias)
        assert torch.equal(torch.cat([weight(placed[module]) for module in modules]), weight(whole))
        assert {placed[module].needed_rank for module in modules} == {int(b[:32].any(dim=0).sum())}


def test_modules_come_in_the_order_of_their_names(bases: Bases) -> None:
    layers = {f"transformer_blocks.0.attn.to_{x}": linear((32, 32)) for x in "vkq"}
    placed = place({**layers, "double_blocks.0.txt_attn.qkv": lora(96, 32)}, bases.base("flux"), "transformer")
    assert list(placed) == sorted(placed)


def test_halves_that_diffusers_swapped_are_swapped(bases: Bases) -> None:
    base = bases.base("flux")
    whole = lora(64, 32)
    placed = place({"final_layer.adaLN_modulation.1": whole}, base, "transformer")
    assert torch.equal(weight(placed["norm_out.linear"]), torch.cat(weight(whole).chunk(2)[::-1]))


def test_depthwise_convolution_has_a_grouped_b(bases: Bases) -> None:
    base = bases.base("sana")
    target = targets(base, "transformer")[DEPTHWISE]
    channels = target.shape[0]
    assert target.groups == channels
    for delta in (lora(channels, channels, 3, 3), lora(1, channels, 3, 3)):
        placed = place_one(base, "transformer", DEPTHWISE, delta)
        found = placed.low_rank()
        assert (found.groups, found.rank) == (channels, placed.needed_rank)
        wanted = weight(delta).expand(channels, -1, -1, -1)
        for change in (placed, found):
            assert float((weight(change) - wanted).norm() / wanted.norm()) < 1e-6


def test_kernel_of_a_depthwise_convolution_sees_its_own_channel(bases: Bases) -> None:
    base = bases.base("sana")
    channels = targets(base, "transformer")[DEPTHWISE].shape[0]
    own = linear((channels, 1, 3, 3))
    placed = place_one(base, "transformer", DEPTHWISE, own)
    for change in (placed, placed.low_rank()):
        found = weight(change)
        for channel in range(channels):
            assert torch.allclose(found[channel, channel], own.weight[channel, 0].double())
            found[channel, channel] = 0
        assert not found.any()


def test_kernel_of_a_depthwise_convolution_keeps_its_scale_and_bias(bases: Bases) -> None:
    base = bases.base("sana")
    channels = targets(base, "transformer")[DEPTHWISE].shape[0]
    own = replace(linear((channels, 1, 3, 3)), scale=0.5, bias=torch.rand(channels))
    placed = place_one(base, "transformer", DEPTHWISE, own)
    assert placed.scale == 0.5
    assert placed.bias is own.bias
    found = weight(placed)[range(channels), range(channels)]
    assert torch.allclose(found, own.weight[:, 0].double() * 0.5)


def test_what_peft_trained_on_a_depthwise_convolution_stays_as_it_is(bases: Bases) -> None:
    channels = targets(bases.base("sana"), "transformer")[DEPTHWISE].shape[0]
    own = LowRank(torch.rand(channels, channels, 3, 3), torch.rand(channels, 1, 1, 1), 0.5, groups=channels)
    assert place_one(bases.base("sana"), "transformer", DEPTHWISE, own) is own


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
def test_dora_on_a_depthwise_convolution_is_what_one_trainer_computes(bases: Bases) -> None:
    """DoRAModule.forward: the one row of B times A, viewed as the layer's own kernel, under a magnitude per output."""
    channels = targets(bases.base("sana"), "transformer")[DEPTHWISE].shape[0]
    magnitude = torch.rand(channels, 1, 1, 1) + 0.5
    delta = replace(lora(1, channels, 3, 3), magnitude=magnitude)
    found = place_one(bases.base("sana"), "transformer", DEPTHWISE, delta).low_rank()
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    x = torch.randn(1, channels, 5, 5)
    b, a = delta.matrices()
    changed = layer.weight + (b @ a).reshape(layer.weight.shape).float() * delta.scale
    norm = changed.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    wanted = torch.nn.functional.conv2d(x, magnitude * changed / norm, layer.bias, padding=1, groups=channels)

    config = LoraConfig(r=found.rank, lora_alpha=1, target_modules=["0"], use_dora=True)
    model = inject_adapter_in_model(config, torch.nn.Sequential(layer))
    carried = model[0]
    carried.scaling["default"] = found.scale
    assert found.magnitude is not None
    with torch.no_grad():
        carried.lora_A["default"].weight.copy_(found.a)
        carried.lora_B["default"].weight.copy_(found.b)
        carried.lora_magnitude_vector["default"].weight.copy_(found.magnitude)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_dora_on_a_depthwise_convolution_is_refused_with_other_factors(bases: Bases) -> None:
    channels = targets(bases.base("sana"), "transformer")[DEPTHWISE].shape[0]
    delta = replace(lora(channels, channels, 3, 3), magnitude=torch.ones(channels))
    with pytest.raises(ConversionError, match="DoRA"):
        place({DEPTHWISE: delta}, bases.base("sana"), "transformer")


def test_dora_on_a_depthwise_convolution_that_peft_trained_stays_as_it_is(bases: Bases) -> None:
    channels = targets(bases.base("sana"), "transformer")[DEPTHWISE].shape[0]
    magnitude = torch.rand(channels) + 0.5
    own = replace(lora(channels, channels, 3, 3, rank=channels), magnitude=magnitude, groups=channels)
    own = replace(own, b=own.b[:, :1])
    found = place_one(bases.base("sana"), "transformer", DEPTHWISE, own)
    assert isinstance(found, LowRank)
    assert (found.a is own.a, found.b is own.b, found.groups) == (True, True, channels)
    assert found.magnitude is not None
    assert torch.equal(found.magnitude, magnitude.reshape(1, channels, 1, 1))


def test_dora_on_a_depthwise_convolution_keeps_its_bias(bases: Bases) -> None:
    channels = targets(bases.base("sana"), "transformer")[DEPTHWISE].shape[0]
    bias = torch.rand(channels)
    delta = replace(lora(1, channels, 3, 3), magnitude=torch.ones(channels), bias=bias)
    found = place_one(bases.base("sana"), "transformer", DEPTHWISE, delta)
    assert found.bias is bias
    assert found.low_rank().bias is bias


def test_dora_on_a_grouped_convolution_is_refused_unless_each_output_has_a_magnitude_and_a_group(
    bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases.base("sana")
    channels = targets(base, "transformer")[DEPTHWISE].shape[0]
    with pytest.raises(ConversionError, match="has 1 values"):
        place({DEPTHWISE: replace(lora(1, channels, 3, 3), magnitude=torch.ones(1))}, base, "transformer")
    # No family has one whose groups are of several channels.
    two = {DEPTHWISE: Target("Conv2d", (channels, 2, 3, 3), channels // 2)}
    monkeypatch.setattr("adapterline.checkpoints.placing.layers_for", lambda base, component, inputs: (two, None))
    with pytest.raises(ConversionError, match="in a group of its own"):
        place({DEPTHWISE: replace(lora(channels, 2, 3, 3), magnitude=torch.ones(channels))}, base, "transformer")
    with pytest.raises(FamilyError, match="is for \\[2, "):
        place({DEPTHWISE: lora(2, 2, 3, 3)}, base, "transformer")


def test_kernel_in_another_order_is_refused(bases: Bases) -> None:
    out, width, *kernel = targets(bases.base("sd15"), "unet")[KERNEL].shape
    with pytest.raises(FamilyError, match="conv1 is"):
        place({KERNEL: linear((out, *kernel, width))}, bases.base("sd15"), "unet")


@pytest.mark.parametrize("shape", [(33, 32), (32, 31), (32, 32, 3, 3), (64, 32), (16, 64)])
def test_change_of_another_shape_is_refused(bases: Bases, shape: tuple[int, ...]) -> None:
    with pytest.raises(FamilyError, match=r"to_q is \[32, 32\]"):
        place({"transformer_blocks.0.attn.to_q": linear(shape)}, bases.base("flux"), "transformer")


def test_layer_that_is_not_there_is_refused_by_name(bases: Bases) -> None:
    with pytest.raises(FamilyError, match=r"1 of 1 adapted modules are not in it \(transformer_blocks.9.attn.to_q\)"):
        place({"transformer_blocks.9.attn.to_q": linear((32, 32))}, bases.base("flux"), "transformer")


def test_layer_under_two_names_is_refused(bases: Bases) -> None:
    deltas: dict[str, Delta] = {
        "double_blocks.0.img_attn.qkv": lora(96, 32),
        "transformer_blocks_0_attn_to_v": lora(32, 32),
    }
    with pytest.raises(CheckpointError, match="both change transformer.transformer_blocks.0.attn.to_v"):
        place(deltas, bases.base("flux"), "transformer")


def test_what_fits_has_no_misfit(bases: Bases) -> None:
    base = bases.base("flux")
    layers = targets(base, "transformer")
    assert misfit_of({module: target.shape for module, target in layers.items()}, base, "transformer") == ""


# --- components -------------------------------------------------------------------------------------------------------

BY_ID = {case.id: case for case in WRITTEN}
CLIP_L, CLIP_G = "text_encoders.clip_l.transformer", "text_encoders.clip_g.transformer"


def role(bases: Bases, tmp_path: Path, name: str, spelled: str | None, **options: object) -> str:
    """The component that a writer's file means by `spelled`."""
    from adapterline.checkpoints import load_checkpoint
    from adapterline.checkpoints.dialects import dialect_named

    case = BY_ID[name]
    chosen = ExportOptions(**options)  # type: ignore[arg-type]
    source = load_checkpoint(str(write(case, bases, tmp_path)[0]), chosen, tmp_path)
    layers: dict[str, dict[str, str]] = {}
    for key, entry in dialect_named(source.dialect).entries(source).items():
        if entry.component == spelled:
            layers.setdefault(entry.module, {})[entry.part] = key
    assert layers
    return component_for(spelled, layers, source, bases.base(case.family), chosen)


@pytest.mark.parametrize(
    ("name", "spelled", "component"),
    [
        ("sd-scripts-lora-sd15", "denoiser", "unet"),
        ("sd-scripts-lora-flux", "denoiser", "transformer"),
        ("sd-scripts-lora-with-t5-flux", "text_encoder_3", "text_encoder_2"),
        ("onetrainer-lora-comfy-sdxl", "clip_l", "text_encoder"),
        ("onetrainer-lora-comfy-sdxl", "clip_g", "text_encoder_2"),
        ("onetrainer-lora-comfy-sd3", "clip_l", "text_encoder"),
        ("onetrainer-lora-comfy-sd3", "clip_g", "text_encoder_2"),
        ("onetrainer-lora-with-t5-comfy-flux", "t5xxl", "text_encoder_2"),
        ("onetrainer-lora-backup-sdxl", "text_encoder_2", "text_encoder_2"),
    ],
)
def test_keys_name_a_component(bases: Bases, tmp_path: Path, name: str, spelled: str, component: str) -> None:
    assert role(bases, tmp_path, name, spelled) == component


def test_component_that_the_keys_leave_open_is_asked_for(bases: Bases, tmp_path: Path) -> None:
    name = "musubi-tuner-lora-of-one-of-two-models-wan"
    with pytest.raises(CheckpointError, match="--components with transformer or transformer_2"):
        role(bases, tmp_path, name, "denoiser")
    for component in ("transformer", "transformer_2"):
        assert role(bases, tmp_path, name, "denoiser", components=(component,)) == component
