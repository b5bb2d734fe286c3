from __future__ import annotations

import json
from typing import Any

import pytest

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import DIALECTS, dialect_named, identify
from adapterline.checkpoints.dialects.base import Entry
from adapterline.errors import CheckpointError, ConversionError
from tests.checkpoints.tables import FILES, Keys, layer, reads_alone

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
Q = "down_blocks.0.attn.to_q"


keys = Keys.of


def ab(stem: str, a: str = "lora_A.weight", b: str = "lora_B.weight") -> tuple[str, str]:
    return f"{stem}.{a}", f"{stem}.{b}"


def metadata(**values: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(values)}


#: What the keys of diffusers and PEFT mean: (component, module).
FIXTURES: dict[str, list[tuple[Keys, tuple[str | None, str]]]] = {
    "diffusers": [
        (keys(*ab(f"unet.{Q}")), ("unet", Q)),
        (keys(*ab(f"unet.{Q}", "lora.down.weight", "lora.up.weight")), ("unet", Q)),
        (
            keys(*ab("text_encoder.enc.q", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight")),
            ("text_encoder", "enc.q"),
        ),
        (keys(*ab(f"transformer.{Q}"), f"transformer.{Q}.lora_B.bias"), ("transformer", Q)),
        (keys(*ab(f"transformer.{Q}"), f"transformer.{Q}.lora_magnitude_vector"), ("transformer", Q)),
        (keys(*ab("text_encoder_3.q"), "text_encoder_3.q.lora_magnitude_vector.weight"), ("text_encoder_3", "q")),
    ],
    "peft": [
        (keys(*ab(f"base_model.model.{Q}"), configs={"": CONFIG}), (None, Q)),
        (keys(*ab(f"base_model.model.{Q}")), (None, Q)),
        (keys(*ab(f"unet.base_model.model.{Q}"), configs={"unet": CONFIG}), ("unet", Q)),
        (keys(*ab(f"base_model.model.{Q}"), f"base_model.model.{Q}.lora_magnitude_vector.weight"), (None, Q)),
        (keys(*ab(Q)), (None, Q)),
        (keys(*ab(Q), header=metadata(r=4, lora_alpha=8)), (None, Q)),
        (keys(*ab("text_model.encoder.q")), (None, "text_model.encoder.q")),
    ],
}
CASES = [(name, number) for name, found in FIXTURES.items() for number in range(len(found))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_exactly_its_own_dialect_reads_each_file(name: str, number: int) -> None:
    file, (component, module) = FIXTURES[name][number]
    dialect, entries = identify(file)
    assert dialect.name == name
    assert set(entries) == set(file.tensors)
    assert {(entry.component, entry.module) for entry in entries.values()} == {(component, module)}
    assert {entry.part for entry in entries.values()} >= {"a", "b"}
    for other in DIALECTS:
        if other.name != name:
            with pytest.raises(NotMyKindError):
                other.entries(file)


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in FILES for number in range(len(FILES[name]))])
def test_file_of_each_dialect_is_refused_by_every_other(name: str, number: int) -> None:
    file = FILES[name][number]
    assert reads_alone(file) == name
    for other in DIALECTS:
        if other.name != name:
            with pytest.raises((NotMyKindError, CheckpointError)):
                other.entries(file)


def test_every_dialect_has_files_here() -> None:
    assert {dialect.name for dialect in DIALECTS} == set(FILES)
    assert all(dialect_named(name).name == name for name in FILES)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("lora_unet_mid_block_to_q.oft_blocks", "OFT and BOFT multiply"),
        ("lora_unet_mid_block_to_q.on_input", "IA3 rescales"),
        ("lora_unet_mid_block_to_q.a1.weight", "GLoRA multiplies"),
        ("lora_unet_mid_block_norm.w_norm", "the weights of a norm"),
        ("oft_unet_mid_block_to_q.oft_blocks", "OFT and BOFT multiply"),
        ("lycoris_blocks_0_to_q.oft_diag", "OFT multiplies"),
        ("transformer.blocks.0.to_q.oft_R.weight", "OFT multiplies"),
        ("diffusion_model.blocks.0.to_q.oft_blocks", "OFT and BOFT multiply"),
    ],
)
@pytest.mark.parametrize("beside", [(), ("alpha",)])
def test_what_depends_on_the_base_is_refused_with_the_reason(key: str, why: str, beside: tuple[str, ...]) -> None:
    stem = key.removesuffix(".weight").rpartition(".")[0]
    with pytest.raises(ConversionError, match=why):
        identify(keys(key, *layer(stem, *beside)))


def test_parts_are_told_apart() -> None:
    _, entries = identify(FIXTURES["diffusers"][3][0])
    assert entries == {
        f"transformer.{Q}.lora_A.weight": Entry("transformer", Q, "a"),
        f"transformer.{Q}.lora_B.weight": Entry("transformer", Q, "b"),
        f"transformer.{Q}.lora_B.bias": Entry("transformer", Q, "bias"),
    }


def test_two_spellings_of_one_layer_are_refused() -> None:
    mixed = keys(*ab(f"unet.{Q}"), *ab(f"unet.{Q}", "lora.down.weight", "lora.up.weight"))
    with pytest.raises(CheckpointError, match="two spellings"):
        identify(mixed)


