"""From a name to a shipped base: its alias, its Hub id, or a Hub id that the same model had."""

from __future__ import annotations

import functools
import json

from adapterline.families import FAMILIES, Family
from adapterline.families.shipped import SHIPPED, ShippedBase, shipped

#: Repositories that were moved; the Hub forwards most of them.
_MOVED = {
    "runwayml/stable-diffusion-v1-5": "sd15",
    "thudm/cogvideox-2b": "cogvideox-2b",
    "thudm/cogvideox-5b": "cogvideox-5b",
    "thudm/cogvideox-5b-i2v": "cogvideox-5b-i2v",
    "thudm/cogvideox1.5-5b": "cogvideox1.5-5b",
    "thudm/cogvideox1.5-5b-i2v": "cogvideox1.5-5b-i2v",
    "thudm/cogview4-6b": "cogview4",
}
_BY_ALIAS = {base.alias: base for base in SHIPPED}
_BY_MODEL = {base.model.lower(): base for base in SHIPPED} | {id: _BY_ALIAS[alias] for id, alias in _MOVED.items()}


def shipped_for(name: str) -> ShippedBase | None:
    """The shipped base of an alias or of a Hub id without revision, in whatever case; None if there is none."""
    return _BY_ALIAS.get(name) or _BY_MODEL.get(name.lower())


@functools.cache
def shipped_family(alias: str) -> Family:
    """The family of a shipped base, told without diffusers. KeyError if there is none of this alias."""
    folder = shipped(alias)
    if folder is None:
        raise KeyError(alias)
    index = json.loads((folder / "model_index.json").read_bytes())
    pipeline = index["_class_name"]
    if own := [family for family in FAMILIES if family.pipeline == pipeline]:
        return own[0]
    denoisers = {tuple(value)[1] for name, value in index.items() if name in ("unet", "transformer")}
    return next(family for family in FAMILIES if denoisers & set(family.components[0].models))
