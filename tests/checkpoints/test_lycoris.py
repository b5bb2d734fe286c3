"""LyCORIS itself as the witness: it wraps a model, and its forward says what a file that it saved means."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.deltas import Delta
from adapterline.errors import CheckpointError, RefusedError
from adapterline.families.base import read_base
from adapterline.values import Adapter, ExportOptions
from tests.families.tiny import CASES
from tests.line import run_line

LINEAR = [r"transformer_blocks\.0\.attn\.to_q", r"single_transformer_blocks\.0\.proj_out"]
MIXED = [
    r"down_blocks\.1\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q",
    r"down_blocks\.1\.attentions\.0\.proj_in",
    r"down_blocks\.0\.resnets\.0\.conv1",
    r"down_blocks\.0\.downsamplers\.0\.conv",
]
MODELS = {"flux": ("transformer", LINEAR), "sd15": ("unet", MIXED)}
#: Arguments of the network: everything that it can store without the base's weights.
KINDS: dict[str, dict[str, Any]] = {
    "locon": {"network_module": "locon"},
    "locon-tucker": {"network_module": "locon", "use_tucker": True},
    "locon-scalar": {"network_module": "locon", "use_scalar": True},
    "locon-rslora": {"network_module": "locon", "rs_lora": True},
    "dylora": {"network_module": "dylora", "block_size": 1},
    "dylora-blocks": {"network_module": "dylora", "block_size": 2, "lora_dim": 6, "conv_lora_dim": 4},
    "dylora-one-block": {"network_module": "dylora", "block_size": 2},
    "loha": {"network_module": "loha"},
    "loha-tucker": {"network_module": "loha", "use_tucker": True},
    "loha-rslora": {"network_module": "loha", "rs_lora": True},
    "lokr": {"network_module": "lokr", "factor": 4},
    "lokr-automatic-factor": {"network_module": "lokr"},
    "lokr-both-decomposed": {"network_module": "lokr", "decompose_both": True, "lora_dim": 1, "conv_lora_dim": 1},
    "lokr-whole": {"network_module": "lokr", "full_matrix": True},
    "lokr-tucker": {"network_module": "lokr", "use_tucker": True, "factor": 2, "conv_lora_dim": 1},
    "lokr-unbalanced": {"network_module": "lokr", "factor": 4, "unbalanced_factorization": True},
    "lokr-rslora": {"network_module": "lokr", "factor": 4, "rs_lora": True, "conv_lora_dim": 1},
    "full": {"network_module": "full"},
    "dora": {"network_module": "locon", "weight_decompose": True, "wd_on_out": True},
    "dora-loha": {"network_module": "loha", "weight_decompose": True, "wd_on_out": True},
    "dora-lokr": {"network_module": "lokr", "factor": 4, "weight_decompose": True, "wd_on_out": True},
}


@dataclass(frozen=True)
class Trained:
    """A model that LyCORIS wraps, what it saved, and where."""

    network: Any
    layers: dict[str, Any]  # as they were, by the name of what wraps them
    checkpoint: Path
    base: Path
    component: str

    def read(self) -> Adapter:
        options = ExportOptions()
        source = load_checkpoint(str(self.checkpoint), options, self.checkpoint.parent)
        return extract(source, read_base(self.base), options)


@pytest.fixture(autouse=True)
def _whole_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """DyLoRA's forward draws a number of blocks each time; a file has all of them."""
    monkeypatch.setattr("random.randint", lambda least, most: most)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("LyCORIS")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def train(family: str, folder: Path, **arguments: Any) -> Trained:
    """Random values in every trainable parameter: as if trained."""
    from lycoris import LycorisNetwork

    component, names = MODELS[family]
    model = CASES[family].build(component).requires_grad_(False)
    layers = {f"lycoris_{name.replace('.', '_')}": layer for name, layer in copy.deepcopy(model).named_modules()}
    LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "enable_conv": True})
    options = {"lora_dim": 2, "conv_lora_dim": 2, "alpha": 3.0, "conv_alpha": 1.0, **arguments}
    network = LycorisNetwork(model, **options)
    network.apply_to()
    assert len(network.loras) == len(names)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = parameter.data + 0.1 * noise if "dora_scale" in name or "full" in name else noise
    network.eval()
    checkpoint = folder / "last.safetensors"
    network.save_weights(str(checkpoint), None, header_of(arguments))
    return Trained(network, layers, checkpoint, CASES[family].write(folder / "base"), component)


