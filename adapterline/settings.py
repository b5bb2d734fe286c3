"""Settings: environment variables `ADAPTERLINE_*`, then `adapterline.toml` in the working folder, then the defaults.

Credentials are none of ours: boto3 reads `AWS_*` and its profiles, huggingface_hub `HF_TOKEN` and `HF_ENDPOINT`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from adapterline.errors import UsageError


def _home(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "adapterline"


def _split(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


#: In the environment separated by commas, in TOML a list.
Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Where adapterline keeps things, and how patient it is."""

    model_config = SettingsConfigDict(
        env_prefix="ADAPTERLINE_", toml_file="adapterline.toml", extra="forbid", frozen=True
    )

    records: str = Field(
        default_factory=lambda: str(_home("XDG_DATA_HOME", ".local/share") / "records"),
        description="the record store: a folder or s3://bucket/prefix",
    )
    scratch: Path = Field(
        default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"),
        description="exported files on their way, and what was fetched",
    )
    scratch_max_gb: float = Field(50, gt=0, description="the scratch folder is trimmed to this, in 1e9 bytes")
    scratch_max_days: float = Field(14, gt=0, description="and of what was not used for so long")
    retries: int = Field(3, ge=0, le=10, description="of loading and uploading, on transient faults")
    retry_seconds: float = Field(10, ge=0, description="the first pause; each further one is twice as long")
    allowed_roots: Listed = Field((), description="what a checkpoint's URI must lie under: folders, s3:// or hf://")
    allowed_names: Listed = Field((), description="patterns (team-a-*) of the names that may be published")
    parallel: int = Field(2, ge=1, le=64, description="how many exports of a sweep run at once in its own process")
    quiet_seconds: float = Field(600, ge=0, description="a run without _SUCCESS is finished after so long in silence")
    incomplete_tries: int = Field(12, ge=0, description="how often a deployed run waits for a checkpoint to be whole")
    incomplete_seconds: float = Field(300, gt=0, description="and how long each time")
    hub_private: bool = Field(True, description="a Hub repository that has to be created is private")

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(str(part) for part in first["loc"])
            raise UsageError(
                f"The setting {name} is {first['input']!r}: {first['msg']}.",
                remedy=f"Correct ADAPTERLINE_{name.upper()}, or {name} in adapterline.toml.",
            ) from error
        except ValueError as error:  # the settings file is no TOML
            raise UsageError(f"adapterline.toml cannot be read: {error}.", expected="TOML") from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of the module's docstring; no .env file is read."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
