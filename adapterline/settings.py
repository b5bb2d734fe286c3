"""Settings: environment variables `ADAPTERLINE_*`, then `adapterline.toml` in the working folder, then the defaults.

Credentials are none of ours: boto3 reads `AWS_*` and its profiles, huggingface_hub `HF_TOKEN` and `HF_ENDPOINT`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from adapterline.errors import UsageError
from adapterline.events.sender import Sender
from adapterline.values.publication import ReadBack

# What git allows and what no address has to quote: https://git-scm.com/docs/git-check-ref-format
_BRANCH = re.compile(r"(?!.*(\.\.|//|/\.|\.lock(/|$)))[A-Za-z0-9]([\w./-]{0,98}[A-Za-z0-9_-])?", re.ASCII)


def _home(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "adapterline"


def _split(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _is_secret(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and SecretStr in get_args(field.annotation)


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
    index: str = Field(
        default_factory=lambda: f"sqlite:///{_home('XDG_DATA_HOME', '.local/share') / 'index.sqlite'}",
        description="the lineage index: sqlite:///path/to/file or postgresql://user@host/database",
    )
    openlineage: str = Field(
        default_factory=lambda: str(_home("XDG_DATA_HOME", ".local/share") / "openlineage.jsonl"),
        description="the file of OpenLineage events, where OpenLineage's own configuration names nothing else; or off",
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
    crashes: int = Field(3, ge=0, le=20, description="how often a deployed run that crashed is started again")
    crash_seconds: float = Field(30, ge=0, description="the first pause before it; each further one is twice as long")
    listen_secret: SecretStr | None = Field(None, description="what senders show to `adapterline listen`")
    dashboard_token: SecretStr | None = Field(
        None, description="what people and programs show to `adapterline dashboard`"
    )
    dashboard_url: str | None = Field(
        None, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", description="where people find it, for links to its pages"
    )
    senders: dict[str, Sender] = Field(default_factory=dict, description="platforms that `listen` does not know itself")
    drift_cosine: float = Field(
        0.1, ge=-1, le=1, description="an export that is less like the one before, in a component, is told of"
    )
    drift_ratio: float = Field(3, gt=1, description="and one whose effect is so many times as large, or as small")
    s3_addressing: Literal["path", "virtual", "auto"] | None = Field(
        None, description="of buckets: endpoint/bucket or bucket.endpoint; without it, as the profile says"
    )
    s3_sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        None, description="encryption of what is published; without it, as the bucket says"
    )
    s3_kms_key: str | None = Field(None, description="the KMS key for it: an id, an ARN or an alias")
    s3_storage_class: str | None = Field(None, description="of weights; without it, as the server says")
    s3_read_back: ReadBack = Field(
        "checksum", description="what proves an upload: the checksum that the server states, or its bytes, read again"
    )
    signing_key: Path | None = Field(None, description="a private key in PEM, that exports are signed with")
    signing_key_password: SecretStr | None = Field(None, description="of the key, if it is encrypted")
    signing_certificate: Path | None = Field(None, description="the key's certificate, in PEM")
    signing_chain: Annotated[tuple[Path, ...] | None, NoDecode, BeforeValidator(_split)] = Field(
        None, description="the certificates that vouch for it, without the root"
    )
    hub_private: bool = Field(True, description="a Hub repository that has to be created is private")
    hub_create: bool = Field(True, description="a Hub repository that is not there is created")
    hub_pr: bool = Field(False, description="on the Hub, open a pull request instead of committing to main")
    hub_branch: str = Field("main", description="the branch of the Hub that takes the place of main")

    @field_validator("dashboard_token")
    @classmethod
    def _is_long(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < 16:
            raise ValueError("it has fewer than 16 characters, and can be guessed")
        return token

    @field_validator("hub_branch")
    @classmethod
    def _is_branch(cls, name: str) -> str:
        if not _BRANCH.fullmatch(name) or name.startswith(("sha-", "stage-", "refs/")):
            raise ValueError("no name of a branch that people may follow")
        return name

    @model_validator(mode="after")
    def _hub_fits(self) -> Self:
        if self.hub_pr and self.hub_branch != "main":
            raise ValueError("hub_pr is true, and hub_branch is not main: pull requests of the Hub go to main")
        return self

    @model_validator(mode="after")
    def _signing_fits(self) -> Self:
        if self.signing_certificate and not self.signing_key:
            raise ValueError("signing_certificate is given, and signing_key is not")
        if self.signing_chain and not self.signing_certificate:
            raise ValueError("signing_chain is given, and signing_certificate is not")
        return self

    @model_validator(mode="after")
    def _storage_fits(self) -> Self:
        if self.s3_kms_key and not (self.s3_sse or "").startswith("aws:kms"):
            raise ValueError("s3_kms_key is given, and s3_sse is not aws:kms")
        if self.s3_storage_class in ("GLACIER", "DEEP_ARCHIVE"):
            raise ValueError(f"from s3_storage_class {self.s3_storage_class} nothing can be read back at once")
        return self

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # two settings that do not fit
                raise UsageError(
                    f"The settings do not fit: {str(first['msg']).removeprefix('Value error, ')}.",
                    remedy="Correct one of them, in ADAPTERLINE_* or adapterline.toml.",
                ) from error
            name = "_".join(str(part) for part in first["loc"])
            shown = "unfit" if _is_secret(name) else repr(first["input"])
            raise UsageError(
                f"The setting {name} is {shown}: {first['msg'].removeprefix('Value error, ')}.",
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
