"""Writers of layouts. Each is a file; adding one later adds files beside the old ones."""

from __future__ import annotations

from dataclasses import replace

from adapterline.families.base import Base
from adapterline.layouts.base import LayoutWriter
from adapterline.layouts.diffusers import Diffusers
from adapterline.layouts.embeddings import plan_embeddings
from adapterline.layouts.exact import as_written
from adapterline.layouts.norms import norm_transforms, with_norms
from adapterline.values import Adapter, ExportOptions, Plan

LAYOUTS: dict[str, LayoutWriter] = {layout.name: layout for layout in (Diffusers(),)}


def convert(adapter: Adapter, base: Base, options: ExportOptions) -> Plan:
    """What is to be written, in every layout that was asked for. ConversionError if one cannot carry the adapter."""
    components, done = as_written(adapter, base.family, options)
    base = replace(base, pipeline=adapter.pipeline or base.pipeline)
    plans = [LAYOUTS[name].plan(components, base, options) for name in dict.fromkeys(options.layouts)]
    plans.append(plan_embeddings(adapter.embeddings, base.pipeline))
    return Plan(
        files=with_norms(tuple(file for plan in plans for file in plan.files), adapter.norms, base.family),
        loads=tuple(load for plan in plans for load in plan.loads),
        transforms=(
            *done,
            *(transform for plan in plans for transform in plan.transforms),
            *norm_transforms(adapter.norms),
        ),
    )