@pytest.mark.parametrize(
    ("strange", "kind"),
    [
        ("unet.conv_in.weight", ""),
        (f"unet.{Q}.lora_C.weight", ""),
        ("vae.x.lora_A.weight", ""),
        (f"{Q}.lora_A.weight", ""),
    ],
)
def test_key_that_is_no_part_of_a_layer_is_refused_by_name(strange: str, kind: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        identify(keys(*ab(f"unet.{Q}"), strange))
    assert strange in str(caught.value)
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    "strange", ["base_model.model.conv_in.weight", "base_model.model.classifier.lora_C.weight", "y"]
)
def test_strange_key_beside_pefts_is_refused_by_name(strange: str) -> None:
    with pytest.raises(CheckpointError, match=strange):
        identify(keys(*ab(f"base_model.model.{Q}"), strange))


def test_pefts_keys_of_diffusers_components_are_refused_when_mixed() -> None:
    with pytest.raises(CheckpointError, match="unet"):
        identify(keys(*ab(f"base_model.model.{Q}"), *ab(f"unet.{Q}")))


def test_keys_of_no_dialect_are_refused_with_every_reason() -> None:
    with pytest.raises(CheckpointError, match="no known kind") as caught:
        identify(keys("lora.something.else"))
    for dialect in DIALECTS:
        assert f"{dialect.name}: " in str(caught.value)


def test_nothing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        identify(keys())


# --- scales -----------------------------------------------------------------------------------------------------------


def scale(file: Keys, component: str | None, module: str = Q, rank: int = 4) -> float | None:
    rule = identify(file)[0].scale_rule(file, component)
    return None if rule is None else rule(module, rank)


def test_diffusers_file_without_metadata_means_scale_one() -> None:
    assert scale(keys(*ab(f"unet.{Q}")), "unet") == 1.0


def test_diffusers_metadata_counts_for_its_own_component() -> None:
    header = metadata(**{"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.r": 2, "text_encoder.lora_alpha": 1})
    file = keys(*ab(f"unet.{Q}"), *ab("text_encoder.q"), header=header)
    assert scale(file, "unet") == 2.0
    assert scale(file, "text_encoder", "q", 2) == 0.5


def test_metadata_of_text_encoder_2_is_not_taken_for_text_encoders() -> None:
    header = metadata(**{"text_encoder_2.r": 4, "text_encoder_2.lora_alpha": 8})
    with pytest.raises(CheckpointError, match="nothing of text_encoder,"):
        scale(keys(*ab("text_encoder.q"), header=header), "text_encoder")


def test_metadata_for_one_component_alone_is_refused() -> None:
    file = keys(*ab(f"unet.{Q}"), *ab("text_encoder.q"), header=metadata(**{"unet.r": 4, "unet.lora_alpha": 8}))
    assert scale(file, "unet") == 2.0
    with pytest.raises(CheckpointError, match="text_encoder"):
        scale(file, "text_encoder")


@pytest.mark.parametrize("text", ["{", "nothing", "[" * 100_000, "[]", "3", '"x"'])
@pytest.mark.parametrize("name", ["diffusers", "peft"])
def test_metadata_that_is_no_json_object_is_refused(name: str, text: str) -> None:
    plain = keys(*ab(f"unet.{Q}" if name == "diffusers" else Q), header={"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match="not (a )?JSON"):
        scale(plain, "unet" if name == "diffusers" else None)


def test_peft_state_dict_alone_says_no_scale() -> None:
    assert scale(keys(*ab(f"base_model.model.{Q}")), None) is None
    assert scale(keys(*ab(Q)), None) is None


def test_peft_scale_is_of_the_configuration_or_the_header() -> None:
    assert scale(keys(*ab(f"base_model.model.{Q}"), configs={"": CONFIG}), None) == 2.0
    assert scale(keys(*ab(Q), header=metadata(r=4, lora_alpha=1)), None) == 0.25
    two = {"unet": CONFIG, "text_encoder": CONFIG | {"lora_alpha": 2}}
    file = keys(*ab(f"unet.base_model.model.{Q}"), *ab("text_encoder.base_model.model.q"), configs=two)
    assert scale(file, "unet") == 2.0
    assert scale(file, "text_encoder") == 0.5


def test_component_without_a_configuration_of_its_own_is_refused() -> None:
    file = keys(*ab(f"unet.base_model.model.{Q}"), *ab("transformer.base_model.model.q"), configs={"unet": CONFIG})
    with pytest.raises(CheckpointError, match="transformer"):
        scale(file, "transformer")


def test_configuration_beside_diffusers_keys_is_not_passed_over() -> None:
    assert scale(keys(*ab(f"unet.{Q}"), configs={"": CONFIG}), "unet") == 2.0


def test_scale_that_is_stated_twice_is_refused() -> None:
    header = metadata(**{"unet.r": 4, "unet.lora_alpha": 4})
    with pytest.raises(CheckpointError, match="twice"):
        scale(keys(*ab(f"unet.{Q}"), header=header, configs={"": CONFIG}), "unet")
