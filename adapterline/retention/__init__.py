"""What happens to published versions: an alias moves to one, old ones and orphans go."""

from __future__ import annotations

from adapterline.retention.promote import promote
from adapterline.retention.prune import collect, prune
from adapterline.retention.rules import ORPHAN_AGE, Rules

__all__ = ["ORPHAN_AGE", "Rules", "collect", "promote", "prune"]
