"""What other versions of the consumers make of a file: a table that ships, made by running them (`make consumers`).

A row says of one kind of file (the pipeline that loads it, the layout, what is in it) what each version does with it:
`right`, `wrong: …`, `refuses: …` or `absent: …`. A file of a kind that no row covers has nothing said of it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterline.checkpoints.containers.safetensors import read_header
from adapterline.validation.files import LayoutFiles

TABLE = Path(__file__).with_name("versions.json")
RIGHT = "right"
#: What a row must have exactly as the file has it. Of the others it may have more: a version that loads mixed ranks,
#: convolutions, biases and text encoders loads a file without them.
_EXACTLY = frozenset({"header", "dora", "lokr"})
_DOWN = re.compile(r"\.(lora_A|lora_down)\.weight$")
#: What a key begins with that is of one component: `unet.`, `lora_te1_`, `base_model.`
_COMPONENT = re.compile(r"lora_[a-z]+\d?_|[^.]*")


@dataclass(frozen=True)
class Row:
    """One kind of file, and what each version, as `diffusers==0.35.2`, does with it."""

    pipeline: str
    layout: str
    traits: tuple[str, ...]
    results: Mapping[str, str]

    def covers(self, pipeline: str, layout: str, traits: tuple[str, ...]) -> bool:
        """Does what is said of this kind hold for that file?"""
        if (self.pipeline, self.layout) != (pipeline, layout):
            return False
        own, others = set(self.traits), set(traits)
        return others <= own and own & _EXACTLY == others & _EXACTLY


@functools.cache
def table() -> tuple[Row, ...]:
    """The rows that ship with this version."""
    return tuple(Row(**{**row, "traits": tuple(row["traits"])}) for row in json.loads(TABLE.read_bytes())["rows"])


def traits_of(folder: Path, layout: LayoutFiles) -> tuple[str, ...]:
    """What in the files of a layout versions treat differently, sorted; from their headers alone."""
    traits: set[str] = set()
    for path in layout.files:
        if not path.endswith(".safetensors"):
            continue
        tensors, _, metadata = read_header(folder / path)
        if "lora_adapter_metadata" in metadata:
            traits.add("header")
        ranks: dict[str, set[int]] = {}
        for key, info in tensors.items():
            if _DOWN.search(key):
                ranks.setdefault(_COMPONENT.match(key)[0], set()).add(info.shape[0])  # type: ignore[index]
                traits |= {"convolutions"} if len(info.shape) > 2 else set()
            traits |= set(_said_by(f"{path} {key}", layout.layout))
        if any(len(found) > 1 for found in ranks.values()):
            traits.add("mixed ranks")
    return tuple(sorted(traits))


def _said_by(key: str, layout: str) -> Iterator[str]:
    if re.search(r"[ /]text_encoder|lora_te", key):
        yield "text encoder"
    if layout == "kohya" and not re.search(r"attn|attention|_ff_|mlp|proj_(in|out)", key):
        yield "other layers"
    if key.endswith((".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".dora_scale")):
        yield "dora"
    if key.endswith(".lora_B.bias"):
        yield "biases"
    if ".lokr_w" in key:
        yield "lokr"


def proven_by_table(folder: Path, layout: LayoutFiles, installed: Mapping[str, str]) -> tuple[str, ...]:
    """The versions that load such files right, as `diffusers==0.35.2`, without those that are installed here."""
    if not layout.loads:
        return ()
    traits = traits_of(folder, layout)
    rows = [row for row in table() if row.covers(layout.loads[0].pipeline, layout.layout, traits)]
    rows = [row for row in rows if row.traits == traits] or rows  # its own kind says more than richer ones
    versions = {version for row in rows for version in row.results}
    right = [version for version in versions if all(row.results.get(version, RIGHT) == RIGHT for row in rows)]
    here = {f"{name}=={version}" for name, version in installed.items()}
    return tuple(sorted(set(right) - here))
