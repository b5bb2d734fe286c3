"""Where adapters come from: the record of every run, and the index that answers questions about them.

The records and the published manifests are the truth. The index follows from them: losing it loses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterline.lineage.index import Index

__all__ = ["Index"]


def __getattr__(name: str) -> Any:
    """`Index`, when it is first used: whoever needs the records alone loads no SQLAlchemy."""
    if name == "Index":
        from adapterline.lineage.index import Index

        return Index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
