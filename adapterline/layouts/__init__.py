"""Writers of layouts. Each is a file; adding one later adds files beside the old ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from adapterline.families.base import Base
from adapterline.layouts.base import LayoutWriter
from adapterline.layouts.diffusers import Diffusers
from adapterline.layouts.embeddings import plan_embeddings
from adapterline.layouts.exact import as_written
from adapterline.layouts.kohya import Kohya
from adapterline.layouts.norms import norm_transforms, with_norms
from adapterline.layouts.peft import Peft
from adapterline.values import Adapter, ExportOptions, Plan

LAYOUTS: dict[str, LayoutWriter] = {layout.name: layout for layout in (Diffusers(), Kohya(), Peft())}


def convert(
    adapter: Adapter, base: Base, options: ExportOptions, name: str = "adapter", finished_at: datetime | None = None
) -> Plan:
    """What is to be written, in every layout that was asked for. ConversionError if one cannot carry the adapter.

    `name` is what the export is called and `finished_at` when its training ended, for layouts whose files say it.
    """
    components, done = as_written(adapter, base.family, options)
    base = replace(base, pipeline=adapter.pipeline or base.pipeline)
    by_layout = {
        layout: LAYOUTS[layout].plan(components, base, options, name, finished_at) for layout in options.layouts
    }
    embeddings = plan_embeddings(adapter.embeddings, base.pipeline)
    plans = (*by_layout.values(), embeddings)
    return Plan(
        files=with_norms(tuple(file for plan in plans for file in plan.files), adapter.norms, base.family),
        loads=tuple(load for plan in plans for load in plan.loads),
        transforms=(
            *done,
            *(
                each.model_copy(update={"layout": layout})
                for layout, plan in by_layout.items()
                for each in plan.transforms
            ),
            *embeddings.transforms,
            *norm_transforms(adapter.norms),
        ),
    )
