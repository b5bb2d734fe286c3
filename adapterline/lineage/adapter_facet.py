"""What OpenLineage has no facet for: the facet `adapterline_adapter`."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ConfigDict, Field

from adapterline.values import ComponentSummary, LoadCall, Sha256, Transform, Value

#: The address of its schema, which is docs/schemas/openlineage-adapter-v1.json.
ADAPTER_FACET: Final = "urn:adapterline:openlineage-adapter:v1"


def _as_facet(schema: dict[str, Any]) -> None:
    """What every facet has: https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/BaseFacet."""
    schema["$id"] = ADAPTER_FACET
    base = {"_producer": "who made this event", "_schemaURL": "of this schema"}
    schema["properties"] |= {
        name: {"description": description, "type": "string", "format": "uri"} for name, description in base.items()
    }
    schema["required"] += list(base)


class AdapterFacet(Value):
    """The facet `adapterline_adapter` of an adapter that was proven or published."""

    model_config = ConfigDict(json_schema_extra=_as_facet)

    record: str = Field(description="id of the record of the run")
    outcome: str = Field(description="of the run, as the record has it")
    family: str = Field(description="of the base: sd15, sdxl, flux, ...")
    pipeline: str = Field(description="class of diffusers that it was proven on")
    architecture: Sha256 = Field(description="of the configurations of the base's models")
    digest: Sha256 = Field(description="of the bundle")
    source_digest: Sha256 = Field(description="of the checkpoint")
    source_container: str = Field(description="of the checkpoint: peft-folder, safetensors, ...")
    source_dialect: str = Field(description="whose names its tensors have")
    components: dict[str, ComponentSummary] = Field(description="name -> what of it is adapted")
    transforms: tuple[Transform, ...] = Field(description="what was done to the factors, in order")
    left_out: tuple[str, ...] = Field(description="components that --components left out")
    loads: tuple[LoadCall, ...] = Field(description="the calls that load it")
    consumers: dict[str, tuple[str, ...]] = Field(description="file -> programs that it is proven for")
    files: dict[str, Sha256] = Field(description="path -> sha256 of the file")
    parents: tuple[str, ...] = Field(description="digests or run ids that training was resumed from")
    previous: Sha256 | None = Field(None, description="digest of the version that was exported under this name before")
    published: dict[str, str] = Field(description="place -> what became of `latest` there")
    drift: dict[str, float | None] = Field(description="component -> cosine to what `latest` was before")

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of what is read: OpenLineage writes no null, so that what may be null may be absent."""
        return super().model_json_schema(*args, **{**kwargs, "mode": "validation"})
