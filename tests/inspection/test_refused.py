"""What is read and refused is told, with the reason; what is no adapter is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.cli import main
from adapterline.errors import CheckpointError, CheckpointIncompleteError, RefusedError
from adapterline.inspection import Inspection, inspect
from adapterline.values import ExportOptions

Q = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"


def pair(module: str, rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": torch.zeros(rank, 16), f"{module}.lora_B.weight": torch.zeros(16, rank)}


LORA = pair(Q) | pair(OUT)
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}


def peft(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def reason_of(found: Inspection, path: Path, tmp_path: Path) -> str:
    """What the export would say, which is the first warning."""
    with pytest.raises(RefusedError) as refusal:
        load_checkpoint(str(path), ExportOptions(), tmp_path)
    assert found.warnings[0] == f"It cannot be exported: {refusal.value}"
    return found.warnings[0]


@pytest.mark.parametrize(
    ("config", "more", "reason"),
    [
        ({"modules_to_save": ["conv_out"]}, {"base_model.model.conv_out.weight": (4, 16, 3, 3)}, "trained whole"),
        ({"modules_to_save": ["time_embedding"]}, {"base_model.model.time_embedding.linear_1.bias": (64,)}, "whole"),
        ({"bias": "lora_only"}, {f"{OUT}.base_layer.bias": (16,)}, "biases of the base"),
        ({"bias": "lora_only"}, {f"{OUT}.bias": (16,)}, "biases of the base"),
        ({"init_lora_weights": "pissa"}, {}, "changes the base weights"),
        ({"a_setting_of_2031": 3}, {}, "a_setting_of_2031"),
        ({}, {"base_model.model.conv_in.weight": (16, 4, 3, 3)}, "no part of a LoRA layer"),
    ],
)
def test_lora_with_what_no_lora_file_carries_is_told_in_numbers(
    tmp_path: Path, config: dict[str, Any], more: dict[str, tuple[int, ...]], reason: str
) -> None:
    folder = peft(tmp_path / "out", config, LORA | {key: torch.zeros(shape) for key, shape in more.items()})
    found = inspect(folder)
    assert (found.container, found.dialect, found.family) == ("peft-folder", "peft", "sd15")
    assert reason in reason_of(found, folder, tmp_path)
    unet = found.components["unet"]
    assert (unet.adapter_type, unet.rank, unet.alpha, unet.modules) == ("lora", 4, 6, 2)
    assert unet.parameters == sum(tensor.numel() for tensor in LORA.values())


def test_alpha_of_a_refused_lora_is_that_of_its_effect(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3}, "use_rslora": True, "bias": "all"}
    folder = peft(tmp_path / "out", patterns, pair(Q, 2) | pair(OUT))
    unet = inspect(folder).components["unet"]
    assert unet.rank == [2, 4]
    assert unet.alpha == pytest.approx([3 * 2**0.5, 12])


def test_type_that_is_not_known_is_told_by_its_name(tmp_path: Path) -> None:
    folder = peft(tmp_path / "out", {"peft_type": "SOMETHING"}, {f"{Q}.something_u": torch.zeros(4, 16)})
    found = inspect(folder)
    assert "SOMETHING" in reason_of(found, folder, tmp_path)
    assert (found.components["unet"].adapter_type, found.components["unet"].rank) == ("something", 4)


def test_lora_with_layers_of_another_type_is_told_to_be_both(tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_0_attentions_0_{}"
    layer = {f"{stem.format('proj_in')}.lora_{name}.weight": torch.zeros(4, 4) for name in ("down", "up")}
    tensors = {
        **layer,
        f"{stem.format('proj_in')}.alpha": torch.tensor(2.0),
        f"{stem.format('norm')}.w_norm": torch.zeros(4),
    }
    save_file(tensors, tmp_path / "l.safetensors", {"ss_network_module": "lycoris.kohya"})
    unet = inspect(tmp_path / "l.safetensors").components["unet"]
    assert (unet.adapter_type, unet.rank, unet.alpha, unet.modules) == ("lora+norm", 4, 2, 2)


def test_scale_that_is_refused_is_told_with_what_is_stated(tmp_path: Path) -> None:
    """rs_lora with whole factors: nothing tells the scale."""
    module = "lora_unet_down_blocks_0_attentions_0_proj_in"
    header = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": '{"algo": "lokr", "rs_lora": "True"}',
        "ss_network_dim": "8",
    }
    tensors = {f"{module}.lokr_w{n}": torch.zeros(4, 4) for n in (1, 2)} | {f"{module}.alpha": torch.tensor(16.0)}
    save_file(tensors, tmp_path / "l.safetensors", header)
    found = inspect(tmp_path / "l.safetensors")
    assert (found.components["unet"].rank, found.components["unet"].alpha) == (8, 16)
    assert "rs_lora" in found.warnings[0]


@pytest.mark.parametrize("name", ["empty.pt", "empty.bin", "empty.safetensors"])
def test_empty_state_dict_is_told_to_be_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file({}, path)
    else:
        torch.save({}, path)
    found = inspect(path)
    assert found.container == ("safetensors" if path.suffix == ".safetensors" else "torch")
    assert (found.components, found.dialect, found.trainer, found.family) == ({}, None, None, None)
    assert (found.files, found.size) == ((name,), path.stat().st_size)
    assert len(found.digest) == 64
    reason_of(found, path, tmp_path)
    assert Inspection.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("what", ["pissa", "empty"])
def test_exit_code_of_what_is_told_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, as_json: bool
) -> None:
    torch.save({}, tmp_path / "empty.pt")
    path = tmp_path / "empty.pt" if what == "empty" else peft(tmp_path / "out", {"init_lora_weights": "pissa"}, LORA)
    monkeypatch.setattr(sys, "argv", ["adapterline", "inspect", str(path), *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert "It cannot be exported" in out
    assert err == ""
    assert not as_json or json.loads(out)["container"] in ("torch", "peft-folder")


@pytest.mark.parametrize(
    "tensors",
    [
        {"conv_in.weight": torch.zeros(4, 4)},
        {"diffusion.mid.lora_left": torch.zeros(4, 8)},
        {f"{Q}.lora_A.weight": torch.zeros(4, 8)},
        {f"{Q}.lora_A.weight": torch.zeros(()), f"{Q}.lora_B.weight": torch.zeros(4, 4)},
    ],
)
def test_what_is_no_adapter_or_is_broken_is_refused_as_ever(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "l.safetensors", ExportOptions(alpha=4))


def test_what_is_not_whole_yet_is_refused_as_ever(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointIncompleteError):
        inspect(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect(tmp_path / "nothing.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "torn.pt")
