"""The values of the line, in the order in which they come into being.

    ExportOptions, TrainingRun            what is asked for
    Source -> Adapter -> Plan             tensors, in one process, memory-mapped (dataclasses)
    Bundle -> Manifest -> Package         files and digests (pydantic: they cross steps, runs and machines)
    Receipt -> Publication -> LineageRecord
    Version -> Promotion, Pruning         what lies at a destination, and what became of it
    SweepRecord                           what came of a night

All are frozen. A digest is a lower-case hexadecimal sha256 unless it says otherwise.
"""

from __future__ import annotations

from adapterline.values.adapter import Adapter, Embedding
from adapterline.values.base import Sha256, Value, canonical_json, digest_of
from adapterline.values.bundle import FORMAT_VERSION, Bundle, ExportedFile
from adapterline.values.checkpoint import Source, StoredEmbedding, TensorInfo
from adapterline.values.drift import ComponentDrift, Drift, DriftFromLatest, ModuleDrift
from adapterline.values.manifest import MANIFEST_SCHEMA, BaseSummary, ComponentSummary, Manifest, SourceSummary
from adapterline.values.names import NAME_PATTERN, check_alias, check_name, is_alias, make_name, slug
from adapterline.values.options import DType, ExportOptions, Layout, License, ScaleMode, TrainingRun
from adapterline.values.plan import WEIGHT_NAME, FilePlan, HeaderHash, LoadCall, Plan, TensorPlan, Transform
from adapterline.values.publication import (
    IMAGE_PATH,
    IMAGES,
    PROVENANCE_PATH,
    SIGNATURE_PATH,
    Gallery,
    Latest,
    Order,
    Package,
    PackagedFile,
    Publication,
    ReadBack,
    Receipt,
    RenderedImage,
    provenance_name,
    signature_name,
)
from adapterline.values.record import RECORD_SCHEMA, FlowRun, LineageRecord
from adapterline.values.report import FORWARD, RENDER, Check, ValidationReport
from adapterline.values.retention import (
    LATEST,
    Move,
    Orphan,
    OrphanFate,
    Promotion,
    Pruned,
    Pruning,
    Version,
    VersionFate,
)
from adapterline.values.sweep import SWEEP_SCHEMA, SweepRecord

__all__ = [
    "FORMAT_VERSION",
    "FORWARD",
    "IMAGES",
    "IMAGE_PATH",
    "LATEST",
    "MANIFEST_SCHEMA",
    "NAME_PATTERN",
    "PROVENANCE_PATH",
    "RECORD_SCHEMA",
    "RENDER",
    "SIGNATURE_PATH",
    "SWEEP_SCHEMA",
    "WEIGHT_NAME",
    "Adapter",
    "BaseSummary",
    "Bundle",
    "Check",
    "ComponentDrift",
    "ComponentSummary",
    "DType",
    "Drift",
    "DriftFromLatest",
    "Embedding",
    "ExportOptions",
    "ExportedFile",
    "FilePlan",
    "FlowRun",
    "Gallery",
    "HeaderHash",
    "Latest",
    "Layout",
    "License",
    "Orphan",
    "OrphanFate",
    "LineageRecord",
    "LoadCall",
    "Manifest",
    "ModuleDrift",
    "Move",
    "Order",
    "Package",
    "PackagedFile",
    "Plan",
    "Promotion",
    "Pruned",
    "Pruning",
    "Publication",
    "ReadBack",
    "Receipt",
    "RenderedImage",
    "ScaleMode",
    "Sha256",
    "Source",
    "SourceSummary",
    "StoredEmbedding",
    "SweepRecord",
    "TensorInfo",
    "TensorPlan",
    "TrainingRun",
    "Transform",
    "ValidationReport",
    "Value",
    "Version",
    "VersionFate",
    "canonical_json",
    "check_alias",
    "check_name",
    "digest_of",
    "is_alias",
    "make_name",
    "provenance_name",
    "signature_name",
    "slug",
]
