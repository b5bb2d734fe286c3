"""How far an adapter is from another one: what each does to the weights, compared."""

from __future__ import annotations

from pydantic import Field

from adapterline.values.base import Sha256, Value


class ModuleDrift(Value):
    """One adapted layer of two adapters. A norm is 0 where one of them leaves the layer alone."""

    norm: float = Field(description="Frobenius norm of the weight's change")
    before: float = Field(description="the same of the other adapter")
    cosine: float | None = Field(description="between both changes; null where one of them is nothing")


class ComponentDrift(ModuleDrift):
    """A component, as one long vector of all its layers' changes."""

    modules: dict[str, ModuleDrift] = Field(description="name of the layer -> its own")


class Drift(Value):
    """What one adapter does to the weights, beside what another one did."""

    components: dict[str, ComponentDrift] = Field(description="name of the component -> its own")


class DriftFromLatest(Drift):
    """The drift of an export from what `latest` of its name was until then."""

    before: Sha256 = Field(description="digest of the version that `latest` pointed to")
    destination: str = Field(description="where that was read")
    beyond: tuple[str, ...] = Field(
        (), description="what is further away than ADAPTERLINE_DRIFT_COSINE and ADAPTERLINE_DRIFT_RATIO allow"
    )
    not_measured: str | None = Field(None, description="why there is no component: what could not be read")
