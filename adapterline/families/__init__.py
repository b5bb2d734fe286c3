"""What adapterline knows of each family of pipelines: data, one entry for each LoRA mixin of diffusers.

A pipeline belongs to the family whose mixin comes first in its class's method resolution order, so that image-to-image,
inpainting and control pipelines need no entry of their own.
"""

from __future__ import annotations

from adapterline.families.family import Component, Family
from adapterline.families.images import IMAGES
from adapterline.families.others import OTHERS
from adapterline.families.videos import VIDEOS

__all__ = ["COMPONENT_NAMES", "FAMILIES", "Component", "Family", "family_named"]

FAMILIES: tuple[Family, ...] = (*IMAGES, *VIDEOS, *OTHERS)

#: Every name that a component of a supported pipeline can have: what a key or a sub-folder may begin with.
COMPONENT_NAMES: tuple[str, ...] = tuple(
    dict.fromkeys(component.name for family in FAMILIES for component in family.components)
)


def family_named(name: str) -> Family:
    """The family of this name. KeyError if there is none."""
    return {family.name: family for family in FAMILIES}[name]
