"""Damage to `lora_adapter_metadata`, which tells a loader ranks, alphas and kinds of layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.mutants.copy import METADATA, Copy, Layer, NotApplicableError, components, modules
from tests.mutants.tensorfile import TensorFile


def _of(copy: Copy, key: str, suits: Callable[[Any], bool] = bool) -> tuple[TensorFile, dict[str, Any], str]:
    """(file, its metadata, the full name of a setting): of one of the components."""
    file, metadata = copy.metadata()
    found = [name for name, value in metadata.items() if name.endswith(f".{key}") and suits(value)]
    if not found:
        raise NotApplicableError
    return file, metadata, copy.choose.choice(found)


def _write(file: TensorFile, metadata: Mapping[str, Any]) -> None:
    file.header[METADATA] = json.dumps(metadata)


def _with_prefix(copy: Copy, file: TensorFile, name: str) -> list[Layer]:
    return [layer for layer in copy.layers_in(file) if layer.stem.startswith(f"{name.partition('.')[0]}.")]


def _differs(copy: Copy, layers: list[Layer]) -> list[Layer]:
    """Those that have another scale than 1, without a header: alpha is then the rank."""
    deltas = copy.exported.adapter.components
    scaled = copy.exported.options.scale == "header"
    return [layer for layer in layers if scaled and deltas[layer.component][layer.module].scale != 1]


def alpha_lost(copy: Copy) -> tuple[str, ...]:
    """the metadata is gone, and with it alpha"""
    file, _ = copy.metadata()
    layers = _differs(copy, copy.layers_in(file))
    if not layers:
        raise NotApplicableError
    del file.header[METADATA]
    return components(*layers)


def alpha_of_one_component_lost(copy: Copy) -> tuple[str, ...]:
    """the metadata has only one of two components"""
    file, metadata, name = _of(copy, "lora_alpha")
    kept = {key: value for key, value in metadata.items() if not key.startswith(f"{name.partition('.')[0]}.")}
    if not kept:
        raise NotApplicableError
    _write(file, kept)
    return components(*_with_prefix(copy, file, name))


def alpha_doubled(copy: Copy) -> tuple[str, ...]:
    """alpha of one component is twice as large"""
    file, metadata, name = _of(copy, "lora_alpha")
    metadata[name] *= 2
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def alpha_one_off(copy: Copy) -> tuple[str, ...]:
    """alpha of one component is larger by a hundredth"""
    file, metadata, name = _of(copy, "lora_alpha")
    metadata[name] *= 1.01
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def stale_metadata(copy: Copy) -> tuple[str, ...]:
    """the scale is in the factors, and the metadata that says it is there too: it counts twice"""
    file = copy.choose.choice(list(copy.files.values()))
    layers = copy.layers_in(file)
    if METADATA in file.header or any("left" in layer.keys for layer in layers):
        raise NotApplicableError
    deltas = copy.exported.adapter.components
    layers = [layer for layer in layers if deltas[layer.component][layer.module].scale != 1]
    if not layers:
        raise NotApplicableError
    metadata: dict[str, Any] = {}
    for layer in copy.layers_in(file):
        prefix, rank = layer.stem.partition(".")[0], len(copy.get(layer, "a"))
        scale = deltas[layer.component][layer.module].scale
        metadata |= {f"{prefix}.r": rank, f"{prefix}.lora_alpha": scale * rank, f"{prefix}.peft_type": "LORA"}
        metadata.setdefault(f"{prefix}.target_modules", []).append(layer.module)
    _write(file, metadata)
    return components(*layers)


def metadata_of_another_adapter(copy: Copy) -> tuple[str, ...]:
    """the metadata is that of an adapter of twice the rank"""
    file, metadata, name = _of(copy, "r")
    metadata[name] *= 2
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def rank_pattern_lost(copy: Copy) -> tuple[str, ...]:
    """the metadata does not say that some layers have another rank"""
    file, metadata, name = _of(copy, "rank_pattern")
    metadata[name] = {}
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def alpha_pattern_lost(copy: Copy) -> tuple[str, ...]:
    """the metadata does not say that some layers have another alpha"""
    file, metadata, name = _of(copy, "alpha_pattern")
    metadata[name] = {}
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def alpha_pattern_edited(copy: Copy) -> tuple[str, ...]:
    """the metadata says another alpha for one layer"""
    file, metadata, name = _of(copy, "alpha_pattern")
    pattern = copy.choose.choice(sorted(metadata[name]))
    metadata[name][pattern] *= 2
    _write(file, metadata)
    module = pattern.removeprefix("^").replace("\\", "")
    return modules(*(layer for layer in _with_prefix(copy, file, name) if layer.module == module))


def alpha_pattern_added(copy: Copy) -> tuple[str, ...]:
    """the metadata says an alpha of its own for a layer that has none"""
    file, metadata, name = _of(copy, "alpha_pattern", lambda value: True)
    layer = copy.choose.choice(_with_prefix(copy, file, name))
    metadata[name] = {layer.module: 32, **metadata[name]}  # the first that matches counts
    _write(file, metadata)
    return modules(layer)


def rslora_switched_on(copy: Copy) -> tuple[str, ...]:
    """the metadata says that alpha is divided by the root of the rank"""
    file, metadata, name = _of(copy, "lora_alpha")
    prefix = name.partition(".")[0]
    metadata[f"{prefix}.use_rslora"] = True
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def dora_switched_off(copy: Copy) -> tuple[str, ...]:
    """the metadata says that there is no DoRA where there is"""
    file, metadata, name = _of(copy, "use_dora")
    metadata[name] = False
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def dora_switched_on(copy: Copy) -> tuple[str, ...]:
    """the metadata says that there is DoRA where there is none"""
    file, metadata, name = _of(copy, "use_dora", lambda value: value is False)
    metadata[name] = True
    _write(file, metadata)
    return components(*_with_prefix(copy, file, name))


def target_left_out(copy: Copy) -> tuple[str, ...]:
    """the metadata does not list one of the modules"""
    file, metadata, name = _of(copy, "target_modules", lambda value: isinstance(value, list) and len(value) > 1)
    module = copy.choose.choice(sorted(metadata[name]))
    metadata[name] = [other for other in metadata[name] if other != module]
    layers = [layer for layer in _with_prefix(copy, file, name) if layer.module == module]
    if any(module.endswith(f".{other}") for other in metadata[name]) or not layers:
        raise NotApplicableError
    _write(file, metadata)
    return modules(*layers)


def unknown_setting(copy: Copy) -> tuple[str, ...]:
    """the metadata has a setting that the installed PEFT does not know"""
    file, metadata, name = _of(copy, "r")
    metadata[f"{name.partition('.')[0]}.of_a_newer_peft"] = 1
    _write(file, metadata)
    return ("of_a_newer_peft",)


def metadata_is_no_json(copy: Copy) -> tuple[str, ...]:
    """the metadata is cut off"""
    file, _ = copy.metadata()
    file.header[METADATA] = file.header[METADATA][:-7]
    return ()
