"""Which fields of a safetensors header are published: adapterline's own, and those that the user names.

A trainer's header says much of the machine that it ran on: paths, the names of hosts and users, sample prompts, the
folders and tags of the dataset. None of it is needed to load the adapter, so none of it passes unasked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from adapterline.errors import CheckpointError, ConversionError
from adapterline.values import ExportOptions, FilePlan, Plan, Source, Transform

#: What the layouts write. Of values: the format, the adapter's structure, its family and its name.
WRITTEN = frozenset(
    {
        "format",
        "lora_adapter_metadata",
        "modelspec.architecture",
        "modelspec.date",
        "modelspec.hash_sha256",
        "modelspec.implementation",
        "modelspec.sai_model_spec",
        "modelspec.title",
        "ss_base_model_version",
        "ss_network_alpha",
        "ss_network_dim",
        "ss_network_module",
        "ss_output_name",
        "ss_v2",
        "sshs_legacy_hash",
        "sshs_model_hash",
    }
)
MAX_KEPT = 1 << 20  # bytes of UTF-8, of all fields that are kept: a consumer reads the header before anything else
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def apply_header_policy(plan: Plan, source: Source, options: ExportOptions) -> Plan:
    """The plan, its weights' headers with the fields of the checkpoint's that `options.keep_header` names.

    CheckpointError for a field that the checkpoint does not have. ConversionError for one that adapterline writes
    itself, for one that is no text, for more than `MAX_KEPT` bytes, and for a plan that says anything else.
    """
    kept = _kept(source, options.keep_header)
    files = tuple(_with(file, kept) for file in plan.files)
    done = Transform(kind="keep-header", detail=", ".join(kept)) if kept else None
    return replace(plan, files=files, transforms=(*plan.transforms, *([done] if done else [])))


def _kept(source: Source, names: tuple[str, ...]) -> dict[str, str]:
    if missing := [name for name in names if name not in source.header]:
        there = ", ".join(sorted(source.header)[:20]) or "no header, or one without fields"
        raise CheckpointError(
            f"The header of {source.name} has no field {missing[0]!r}.",
            expected=f"one that --keep-header can keep: {there}",
            remedy="Correct --keep-header, or leave it out.",
        )
    kept = {name: source.header[name] for name in sorted(set(names))}
    for name, value in kept.items():
        if name in WRITTEN:
            raise ConversionError(
                f"The header field {name!r} is adapterline's own.",
                expected="a field that the exported file does not have",
                remedy=f"Leave --keep-header {name} out: what is written there fits the exported file.",
            )
        if _NO_TEXT.search(name) or _NO_TEXT.search(value):
            raise ConversionError(
                f"The header field {name!r} of {source.name} is no text.",
                expected="Unicode without control characters",
                remedy=f"Leave --keep-header {name!r} out.",
            )
    if (size := _size(kept)) > MAX_KEPT:
        raise ConversionError(
            f"The header fields {', '.join(kept)} take {size:,} bytes.",
            expected=f"at most {MAX_KEPT:,}",
            remedy="Keep fewer of them.",
        )
    return kept


def _with(file: FilePlan, kept: Mapping[str, str]) -> FilePlan:
    if unknown := {*file.header, *file.hashes} - WRITTEN:
        raise ConversionError(
            f"{file.path} would have the header field {min(unknown)!r}.",
            expected="fields of adapterline.package.header.WRITTEN alone",
            remedy="This is a bug of adapterline: report it.",
        )
    if file.role != "weights" or file.content is not None:
        return file
    return replace(file, header={**file.header, **kept})


def _size(fields: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in fields.items())
