"""Trainers' files with one thing changed: what is not whole is refused, and what does not matter changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.errors import CheckpointError, ConversionError, FamilyError, RefusedError
from adapterline.layouts import convert
from adapterline.values import Adapter, ExportOptions
from tests.line import run_line
from tests.writers.cases import CASES, Case
from tests.writers.observe import Bases, write

BY_ID = {case.id: case for case in CASES}
#: One file of each way of spelling and of each form.
WHOLE = (
    "sd-scripts-lora-flux",
    "sd-scripts-locon-sdxl",
    "lycoris-locon-tucker-sd15",
    "lycoris-loha-sd15",
    "lycoris-loha-tucker-sd15",
    "lycoris-lokr-both-factors-decomposed-sd15",
    "lycoris-lokr-tucker-sd15",
    "lycoris-dora-locon-sdxl",
    "simpletuner-lokr-sd3",
    "onetrainer-lora-comfy-flux",
    "onetrainer-lora-backup-sdxl",
    "onetrainer-lora-original-flux",
    "onetrainer-lora-legacy-flux",
    "ai-toolkit-lokr-with-a-rank-flux",
    "ai-toolkit-lora-qwenimage",
    "musubi-tuner-loha-converted-wan",
    "diffusers-lora-flux2",
)
#: Those whose alphas count.
SCALED = tuple(name for name in WHOLE if name not in ("ai-toolkit-lora-qwenimage", "diffusers-lora-flux2"))
#: Every part that a layer cannot do without.
NEEDED = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(params=WHOLE)
def case(request: pytest.FixtureRequest) -> Case:
    return BY_ID[request.param]


def tensors_of(case: Case, bases: Bases) -> Tensors:
    return case.write(bases.shapes(case.family)).tensors


def read(tensors: Mapping[str, torch.Tensor], case: Case, bases: Bases, folder: Path, family: str = "") -> Adapter:
    """What is read of these tensors and planned as an export."""
    path = folder / "last.safetensors"
    save_file(dict(tensors), path, metadata=dict(case.header) or None)
    options = ExportOptions(**case.options)
    base = bases.base(family or case.family)
    adapter = extract(load_checkpoint(str(path), options, folder), base, options)
    convert(adapter, base, options)
    return adapter


def write_in_order(tensors: Tensors, order: Callable[[list[str]], list[str]], path: Path) -> None:
    """A safetensors file with its keys, and so its bytes, in this order."""
    header: dict[str, object] = {}
    data = b""
    for key in order(list(tensors)):
        tensor = tensors[key]
        assert tensor.dtype == torch.float32
        content = tensor.numpy().tobytes()
        header[key] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_order_of_keys_changes_no_byte_of_the_export(bases: Bases, tmp_path: Path) -> None:
    case = BY_ID["onetrainer-lora-comfy-flux"]
    digests = set()
    for number, order in enumerate((list, lambda keys: keys[::-1], lambda keys: keys[1::2] + keys[::2])):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_in_order(tensors_of(case, bases), order, folder / "last.safetensors")
        digests.add(run_line(folder / "last.safetensors", bases.path(case.family), folder).bundle.digest)
    assert len(digests) == 1


def test_each_part_that_is_missing_is_refused(case: Case, bases: Bases, tmp_path: Path) -> None:
    tensors = tensors_of(case, bases)
    lost = [key for key in tensors if key.endswith(NEEDED)]
    assert len(lost) > 3
    for key in lost[:12]:
        with pytest.raises(RefusedError):
            read({name: tensor for name, tensor in tensors.items() if name != key}, case, bases, tmp_path)


@pytest.mark.parametrize("case", SCALED, indirect=True)
def test_alpha_that_one_layer_lacks_is_refused(case: Case, bases: Bases, tmp_path: Path) -> None:
    tensors = tensors_of(case, bases)
    key = next(key for key in tensors if key.endswith(".alpha"))
    with pytest.raises(CheckpointError, match="no alpha tensor"):
        read({name: tensor for name, tensor in tensors.items() if name != key}, case, bases, tmp_path)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize(
    "case", ["sd-scripts-lora-flux", "lycoris-loha-sd15", "onetrainer-lora-comfy-flux"], indirect=True
)
def test_alpha_that_is_no_scale_is_refused(case: Case, value: float, bases: Bases, tmp_path: Path) -> None:
    tensors = tensors_of(case, bases)
    key = next(key for key in tensors if key.endswith(".alpha"))
    with pytest.raises(CheckpointError, match="alpha"):
        read({**tensors, key: torch.tensor(value)}, case, bases, tmp_path)


def test_key_that_nobody_knows_is_refused_by_name(case: Case, bases: Bases, tmp_path: Path) -> None:
    tensors = tensors_of(case, bases)
    stem = next(key for key in tensors if key.endswith(NEEDED)).removesuffix(".weight").rpartition(".")[0]
    for strange in (f"{stem}.lora_C.weight", f"{stem}.scaling", "optimizer.step", f"{stem}.weight"):
        with pytest.raises(CheckpointError) as caught:
            read({**tensors, strange: torch.zeros(4, 4)}, case, bases, tmp_path)
        assert strange in str(caught.value) or "no known kind" in str(caught.value)


def test_layer_that_the_base_does_not_have_is_refused(case: Case, bases: Bases, tmp_path: Path) -> None:
    tensors = tensors_of(case, bases)
    stem = next(key for key in tensors if key.endswith(NEEDED)).removesuffix(".weight").rpartition(".")[0]
    other = re.sub(r"([._])\d+([._])", r"\g<1>77\2", stem, count=1)
    assert other != stem
    extra = {key.replace(stem, other): tensor.clone() for key, tensor in tensors.items() if key.startswith(f"{stem}.")}
    with pytest.raises(FamilyError, match="77"):
        read({**tensors, **extra}, case, bases, tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sd-scripts-lora-sd15", "sdxl"),
        ("sd-scripts-lora-sdxl", "sd15"),
        ("sd-scripts-lora-flux", "sd3"),
        ("sd-scripts-lora-flux", "flux2"),
        ("onetrainer-lora-comfy-flux2", "flux"),
        ("onetrainer-lora-comfy-sd3", "flux"),
        ("ai-toolkit-lora-qwenimage", "sd3"),
        ("simpletuner-lokr-z-image", "lumina2"),
        ("musubi-tuner-lora-hunyuan-video", "flux"),
        ("diffusers-lora-wan", "hunyuan_video"),
    ],
)
def test_adapter_of_another_base_is_refused(name: str, family: str, bases: Bases, tmp_path: Path) -> None:
    case = BY_ID[name]
    with pytest.raises(FamilyError):
        read(tensors_of(case, bases), case, bases, tmp_path, family)


def test_layer_of_another_size_is_refused(case: Case, bases: Bases, tmp_path: Path) -> None:
    tensors = tensors_of(case, bases)
    for suffix in ("lora_up.weight", "lora_B.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a"):
        for key in [key for key in tensors if key.endswith(suffix)][:1]:
            longer = torch.cat([tensors[key], tensors[key]], dim=1 if "hada_w1_a" in key and "tucker" in case.id else 0)
            with pytest.raises(RefusedError):
                read({**tensors, key: longer}, case, bases, tmp_path)


def test_layer_in_the_spelling_of_two_implementations_is_refused(bases: Bases, tmp_path: Path) -> None:
    case = BY_ID["sd-scripts-lora-flux"]
    tensors = tensors_of(case, bases)
    theirs, ours = "lora_unet_double_blocks_0_img_attn_proj", "lora_unet_transformer_blocks_0_attn_to_out_0"
    again = {
        key.replace(theirs, ours): tensor.clone() for key, tensor in tensors.items() if key.startswith(f"{theirs}.")
    }
    assert again
    with pytest.raises(CheckpointError, match="both change transformer.transformer_blocks.0.attn.to_out.0"):
        read({**tensors, **again}, case, bases, tmp_path)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("onetrainer-lora-comfy-flux", "lora_A.weight", "lora_down.weight"),
        ("onetrainer-lora-backup-sdxl", "lora_up.weight", "lora_B.weight"),
        ("onetrainer-lora-original-flux", "lora_B.weight", "lora_up.weight"),
    ],
)
def test_part_in_two_spellings_is_refused(name: str, one: str, other: str, bases: Bases, tmp_path: Path) -> None:
    case = BY_ID[name]
    tensors = tensors_of(case, bases)
    key = next(key for key in tensors if key.endswith(one))
    with pytest.raises(CheckpointError, match="two spellings"):
        read({**tensors, key.replace(one, other): tensors[key].clone()}, case, bases, tmp_path)


def test_tensors_of_two_types_in_one_layer_are_refused(bases: Bases, tmp_path: Path) -> None:
    case = BY_ID["lycoris-loha-sd15"]
    tensors = tensors_of(case, bases)
    stem = next(key for key in tensors if key.endswith("hada_w1_a")).rpartition(".")[0]
    with pytest.raises(CheckpointError, match="several adapter types"):
        read({**tensors, f"{stem}.lora_up.weight": torch.ones(4, 4)}, case, bases, tmp_path)


def test_magnitude_that_one_layer_lacks_is_refused(bases: Bases, tmp_path: Path) -> None:
    case = BY_ID["lycoris-dora-locon-sdxl"]
    tensors = tensors_of(case, bases)
    key = next(key for key in tensors if key.endswith("unet_middle_block_1_proj_in.dora_scale"))
    with pytest.raises(ConversionError, match="all or none"):
        read({name: tensor for name, tensor in tensors.items() if name != key}, case, bases, tmp_path)


def test_factors_in_integers_are_refused(bases: Bases, tmp_path: Path) -> None:
    case = BY_ID["sd-scripts-lora-flux"]
    tensors = tensors_of(case, bases)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    with pytest.raises(CheckpointError, match="I32"):
        read({**tensors, key: torch.ones(tensors[key].shape, dtype=torch.int32)}, case, bases, tmp_path)


def test_written_files_are_the_same_each_time(bases: Bases, tmp_path: Path) -> None:
    contents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        contents.append(write(BY_ID["lycoris-loha-sd15"], bases, folder)[0].read_bytes())
    assert contents[0] == contents[1]
