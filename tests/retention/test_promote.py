"""An alias moves to a whole version, everywhere, or the caller is told why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from adapterline.destinations import open_destination
from adapterline.destinations.folder import FolderDestination
from adapterline.errors import PublishError, UsageError
from adapterline.retention import promote
from adapterline.values import WEIGHT_NAME, Latest, Package, Version
from tests.hub_double.server import Hub
from tests.hub_fixtures import Wire
from tests.packages import make_package, order_of
from tests.retention.readers import EVERY_PLACE, FolderPlace, HubPlace, Place, S3Place, bytes_of

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Make = Callable[..., Package]


def test_an_alias_points_to_the_version_and_latest_stays(place: Place, make: Make) -> None:
    older, newer = make(1), make(2)
    place.publish(older, day=1)
    place.publish(newer, day=2)
    done = promote("tiny", older.sha12[:8], "production", [place.uri])
    assert (place.alias("production"), place.alias("latest")) == (older.sha12, newer.sha12)
    assert [(move.outcome, move.previous) for move in done.moves] == [("moved", None)]
    done = promote("tiny", newer.manifest.digest, "production", [place.uri])
    assert place.alias("production") == newer.sha12
    assert [(move.outcome, move.previous) for move in done.moves] == [("moved", older.sha12)]
    assert place.visible() == {each.sha12: bytes_of(each) for each in (older, newer)}


@EVERY_PLACE
def test_what_an_alias_says_is_read_by_the_same_rules_as_latest(place: Place, make: Make) -> None:
    package = make()
    place.publish(package)
    promote("tiny", package.sha12, "production", [place.uri])
    aliases = place.open().aliases()
    assert set(aliases) == {"latest", "production"}
    assert {each.digest for each in aliases.values()} == {package.manifest.digest}
    assert {each.manifest_sha256 for each in aliases.values()} == {place.publish(package).receipt.manifest_sha256}


def test_promoting_again_writes_nothing(place: Place, make: Make) -> None:
    package = make()
    place.publish(package)
    promote("tiny", package.sha12, "production", [place.uri])
    before = place.everything()
    done = promote("tiny", package.sha12, "production", [place.uri], expect="00000000")
    assert [(move.outcome, move.previous) for move in done.moves] == [("kept", package.sha12)]
    assert place.everything() == before


def test_latest_can_be_set_back_and_the_next_export_moves_it_on(place: Place, make: Make) -> None:
    older, newer, newest = make(1), make(2), make(3)
    place.publish(older, day=1)
    place.publish(newer, day=2)
    promote("tiny", older.sha12, "latest", [place.uri])
    assert place.alias("latest") == older.sha12
    if isinstance(place, HubPlace):
        assert place.at("main") == bytes_of(older)
    place.open().release(newest, place.open().stage(newest), order_of(1).model_copy(update={"finished_at": _FUTURE}))
    assert place.alias("latest") == newest.sha12


_FUTURE = order_of(1).finished_at.replace(year=2999)


@EVERY_PLACE
def test_an_alias_that_points_elsewhere_than_expected_stays(place: Place, make: Make) -> None:
    first, second = make(1), make(2)
    place.publish(first, day=1)
    place.publish(second, day=2)
    with pytest.raises(PublishError, match="points to nothing") as refused:
        promote("tiny", first.sha12, "production", [place.uri], expect=second.sha12)
    assert "--expect none" in refused.value.remedy
    assert place.alias("production") is None
    promote("tiny", first.sha12, "production", [place.uri], expect="none")
    with pytest.raises(PublishError, match=f"points to {first.sha12}"):
        promote("tiny", second.sha12, "production", [place.uri], expect="none")
    with pytest.raises(PublishError, match=f"points to {first.sha12}"):
        promote("tiny", second.sha12, "production", [place.uri], expect=second.sha12)
    assert place.alias("production") == first.sha12
    promote("tiny", second.sha12, "production", [place.uri], expect=first.sha12[:8])
    assert place.alias("production") == second.sha12


@EVERY_PLACE
def test_what_is_not_published_is_refused(place: Place, make: Make) -> None:
    staged = make(1)
    place.publish(make(2))
    place.open().stage(staged)
    with pytest.raises(PublishError, match="is published") as refused:
        promote("tiny", staged.sha12, "production", [place.uri])
    assert refused.value.remedy
    assert place.alias("production") is None


def test_what_was_removed_since_it_was_looked_up_is_refused_and_the_alias_stays(place: Place, make: Make) -> None:
    old, new = make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    promote("tiny", new.sha12, "production", [place.uri])
    version = version_at(place, old.sha12)
    assert place.open().remove(version)
    with pytest.raises(PublishError, match="not published there any more"):
        place.open().point("production", version)
    assert place.alias("production") == new.sha12


def test_what_is_not_whole_is_refused_before_any_alias_moves(tmp_path: Path, place: Place, make: Make) -> None:
    package, good = make(), FolderPlace(tmp_path / "good")
    good.publish(package)
    place.publish(package)
    damage(place, package)
    with pytest.raises(PublishError, match="not whole"):
        promote("tiny", package.sha12, "production", [good.uri, place.uri])
    assert good.alias("production") is None


def damage(place: Place, package: Package) -> None:
    """One byte of the weights, and their size stays."""
    data = bytearray((package.folder / WEIGHT_NAME).read_bytes())
    data[-1] ^= 1
    if isinstance(place, FolderPlace):
        (place.root / "tiny" / package.sha12 / WEIGHT_NAME).write_bytes(data)
    if isinstance(place, S3Place):
        key = f"loras/tiny/{package.sha12}/{WEIGHT_NAME}"
        place.client.put_object(Bucket=place.bucket, Key=key, Body=bytes(data))
    if isinstance(place, HubPlace):
        repository, tag = place.hub.repository("acme/tiny"), f"refs/tags/sha-{package.sha12}"
        commit = place.hub.put("acme/tiny", {WEIGHT_NAME: bytes(data)})
        assert repository.swap(tag, commit, repository.refs("tags")[f"sha-{package.sha12}"])


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_a_run_that_died_between_two_destinations_is_completed(
    place: Place, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, other = make(1), make(2), FolderPlace(tmp_path / "other")
    for each in (place, other):
        each.publish(old, day=1)
        each.publish(new, day=2)
        promote("tiny", old.sha12, "production", [each.uri])

    moving = FolderDestination.point

    def point(destination: FolderDestination, *arguments: Any) -> Latest | None:
        if destination.uri == other.uri:
            raise PublishError("The disk is gone.")
        return moving(destination, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(FolderDestination, "point", point)
        with pytest.raises(PublishError, match="gone"):
            promote("tiny", new.sha12, "production", [place.uri, other.uri], expect=old.sha12)
    assert (place.alias("production"), other.alias("production")) == (new.sha12, old.sha12)
    promote("tiny", new.sha12, "production", [place.uri, other.uri], expect=old.sha12)
    assert (place.alias("production"), other.alias("production")) == (new.sha12, new.sha12)


@pytest.mark.parametrize(
    "alias", ["main", "stage-0123456789ab", "sha-x", "0123456789ab", "Production", "a..b", "x.lock"]
)
def test_a_name_that_means_something_else_is_no_alias(alias: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        promote("tiny", "0" * 12, alias, ["folder"])


@pytest.mark.parametrize("version", ["0123456", "main", "0" * 65, "0123456789AB"])
def test_a_version_is_digits_of_its_digest(version: str) -> None:
    with pytest.raises(UsageError, match="is no digest"):
        promote("tiny", version, "production", ["folder"])


def test_digits_of_two_versions_are_refused(monkeypatch: pytest.MonkeyPatch, make: Make, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "published")
    package = make()
    place.publish(package)
    [version] = place.open().versions()
    twin = version.receipt.model_copy(update={"digest": version.digest[:12] + "0" * 52})
    pair = (version, version.model_copy(update={"receipt": twin}))
    monkeypatch.setattr("adapterline.destinations.folder.FolderDestination.versions", lambda *_: pair)
    with pytest.raises(UsageError, match="may be each of 2 versions") as refused:
        promote("tiny", package.sha12, "production", [place.uri])
    assert all(each.digest[:16] in str(refused.value) for each in pair)


def test_hub_versions_of_other_digits_are_not_read(hub: Hub, make: Make) -> None:
    place, packages = HubPlace(hub), [make(1), make(2)]
    for package in packages:
        place.publish(package)
    hub.requests.clear()
    [version] = place.open().versions(packages[0].sha12[:8])
    assert version.digest == packages[0].manifest.digest
    assert len([line for line in hub.requests if "/tree/" in line]) == 1


def test_hub_branch_that_somebody_called_latest_is_not_latest(hub: Hub, make: Make) -> None:
    place, old, new = HubPlace(hub), make(1), make(2)
    place.publish(old, day=1)
    repository = hub.repository("acme/tiny")
    assert repository.swap("refs/heads/latest", repository.refs("heads")["main"])
    place.publish(new, day=2)
    assert place.open().aliases()["latest"].digest == new.manifest.digest


# --- at the same time -------------------------------------------------------------------------------------------------


def test_eight_promoters_end_on_one_whole_version_and_each_is_told_the_truth(place: Place, make: Make) -> None:
    # Each has a file of its own, as an export has its provenance. Without one, a move that another has just made would
    # be an empty commit, for which huggingface_hub asks the Hub nothing.
    packages = [make(seed, configs={f"config-{seed}.json": b"{}"}) for seed in range(3)]
    for package in packages:
        place.publish(package)
    wanted = [packages[number % 3] for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        moves = list(pool.map(lambda each: promote("tiny", each.sha12, "production", [place.uri]).moves[0], wanted))
    assert place.alias("production") in {package.sha12 for package in packages}
    assert place.open().verify(version_at(place, str(place.alias("production"))))
    # Each move is from where another one had moved it: somebody's `previous` is everything but what stands at the end.
    moved = [(each.sha12, move.previous) for each, move in zip(wanted, moves, strict=True) if move.outcome == "moved"]
    assert [previous for _, previous in moved].count(None) == 1
    for package in packages:
        came = sum(to == package.sha12 for to, _ in moved)
        left = sum(previous == package.sha12 for _, previous in moved)
        assert came - left == (place.alias("production") == package.sha12)


def test_of_promoters_who_expect_the_same_one_wins(place: Place, make: Make) -> None:
    packages = [make(seed) for seed in range(4)]
    for package in packages:
        place.publish(package)
    promote("tiny", packages[0].sha12, "production", [place.uri])
    barrier = Barrier(3)

    def wins(package: Package) -> bool:
        found, destination = version_at(place, package.sha12), place.open()
        barrier.wait()
        try:
            destination.point("production", found, expect=packages[0].sha12)
        except PublishError as error:
            if "points to" not in error.found:
                raise
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(wins, packages[1:]))
    assert [package.sha12 for package, first in zip(packages[1:], won, strict=True) if first] == [
        place.alias("production")
    ]


def version_at(place: Place, sha12: str) -> Version:
    [version] = place.open().versions(sha12)
    return version


def test_hub_branch_that_somebody_else_made_is_not_told_as_moved(hub: Hub, wire: Wire, make: Make) -> None:
    place, package = HubPlace(hub), make()
    place.publish(package)
    version = version_at(place, package.sha12)

    def act(number: int, line: str) -> None:
        if line.startswith("POST") and "/branch/production" in line:
            wire.act = lambda number, line: None
            assert place.open().point("production", version) is None

    wire.restart(act)
    before = place.open().point("production", version)
    assert before is not None
    assert before.digest == version.digest


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_promoting_while_exports_run_loses_neither(place: Place, make: Make) -> None:
    first, *later = (make(seed) for seed in range(4))
    place.publish(first)
    with ThreadPoolExecutor(4) as pool:
        exports = [pool.submit(place.publish, package, day) for day, package in enumerate(later, 2)]
        promoted = pool.submit(promote, "tiny", first.sha12, "production", [place.uri])
        assert promoted.result().moves[0].outcome == "moved"
        for each in exports:
            each.result()
    assert place.alias("production") == first.sha12
    assert place.alias("latest") == later[-1].sha12
    assert place.visible().keys() == {package.sha12 for package in (first, *later)}
    place.assert_whole()


def test_an_alias_file_of_somebody_else_is_refused(tmp_path: Path, make: Make) -> None:
    place, package = FolderPlace(tmp_path / "published"), make()
    place.publish(package)
    (place.root / "tiny" / "production.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(PublishError, match="not a latest.json that adapterline wrote"):
        promote("tiny", package.sha12, "production", [place.uri])


def test_an_alias_says_the_run_of_the_version(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    place = FolderPlace(tmp_path / "published")
    place.publish(package)
    promote("tiny", package.sha12, "production", [place.uri])
    said = Latest.model_validate_json((place.root / "tiny" / "production.json").read_bytes())
    [version] = open_destination(place.uri, "tiny").versions()
    assert said.order == version.order
    assert said.order.finished_at == version.published_at  # its manifest knows of no run
