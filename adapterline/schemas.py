"""The JSON Schemas of what is published, and the dashboard's API: `python -m adapterline.schemas docs/schemas`."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel

from adapterline.errors import UsageError, from_os_error
from adapterline.lineage.adapter_facet import AdapterFacet
from adapterline.values import LineageRecord, Manifest, SweepRecord, canonical_json

#: File name -> the model whose JSON it describes.
SCHEMAS: dict[str, type[BaseModel]] = {
    "manifest-v1.json": Manifest,
    "record-v1.json": LineageRecord,
    "openlineage-adapter-v1.json": AdapterFacet,
    "sweep-v1.json": SweepRecord,
}
API = "dashboard-openapi.json"
#: The dialect that pydantic writes.
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_bytes(model: type[BaseModel]) -> bytes:
    """The schema of the JSON that the model is written as, by alias, in canonical form."""
    return canonical_json({"$schema": _DIALECT, **model.model_json_schema(mode="serialization", by_alias=True)})


def api_bytes() -> bytes:
    """The OpenAPI document of the dashboard's API."""
    from adapterline.dashboard.app import api_document

    return canonical_json(api_document())


def write_schemas(folder: Path) -> list[Path]:
    """Writes schemas and the API's document into `folder`; gives where they lie. MachineError if the disk fails."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in [*((name, schema_bytes(model)) for name, model in SCHEMAS.items()), (API, api_bytes())]:
            (folder / name).write_bytes(data)
            written.append(folder / name)
    except OSError as error:
        raise from_os_error(error, f"Writing the schemas to {folder}") from error
    return written


def main() -> None:
    """The entry point of `python -m adapterline.schemas FOLDER`."""
    if len(sys.argv) != 2:
        raise UsageError(
            "python -m adapterline.schemas takes one argument.", expected="the folder to write to, docs/schemas"
        )
    for path in write_schemas(Path(sys.argv[1])):
        print(path)


if __name__ == "__main__":
    main()