def header_of(arguments: dict[str, Any]) -> dict[str, str]:
    """DyLoRA's as sd-scripts writes them; nothing else of a file depends on them."""
    algorithm = arguments["network_module"]
    stated = {"algo": algorithm, "block_size": str(arguments.get("block_size", 4))} if algorithm == "dylora" else {}
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(stated)}


def effect(lora: Any, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, what the wrapped layer's own forward makes of them), in float64."""
    lora.double()
    lora.org_module[0].double()
    generator = torch.Generator().manual_seed(3)
    shape = (6, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 7, 7)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return x, lora.forward(x)


def ours(delta: Delta, layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The same by the delta: with a magnitude as DoRA defines it (arXiv:2402.09353, equation 5)."""
    change = delta.apply(torch.eye(layer.weight[0].numel(), dtype=torch.float64)).reshape(layer.weight.shape)
    weight = layer.weight + change
    if delta.magnitude is not None:
        rows = weight.flatten(1).norm(dim=1)
        weight = weight * (delta.magnitude.double().flatten() / rows).reshape(-1, *[1] * (weight.dim() - 1))
    bias = layer.bias
    if delta.bias is not None:
        bias = (0 if bias is None else bias) + delta.bias.double() * delta.scale
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", MODELS)
def test_file_means_what_lycoris_computes(family: str, kind: str, tmp_path: Path) -> None:
    trained = train(family, tmp_path, **KINDS[kind])
    deltas = trained.read().components[trained.component]
    assert len(deltas) == len(trained.network.loras)
    by_name = {f"lycoris_{module.replace('.', '_')}": delta for module, delta in deltas.items()}
    for lora in trained.network.loras:
        layer = trained.layers[lora.lora_name].double()
        x, theirs = effect(lora, layer)
        with torch.no_grad():
            found, plain = ours(by_name[lora.lora_name], layer, x), layer(x)
        changed = float((theirs - plain).norm())
        assert changed > 1e-3, "it does something"
        assert float((found - theirs).norm()) < 1e-5 * changed, lora.lora_name


@pytest.mark.parametrize("kind", ["locon-tucker", "loha-tucker", "lokr-tucker", "full", "dora-lokr", "dylora-blocks"])
def test_what_is_exported_is_proven(kind: str, tmp_path: Path) -> None:
    trained = train("sd15", tmp_path, **KINDS[kind])
    report = run_line(trained.checkpoint, trained.base, tmp_path).report()
    assert report.passed, report.failures


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"network_module": "diag-oft"}, "depends on the base weights"),
        ({"network_module": "boft"}, "depends on the base weights"),
        ({"network_module": "ia3"}, "depends on the base weights"),
        ({"network_module": "glora"}, "depends on the base weights"),
        ({"network_module": "locon", "weight_decompose": True, "wd_on_out": False}, "one for each input"),
        ({"network_module": "tlora"}, "no part of a LoRA layer"),
    ],
    ids=lambda value: value["network_module"] if isinstance(value, dict) else "",
)
def test_what_depends_on_the_base_is_refused(kind: dict[str, Any], why: str, tmp_path: Path) -> None:
    trained = train("flux", tmp_path, **kind)
    with pytest.raises(RefusedError, match=why):
        trained.read()


def test_whole_factors_of_a_rank_stabilized_lokr_have_no_scale(tmp_path: Path) -> None:
    trained = train("flux", tmp_path, network_module="lokr", full_matrix=True, rs_lora=True)
    header = {"ss_network_args": '{"algo": "lokr", "rs_lora": "True", "full_matrix": "True"}'}
    trained.network.save_weights(str(trained.checkpoint), None, header)
    with pytest.raises(CheckpointError, match="nothing tells its scale"):
        trained.read()


def test_blocks_that_the_header_does_not_size_are_lycoris_own_default(tmp_path: Path) -> None:
    trained = train("flux", tmp_path, network_module="dylora", lora_dim=8)
    header = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "dylora"}'}
    trained.network.save_weights(str(trained.checkpoint), None, header)
    for delta in trained.read().components["transformer"].values():
        assert delta.scale == 3.0 / 2, "alpha 3, two blocks of 4"
    assert all(lora.block_size == 4 for lora in trained.network.loras)
