"""Ideogram 4."""

from __future__ import annotations

from adapterline.families.originals.base import rename

IDEOGRAM4 = (
    rename("layers.{}.attention.qkv", *(f"layers.{{}}.attention.to_{name}" for name in "qkv")),
    rename("layers.{}.attention.o", "layers.{}.attention.to_out.0"),
)
