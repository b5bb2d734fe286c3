"""Is everything here that an export needs? Each thing is tried, not guessed, and said with what to do about it."""

from __future__ import annotations

import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal, TypeVar

from pydantic import Field

from adapterline.destinations import open_destination
from adapterline.errors import AdapterlineError
from adapterline.lineage import Index
from adapterline.lineage.records import open_records
from adapterline.package.signature import open_signer
from adapterline.scratch import Scratch
from adapterline.settings import Settings
from adapterline.values.base import Value

T = TypeVar("T")
Status = Literal["ok", "warning", "failed"]
#: Bytes that a large adapter takes on its way: FLUX at rank 128 in fp32, twice.
_ROOM = 5e9
#: What is published there, if ever: a name that nobody gives.
PROBE = "adapterline-doctor"


class Finding(Value):
    """One thing that was tried."""

    name: str
    status: Status
    observed: str
    remedy: str = Field("", description="what to do, where it is not ok")


def examine(to: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Everything but Prefect, in the order in which an export needs it; `to` are the destinations to try."""
    yield _python()
    yield from _libraries()
    yield _gpu()
    settings = tried("settings", Settings)
    if isinstance(settings, Finding):
        yield settings
        return
    yield Finding(name="settings", status="ok", observed="ADAPTERLINE_* and adapterline.toml are valid")
    yield _scratch(settings)
    yield _records(settings)
    yield _index()
    if settings.signing_key:
        yield _signing(settings)
    for uri in to:
        yield _destination(uri)


def tried(name: str, do: Callable[[], T]) -> T | Finding:
    """What `do` gives, or the finding that it failed."""
    try:
        return do()
    except AdapterlineError as error:
        expected = f" Expected {error.expected}." if error.expected else ""
        return Finding(name=name, status="failed", observed=f"{error.found}{expected}", remedy=error.remedy)


def _python() -> Finding:
    here = sys.version_info
    known = (3, 11) <= here[:2] < (3, 14)
    observed = f"{here.major}.{here.minor}.{here.micro}"
    return Finding(
        name="python",
        status="ok" if known else "failed",
        observed=observed,
        remedy="" if known else "Use Python 3.11, 3.12 or 3.13.",
    )


def _libraries() -> Iterator[Finding]:
    """Each library of pyproject.toml, by the range that it states."""
    from packaging.requirements import Requirement

    try:
        stated = requires("adapterline") or []
    except PackageNotFoundError:
        yield Finding(
            name="adapterline", status="warning", observed="not installed", remedy="pip install adapterline, or -e ."
        )
        return
    for line in stated:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, fix = requirement.name, f"pip install '{requirement}'"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name=name, status="failed", observed="not installed", remedy=fix)
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding(name=name, status="ok", observed=found)
        else:
            observed = f"{found}, and {requirement.specifier} is needed"
            yield Finding(name=name, status="failed", observed=observed, remedy=fix)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(name="gpu", status="ok", observed="none; exports need none, renders are slow without")
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return Finding(name="gpu", status="ok", observed=f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")


def _scratch(settings: Settings) -> Finding:
    scratch = Scratch.open(settings)

    def use() -> int:
        with scratch.temporary("doctor-") as folder:
            (folder / "probe").write_bytes(b"1")
            return shutil.disk_usage(folder).free

    free = tried("scratch", use)
    if isinstance(free, Finding):
        return free
    enough = free >= _ROOM
    return Finding(
        name="scratch",
        status="ok" if enough else "warning",
        observed=f"{scratch.root} is writable, {free / 1e9:.1f} GB free",
        remedy="" if enough else "Free some, or set ADAPTERLINE_SCRATCH elsewhere.",
    )


def _records(settings: Settings) -> Finding:
    """Asks for a record that is not there: nothing is written to a store that is never changed."""
    found = tried("records", lambda: open_records(settings.records).find(uuid.uuid4().hex))
    if isinstance(found, Finding):
        return found
    return Finding(name="records", status="ok", observed=f"{settings.records} can be read")


def _index() -> Finding:
    """Opens it, which makes its tables if there are none: the next export would."""
    found = tried("index", lambda: Index().counts())
    if isinstance(found, Finding):
        return found
    return Finding(name="index", status="ok", observed=f"{found.versions} versions, {found.runs} runs")


def _signing(settings: Settings) -> Finding:
    found = tried("signing key", lambda: open_signer(settings))
    if isinstance(found, Finding):
        return found
    made = "with its certificate" if settings.signing_certificate else "alone, without a certificate"
    return Finding(name="signing key", status="ok", observed=f"can sign, {made}")


def _destination(uri: str) -> Finding:
    def check() -> None:
        open_destination(uri, PROBE).check()

    name = f"destination {re.sub(r'//.*@', '//…@', uri)}"
    found = tried(name, check)
    return found if isinstance(found, Finding) else Finding(name=name, status="ok", observed="can be written to")
