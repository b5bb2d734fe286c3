"""What goes goes whole, what an alias points to stays, and nothing goes that an export still needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterline.destinations.folder import FolderDestination
from adapterline.errors import PublishError
from adapterline.retention import Rules, collect, promote, prune
from adapterline.values import WEIGHT_NAME, Order, Package, Pruning, TrainingRun
from tests.hub_double.server import Hub
from tests.hub_fixtures import CrashError, Wire
from tests.packages import order_of
from tests.retention.readers import EVERY_PLACE, FolderPlace, HubPlace, Place, S3Place, bytes_of

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Make = Callable[..., Package]
AT_ONCE = timedelta(0)


def fates(done: Pruning) -> dict[str, str]:
    return {version.digest[:12]: version.fate for version in done.destinations[0].versions}


def dated(package: Package, day: int) -> Package:
    """Its manifest knows of a training run that finished on that day."""
    run = TrainingRun(run_id=f"run-{day}", finished_at=order_of(day).finished_at, step=7)
    manifest = package.manifest.model_copy(update={"training_run": run})
    return Package(manifest, manifest.to_bytes(), package.folder, package.files)


def publish_in_turn(place: Place, make: Make, count: int) -> list[Package]:
    packages = [dated(make(seed), seed + 1) for seed in range(count)]
    for day, package in enumerate(packages, 1):
        place.publish(package, day)
    return packages


@EVERY_PLACE
def test_a_dry_run_tells_what_would_go_and_writes_nothing(place: Place, make: Make) -> None:
    packages = publish_in_turn(place, make, 3)
    promote("tiny", packages[0].sha12, "production", [place.uri])
    before = place.everything()
    done = prune("tiny", [place.uri], Rules(keep_last=1), keep_aliases=["production"])
    assert done.dry_run
    assert fates(done) == {packages[0].sha12: "stays", packages[1].sha12: "goes", packages[2].sha12: "stays"}
    reasons = {version.digest[:12]: version.reasons for version in done.destinations[0].versions}
    assert reasons[packages[0].sha12] == ("production points to it",)
    assert reasons[packages[2].sha12] == ("latest points to it", "one of the newest 1")
    assert place.everything() == before


def test_what_goes_goes_whole_and_the_rest_stays_as_it_was(place: Place, make: Make) -> None:
    packages = publish_in_turn(place, make, 3)
    promote("tiny", packages[0].sha12, "production", [place.uri])
    done = prune("tiny", [place.uri], Rules(keep_last=1), yes=True)
    assert not done.dry_run
    assert fates(done) == {packages[0].sha12: "stays", packages[1].sha12: "removed", packages[2].sha12: "stays"}
    assert place.visible() == {each.sha12: bytes_of(each) for each in (packages[0], packages[2])}
    assert (place.alias("production"), place.alias("latest")) == (packages[0].sha12, packages[2].sha12)
    assert place.open().orphans() == ()
    again = prune("tiny", [place.uri], Rules(keep_last=1), yes=True)
    assert set(fates(again).values()) == {"stays"}


@pytest.mark.parametrize("place", ["folder", "hub"], indirect=True)
def test_a_version_that_an_alias_points_to_is_not_touched_for_a_moment(place: Place, make: Make) -> None:
    package = make()
    place.publish(package)
    [version] = place.open().versions()
    before = place.everything()
    assert not place.open().remove(version)
    assert place.everything() == before


def test_s3_version_that_an_alias_points_to_is_not_touched_for_a_moment(on_s3: S3Place, make: Make) -> None:
    on_s3.publish(make())
    destination, wire = on_s3.open_wired()
    [version] = destination.versions()
    methods: list[str] = []
    wire.act = lambda number, request: methods.append(request.method)
    assert not destination.remove(version)
    assert set(methods) == {"GET"}


@EVERY_PLACE
def test_what_was_removed_can_be_published_again(place: Place, make: Make) -> None:
    old, new = make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    prune("tiny", [place.uri], Rules(keep_last=0), yes=True)
    assert place.visible().keys() == {new.sha12}
    place.publish(old, day=1)
    assert place.visible() == {each.sha12: bytes_of(each) for each in (old, new)}
    assert place.alias("latest") == new.sha12


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_what_was_published_recently_stays(place: Place, make: Make) -> None:
    old, new = make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    assert fates(prune("tiny", [place.uri], Rules(older_than=timedelta(hours=1)), yes=True)) == {
        old.sha12: "stays",
        new.sha12: "stays",
    }
    assert fates(prune("tiny", [place.uri], Rules(older_than=AT_ONCE), yes=True))[old.sha12] == "removed"


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_nothing_goes_anywhere_where_a_named_alias_is_missing(place: Place, make: Make, tmp_path: Path) -> None:
    packages, other = [make(1), make(2)], FolderPlace(tmp_path / "other")
    for day, package in enumerate(packages, 1):
        place.publish(package, day)
        other.publish(package, day)
    promote("tiny", packages[1].sha12, "production", [other.uri])
    with pytest.raises(PublishError, match="production points to nothing"):
        prune("tiny", [other.uri, place.uri], Rules(keep_last=1), keep_aliases=["production"], yes=True)
    assert len(other.visible()) == len(place.visible()) == 2


def test_the_order_is_that_of_the_training_runs_where_manifests_state_them(tmp_path: Path, make: Make) -> None:
    place, packages = FolderPlace(tmp_path / "published"), [dated(make(1), 9), dated(make(2), 3)]
    for package in packages:  # the later run is published first
        place.publish(package)
    done = prune("tiny", [place.uri], Rules(keep_last=1))
    assert [version.digest for version in done.destinations[0].versions] == [each.manifest.digest for each in packages]
    newest = done.destinations[0].versions[0].order
    assert newest == Order(finished_at=order_of(9).finished_at, step=7, run_id="run-9")


def test_a_place_without_the_name_has_nothing_to_prune(place: Place) -> None:
    for done in (prune("tiny", [place.uri], Rules(keep_last=1), yes=True), collect("tiny", [place.uri], yes=True)):
        assert (done.destinations[0].versions, done.destinations[0].orphans) == ((), ())


# --- crashes and races ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("delivered", [False, True])
def test_a_crash_at_any_request_never_shows_a_part_of_a_version(on_s3: S3Place, make: Make, delivered: bool) -> None:
    place, old, new = on_s3, make(1), make(2)
    place.publish(new, day=2)
    destination, wire = place.open_wired()
    for nth in range(1, 30):
        wire.act = lambda number, request: None
        place.publish(old, day=1)
        [version] = destination.versions(old.sha12)
        wire.count, wire.act = 0, crash_at(nth, delivered)
        try:
            assert destination.remove(version)
            break
        except CrashError:
            shown = place.visible().get(old.sha12)
            assert shown in (None, bytes_of(old))
            collect("tiny", [place.uri], AT_ONCE, yes=True)
            prune("tiny", [place.uri], Rules(keep_last=0), yes=True)
            assert place.visible() == {new.sha12: bytes_of(new)}
            assert place.open().orphans() == ()
    assert nth > 4


def deliver(request: Any) -> None:
    from botocore.httpsession import URLLib3Session

    session = URLLib3Session()
    session.send(request)
    session.close()


def crash_at(nth: int, delivered: bool) -> Callable[[int, Any], None]:
    def act(number: int, request: Any) -> None:
        if number == nth and delivered:
            deliver(request)
        if number >= nth:
            raise CrashError

    return act


def once_before(method: str, path_end: str, then: Callable[[], Any]) -> Callable[[int, Any], None]:
    """Runs `then` when the first such request is about to be sent."""
    done = []

    def act(number: int, request: Any) -> None:
        if not done and request.method == method and request.url.partition("?")[0].endswith(path_end):
            done.append(True)
            then()

    return act


@pytest.mark.parametrize(("method", "path_end"), [("DELETE", "/manifest.json"), ("POST", "")])
def test_s3_version_that_is_promoted_while_it_is_removed_is_whole_or_refused(
    on_s3: S3Place, make: Make, method: str, path_end: str
) -> None:
    place, old, new = on_s3, make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    promote("tiny", new.sha12, "production", [place.uri])
    (remover, wire), promoter = place.open_wired(), place.open()
    [version] = remover.versions(old.sha12)
    told: list[str] = []

    def promote_now() -> None:
        try:
            promoter.point("production", version)
            told.append("moved")
        except PublishError as error:
            told.append(str(error))

    wire.act = once_before(method, path_end, promote_now)
    stayed = not remover.remove(version)
    assert len(told) == 1
    if told == ["moved"]:
        assert stayed
        assert place.alias("production") == old.sha12
        assert place.visible()[old.sha12] == bytes_of(old)
    else:
        assert "not published there any more" in told[0]
        assert not stayed
        assert place.alias("production") == new.sha12
    place.assert_whole()


def test_s3_alias_that_was_new_is_gone_when_its_version_is_removed_at_the_same_time(on_s3: S3Place, make: Make) -> None:
    place, old, new = on_s3, make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    promoter, wire = place.open_wired()
    [version] = promoter.versions(old.sha12)
    wire.act = once_before("PUT", "/production.json", lambda: place.open().remove(version))
    with pytest.raises(PublishError, match="not published there any more"):
        promoter.point("production", version)
    assert place.alias("production") is None
    assert place.visible().keys() == {new.sha12}


def test_s3_export_whose_version_is_removed_before_latest_moves_is_told_and_completed_by_the_next(
    on_s3: S3Place, make: Make
) -> None:
    place, old, new = on_s3, make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    exporter, wire = place.open_wired()
    receipt = exporter.stage(old)
    [version] = place.open().versions(old.sha12)
    wire.act = once_before("PUT", "/latest.json", lambda: place.open().remove(version))
    with pytest.raises(PublishError, match="not published there any more"):
        exporter.release(old, receipt, order_of(3))
    assert place.alias("latest") == new.sha12
    place.publish(old, day=3)
    assert place.alias("latest") == old.sha12
    place.assert_whole()


def test_s3_files_that_are_published_between_the_list_and_their_deletion_are_withdrawn(
    on_s3: S3Place, make: Make
) -> None:
    place, package = on_s3, make(1)
    collector, wire = place.open_wired()
    place.open().stage(package)
    [orphan] = collector.orphans()

    def publish() -> None:
        key = f"loras/tiny/{package.sha12}/manifest.json"
        place.client.put_object(Bucket=place.bucket, Key=key, Body=package.manifest_bytes)

    wire.act = once_before("POST", "", publish)
    assert collector.discard(orphan)
    assert place.objects() == {}


def test_hub_version_that_is_promoted_while_it_is_removed_has_its_tag_in_the_end(
    hub: Hub, wire: Wire, make: Make
) -> None:
    place, old, new = HubPlace(hub), make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    destination = place.open()
    [version] = destination.versions(old.sha12)

    def act(number: int, line: str) -> None:
        if line.startswith("DELETE") and "/tag/" in line:
            wire.act = lambda number, line: None
            place.open().point("production", version)

    wire.restart(act)
    assert not destination.remove(version)
    assert place.alias("production") == old.sha12
    assert place.visible().keys() == {old.sha12, new.sha12}


def test_hub_version_whose_tag_goes_while_its_branch_moves_is_tagged_again(hub: Hub, wire: Wire, make: Make) -> None:
    place, old, new = HubPlace(hub), make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    promote("tiny", new.sha12, "production", [place.uri])
    destination = place.open()
    [version] = destination.versions(old.sha12)

    def act(number: int, line: str) -> None:
        if line.startswith("POST") and "/commit/production" in line:
            wire.act = lambda number, line: None
            assert place.open().remove(version)

    wire.restart(act)
    destination.point("production", version)
    assert place.alias("production") == old.sha12
    assert place.visible().keys() == {old.sha12, new.sha12}


@pytest.mark.slow
@pytest.mark.parametrize("delivered", [False, True])
def test_hub_crash_at_any_request_of_a_promotion_is_completed(
    hub: Hub, wire: Wire, make: Make, delivered: bool
) -> None:
    place, old, new = HubPlace(hub), make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)
    for nth in range(1, 40):
        promote("tiny", new.sha12, "production", [place.uri])
        [version] = place.open().versions(old.sha12)

        def act(number: int, line: str, nth: int = nth) -> bool:
            if number == nth and not delivered:
                raise CrashError
            return number == nth

        wire.restart(act)
        try:
            place.open().point("production", version)
            break
        except CrashError:
            wire.restart()
            assert place.alias("production") in (old.sha12, new.sha12)
            promote("tiny", old.sha12, "production", [place.uri])
            assert place.alias("production") == old.sha12
    assert nth > 3


# --- orphans ----------------------------------------------------------------------------------------------------------


def test_what_a_crashed_export_left_goes_when_it_is_old_and_what_is_published_stays(place: Place, make: Make) -> None:
    published, staged = make(1), make(2)
    place.publish(published)
    place.open().stage(staged)
    young = collect("tiny", [place.uri], yes=True)
    assert [(orphan.kind, orphan.fate) for orphan in young.destinations[0].orphans] == [("staged", "stays")]
    assert young.destinations[0].orphans[0].reasons == ("changed less than 1d ago",)
    before = place.everything()
    dry = collect("tiny", [place.uri], AT_ONCE)
    assert [orphan.fate for orphan in dry.destinations[0].orphans] == ["goes"]
    assert place.everything() == before
    done = collect("tiny", [place.uri], AT_ONCE, yes=True)
    assert [orphan.fate for orphan in done.destinations[0].orphans] == ["removed"]
    assert place.open().orphans() == ()
    assert place.visible() == {published.sha12: bytes_of(published)}
    assert place.alias("latest") == published.sha12


@EVERY_PLACE
def test_an_export_whose_files_were_collected_fails_cleanly_and_its_next_run_completes(
    place: Place, make: Make
) -> None:
    package = make()
    place.publish(make(2), day=1)
    exporter = place.open()
    receipt = exporter.stage(package)
    collect("tiny", [place.uri], AT_ONCE, yes=True)
    if not isinstance(place, HubPlace):  # its commit is there as long as the Hub keeps it
        with pytest.raises(PublishError, match="not there any more") as failed:
            exporter.release(package, receipt, order_of(2))
        assert failed.value.transient
        assert package.sha12 not in place.visible()
    place.publish(package, day=2)
    assert place.alias("latest") == package.sha12
    assert place.visible()[package.sha12] == bytes_of(package)


def test_what_changed_since_it_was_listed_is_not_discarded(place: Place, make: Make) -> None:
    package = make()
    place.publish(make(2))
    destination = place.open()
    destination.stage(package)
    [orphan] = destination.orphans()
    if isinstance(place, HubPlace):
        place.hub.put("acme/tiny", {"more.txt": b"1"}, f"stage-{package.sha12}")
    else:
        orphan = orphan.model_copy(update={"changed_at": orphan.changed_at - timedelta(seconds=1)})
    assert not destination.discard(orphan)
    place.publish(package, day=9)
    assert place.visible()[package.sha12] == bytes_of(package)


def test_what_was_published_since_it_was_listed_is_not_discarded(on_s3: S3Place, make: Make) -> None:
    place, package = on_s3, make()
    place.open().stage(package)
    [orphan] = place.open().orphans()
    place.publish(package)
    assert not place.open().discard(orphan.model_copy(update={"changed_at": datetime.now(UTC) + timedelta(days=1)}))
    assert place.visible() == {package.sha12: bytes_of(package)}


def test_s3_probes_and_uploads_in_parts_are_orphans_and_those_of_others_are_not(on_s3: S3Place, make: Make) -> None:
    place, package = on_s3, make()
    place.publish(package)
    upload = {"Bucket": place.bucket, "Key": f"loras/tiny/{package.sha12}/{WEIGHT_NAME}"}
    place.client.create_multipart_upload(**upload)
    place.client.create_multipart_upload(Bucket=place.bucket, Key="loras/tiny-2/0123456789ab/file")
    place.client.create_multipart_upload(Bucket=place.bucket, Key="loras/tiny/of-somebody")
    place.client.put_object(Bucket=place.bucket, Key=f"loras/tiny/.probe-{'0' * 32}", Body=b"1")
    place.client.put_object(Bucket=place.bucket, Key="loras/tiny/notes.txt", Body=b"mine")
    place.client.put_object(Bucket=place.bucket, Key="loras/tiny/notes/0123456789ab/x", Body=b"mine")
    done = collect("tiny", [place.uri], AT_ONCE, yes=True)
    assert {(orphan.kind, orphan.fate) for orphan in done.destinations[0].orphans} == {
        ("probe", "removed"),
        ("upload", "removed"),
    }
    left = {row["Key"] for row in place.client.list_multipart_uploads(Bucket=place.bucket).get("Uploads", ())}
    assert left == {"loras/tiny-2/0123456789ab/file", "loras/tiny/of-somebody"}
    assert {"notes.txt", "notes/0123456789ab/x"} <= place.objects().keys()
    assert place.visible() == {package.sha12: bytes_of(package)}


@pytest.mark.slow
def test_s3_files_beside_an_upload_in_parts_are_as_young_as_that(on_s3: S3Place, make: Make) -> None:
    place, package = on_s3, make()
    place.open().stage(package)
    time.sleep(1.01)  # the server tells whole seconds
    place.client.create_multipart_upload(Bucket=place.bucket, Key=f"loras/tiny/{package.sha12}/{WEIGHT_NAME}")
    ages = {orphan.kind: orphan.changed_at for orphan in place.open().orphans()}
    assert ages["staged"] == ages["upload"]


def test_folder_that_died_while_it_removed_a_version_is_tidied_by_collect(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, old, new = FolderPlace(tmp_path / "published"), make(1), make(2)
    place.publish(old, day=1)
    place.publish(new, day=2)

    def crash(path: Path, **_: Any) -> None:
        (path / WEIGHT_NAME).unlink()
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr("adapterline.destinations.folder.shutil.rmtree", crash)
        with pytest.raises(CrashError):
            prune("tiny", [place.uri], Rules(keep_last=1), yes=True)
    assert place.visible() == {new.sha12: bytes_of(new)}
    assert [orphan.kind for orphan in place.open().orphans()] == ["removed"]
    (tmp_path / "published" / ".adapterline-0123abcd").touch()
    (tmp_path / "published" / ".staging" / "other-0123456789ab").mkdir()
    done = collect("tiny", [place.uri], AT_ONCE, yes=True)
    assert [(orphan.kind, orphan.fate) for orphan in done.destinations[0].orphans] == [
        ("removed", "removed"),
        ("probe", "removed"),
    ]
    assert {path.name for path in place.root.rglob("*") if path.parent.name == ".staging"} == {"other-0123456789ab"}
    assert FolderDestination(place.uri, "tiny").orphans() == ()


def test_hub_branch_that_is_collected_during_an_upload_is_made_again(hub: Hub, wire: Wire, make: Make) -> None:
    place, package = HubPlace(hub), make()
    place.publish(make(2), day=1)

    def act(number: int, line: str) -> None:
        if line.startswith("POST") and f"/commit/stage-{package.sha12}" in line:
            wire.act = lambda number, line: None
            collect("tiny", [place.uri], AT_ONCE, yes=True)

    wire.restart(act)
    place.publish(package, day=2)
    assert place.visible()[package.sha12] == bytes_of(package)
    assert place.alias("latest") == package.sha12
