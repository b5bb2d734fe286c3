from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import DIALECTS, dialect_named, identify
from adapterline.checkpoints.dialects.base import Entry
from adapterline.errors import CheckpointError
from adapterline.values import TensorInfo

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
Q = "down_blocks.0.attn.to_q"


@dataclass(frozen=True)
class Keys:
    """Keys as a file has them; a dialect looks at nothing else."""

    tensors: Mapping[str, TensorInfo]
    header: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def keys(*names: str, header: Mapping[str, str] | None = None, configs: Mapping[str, Any] | None = None) -> Keys:
    return Keys({name: TensorInfo("F32", (4, 4)) for name in names}, header or {}, configs or {})


def ab(stem: str, a: str = "lora_A.weight", b: str = "lora_B.weight") -> tuple[str, str]:
    return f"{stem}.{a}", f"{stem}.{b}"


def metadata(**values: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(values)}


#: What each dialect writes, and what its keys mean: (component, module).
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


def test_every_dialect_has_files_here() -> None:
    assert {dialect.name for dialect in DIALECTS} == set(FIXTURES)
    assert all(dialect_named(name).name == name for name in FIXTURES)


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
        (f"unet.{Q}.hada_w1_a", "LoHa"),
        (f"unet.{Q}.lokr_w1", "LoKr"),
        ("unet.conv_in.weight", ""),
        (f"unet.{Q}.alpha", "alpha"),
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
    with pytest.raises(CheckpointError, match="no known kind"):
        identify(keys("lora_unet_down_blocks_0_to_q.lora_down.weight", "lora_unet_down_blocks_0_to_q.alpha"))


def test_nothing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        identify(keys())


def test_adapter_of_another_type_is_refused_by_its_configuration() -> None:
    file = keys("base_model.model.x.hada_w1_a", configs={"": {"peft_type": "LOHA", "r": 4}})
    with pytest.raises(CheckpointError, match="LOHA"):
        identify(file)


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
