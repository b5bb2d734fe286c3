"""What a layout is: one way of writing an adapter that some consumers load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from adapterline.families.base import Base
from adapterline.values import Adapter, ExportOptions, FilePlan, LoadCall, Transform


@dataclass(frozen=True)
class LayoutPlan:
    """The files of one layout, the calls that load them, and what was done to the factors."""

    files: tuple[FilePlan, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]


class LayoutWriter(Protocol):
    """Plans the files of one layout."""

    name: str

    def plan(self, adapter: Adapter, base: Base, options: ExportOptions) -> LayoutPlan:
        """ConversionError if this layout cannot carry the adapter exactly."""
        ...
