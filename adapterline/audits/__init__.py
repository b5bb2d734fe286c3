"""Is what was published still what was published? Read again, hashed, proven, compared with what its records say."""

from __future__ import annotations

from adapterline.audits.examine import examine_place, examine_version
from adapterline.audits.published import Place, places_of
from adapterline.audits.report import AuditedVersion, AuditReport, audit_markdown

__all__ = [
    "AuditReport",
    "AuditedVersion",
    "Place",
    "audit_markdown",
    "examine_place",
    "examine_version",
    "places_of",
]
