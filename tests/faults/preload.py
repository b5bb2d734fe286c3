"""Everything that an exporter or a reader imports, imported once before they are forked."""

from __future__ import annotations

import boto3  # noqa: F401
import boto3.s3.transfer  # noqa: F401
import huggingface_hub.hf_api  # noqa: F401

import adapterline.destinations.folder  # noqa: F401
import adapterline.destinations.hub  # noqa: F401
import tests.faults.exporter
import tests.faults.places
import tests.packages  # noqa: F401
