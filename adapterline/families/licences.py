"""The licences of shipped bases that the Hub has no identifier for, as the bases' own cards name them.

A base that is not here, and whose licence is `other`, is of a licence that could not be read for certain.
"""

from __future__ import annotations

from adapterline.families.aliases import shipped_for
from adapterline.values import License

_FLUX1 = "flux-1-dev-non-commercial-license"
_FLUX2 = "flux-non-commercial-license"
_STABILITY = "stabilityai-ai-community"

#: Hub id -> `license_name` and the file of the repository that has its text.
_NAMED: dict[str, tuple[str, str]] = {
    "stabilityai/stable-diffusion-3.5-medium": (_STABILITY, "LICENSE.md"),
    "stabilityai/stable-diffusion-3.5-large": (_STABILITY, "LICENSE.md"),
    "black-forest-labs/FLUX.1-dev": (_FLUX1, "LICENSE.md"),
    "black-forest-labs/FLUX.1-Krea-dev": (_FLUX1, "LICENSE.md"),
    "black-forest-labs/FLUX.1-Kontext-dev": (_FLUX1, "LICENSE.md"),
    "black-forest-labs/FLUX.1-Fill-dev": (_FLUX1, "LICENSE.md"),
    "black-forest-labs/FLUX.1-Canny-dev": (_FLUX1, "LICENSE.md"),
    "black-forest-labs/FLUX.1-Depth-dev": (_FLUX1, "LICENSE.md"),
    "black-forest-labs/FLUX.2-klein-9B": (_FLUX2, "LICENSE.md"),
}


def licence_of(model: str) -> License | None:
    """The public licence of the base with this Hub id; None if it does not come with adapterline. Never a guess."""
    known = shipped_for(model)
    if known is None:
        return None
    name, file = _NAMED.get(known.model, (None, None))
    link = f"https://huggingface.co/{known.model}/blob/main/{file}" if file else None
    return License(id=known.licence, name=name, link=link)
