"""What a layout is: one way of writing an adapter that some consumers load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from adapterline.deltas import Kronecker, LowRank
from adapterline.families.base import Base
from adapterline.values import ExportOptions, FilePlan, LoadCall, Transform

#: The adapter as every layout writes it: module by module, by component.
Written = Mapping[str, Mapping[str, LowRank | Kronecker]]


@dataclass(frozen=True)
class LayoutPlan:
    """The files of one layout, the calls that load them, and what was done to the factors."""

    files: tuple[FilePlan, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]


class LayoutWriter(Protocol):
    """Plans the files of one layout."""

    name: str

    def plan(
        self, components: Written, base: Base, options: ExportOptions, name: str, finished_at: datetime | None
    ) -> LayoutPlan:
        """`name` is the export's, `finished_at` the end of its training run, if that is known.

        ConversionError if this layout cannot carry the adapter exactly.
        """
        ...
