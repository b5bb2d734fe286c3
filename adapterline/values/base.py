"""What the values are made of: the model they share, digests, the one form of JSON."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Value(BaseModel):
    """Frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def digest_of(rows: list[Any]) -> str:
    """sha256 of the compact UTF-8 JSON of the sorted rows: how a source and a bundle are identified."""
    text = json.dumps(sorted(rows), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Indented, sorted, UTF-8, one newline at the end: the one form in which adapterline publishes JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _is_digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a sha256 is 64 lower-case hexadecimal digits")
    return text


Sha256 = Annotated[str, AfterValidator(_is_digest), Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
