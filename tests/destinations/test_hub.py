from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download

from adapterline.destinations.hub import HubDestination
from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes
from adapterline.errors import PublishError, UsageError
from adapterline.package.card import CARD_NAME
from adapterline.values import WEIGHT_NAME, Manifest, Order, Package, Publication
from tests.hub_double.faults import Fault
from tests.hub_double.server import Hub
from tests.hub_fixtures import READER, STRANGER, WRITER, CrashError, Wire
from tests.packages import make_package

REPO = "acme/tiny"
Make = Callable[..., Package]


def order_on(day: int) -> Order:
    """Of a training run that finished on that day of a month."""
    return Order(finished_at=datetime(2026, 5, day, tzinfo=UTC))


def destination(uri: str = "hf://acme", name: str = "tiny") -> HubDestination:
    return HubDestination(uri, name)


def publish(package: Package, day: int = 1, uri: str = "hf://acme") -> Publication:
    place = destination(uri, package.name)
    return place.release(package, place.stage(package), order_on(day))


def bytes_of(package: Package) -> dict[str, bytes]:
    files = {file.path: (package.folder / file.path).read_bytes() for file in package.files}
    return {**files, MANIFEST_NAME: package.manifest_bytes}


def content(hub: Hub, revision: str, repo_id: str = REPO) -> dict[str, bytes]:
    found = hub.content(repo_id, revision)
    assert found is not None, f"no {revision} in {repo_id}"
    return found


def refs(hub: Hub, repo_id: str = REPO) -> set[str]:
    repository = hub.repository(repo_id)
    return {*repository.refs("heads"), *repository.refs("tags")}


def history(hub: Hub, repo_id: str = REPO) -> list[str]:
    """The titles on main, the newest first."""
    return [entry.title for entry in hub.repository(repo_id).log(hub.repository(repo_id).refs("heads")["main"])]


def assert_whole(hub: Hub, repo_id: str = REPO) -> None:
    """Every commit that was ever on main, and every tag, has all of an export or none of it."""
    repository = hub.repository(repo_id)
    on_main = [entry.oid for entry in repository.log(repository.refs("heads")["main"])]
    for commit in {*on_main, *repository.refs("tags").values()}:
        files = content(hub, commit, repo_id)
        if MANIFEST_NAME not in files:
            assert not {WEIGHT_NAME, LATEST_NAME, CARD_NAME} & files.keys()
            continue
        manifest = Manifest.model_validate_json(files[MANIFEST_NAME])
        for file in manifest.files:
            assert hashlib.sha256(files[file.path]).hexdigest() == file.sha256
        if commit in on_main:
            latest = from_bytes(files[LATEST_NAME], "main")
            assert latest.digest == manifest.digest
            assert latest.manifest_sha256 == hashlib.sha256(files[MANIFEST_NAME]).hexdigest()


def assert_published(hub: Hub, package: Package, repo_id: str = REPO) -> None:
    """On main, under its tag, and nothing is left of the staging."""
    assert_whole(hub, repo_id)
    on_main = content(hub, "main", repo_id)
    del on_main[LATEST_NAME]
    assert on_main == bytes_of(package)
    assert content(hub, f"sha-{package.sha12}", repo_id) == content(hub, "main", repo_id)
    assert f"stage-{package.sha12}" not in refs(hub, repo_id)


# --- what everybody sees ------------------------------------------------------------------------------------------


def test_nothing_is_on_main_and_nothing_is_tagged_before_release(hub: Hub, make: Make) -> None:
    package = make()
    receipt = destination().stage(package)
    assert content(hub, "main") == {}
    assert hub.repository(REPO).refs("tags") == {}
    assert content(hub, f"stage-{package.sha12}") == bytes_of(package)
    assert (receipt.published, receipt.read_back) == (False, "checksum")
    assert receipt.files == package.files


def test_snapshots_of_main_and_of_the_tag_have_the_package_after_release(hub: Hub, make: Make, tmp_path: Path) -> None:
    package = make(configs={"text/adapter.cfg": b"x"})
    publication = publish(package)
    assert publication.latest == "moved"
    assert publication.load == REPO
    assert publication.url == f"{hub.url}/{REPO}/tree/sha-{package.sha12}"
    assert_published(hub, package)
    for revision in ("main", f"sha-{package.sha12}"):
        folder = Path(snapshot_download(REPO, revision=revision, cache_dir=tmp_path / "cache", endpoint=hub.url))
        assert {path: (folder / path).read_bytes() for path in bytes_of(package)} == bytes_of(package)


def test_weights_go_to_the_large_file_store_in_one_commit(hub: Hub, make: Make) -> None:
    package = make()
    destination().stage(package)
    assert hub.stored(package.files[0].sha256).read_bytes() == (package.folder / WEIGHT_NAME).read_bytes()
    log = hub.repository(REPO).log(hub.repository(REPO).refs("heads")[f"stage-{package.sha12}"])
    assert [entry.title for entry in log] == [f"Stage tiny {package.sha12}", "initial commit"]


def test_second_run_writes_nothing_and_says_published(hub: Hub, make: Make) -> None:
    package = make()
    first = publish(package)
    hub.requests.clear()
    receipt = destination().stage(package)
    again = destination().release(package, receipt, order_on(1))
    assert receipt.published
    assert hub.writes == []
    assert again.receipt.manifest_sha256 == first.receipt.manifest_sha256
    assert (again.latest, again.url) == (first.latest, first.url)


def test_older_export_is_tagged_and_leaves_main(hub: Hub, make: Make) -> None:
    newer, older = make(1, configs={"extra.cfg": b"1"}), make(2)
    publish(newer, day=9)
    main = hub.repository(REPO).refs("heads")["main"]
    publication = publish(older, day=3)
    assert publication.latest == "kept"
    assert hub.repository(REPO).refs("heads") == {"main": main}
    assert content(hub, f"sha-{older.sha12}") == bytes_of(older)
    assert destination().verify(publication)
    assert_published(hub, newer)


def test_earlier_export_comes_back_to_main_when_a_later_run_gives_it_again(hub: Hub, make: Make) -> None:
    first, second = make(1), make(2)
    publish(first, day=1)
    tagged = hub.repository(REPO).refs("tags")[f"sha-{first.sha12}"]
    publish(second, day=2)
    assert publish(first, day=3).latest == "moved"
    assert hub.repository(REPO).refs("tags")[f"sha-{first.sha12}"] == tagged
    on_main = content(hub, "main")
    assert from_bytes(on_main.pop(LATEST_NAME), "main").order == order_on(3)
    assert on_main == bytes_of(first)
    assert_whole(hub)


def test_later_order_of_what_is_on_main_moves_only_latest(hub: Hub, make: Make) -> None:
    package = make()
    publish(package, day=1)
    publish(package, day=5)
    assert from_bytes(content(hub, "main")[LATEST_NAME], "main").order == order_on(5)
    assert publish(make(2), day=3).latest == "kept"


def test_files_of_the_previous_export_go_and_those_of_people_stay(hub: Hub, make: Make) -> None:
    publish(make(1, configs={"old/extra.cfg": b"1"}), day=1)
    hub.put(REPO, {"images/a.png": b"png", "notes.txt": b"mine"})
    publish(make(2), day=2)
    assert content(hub, "main").keys() == {
        WEIGHT_NAME, CARD_NAME, MANIFEST_NAME, LATEST_NAME, "images/a.png", "notes.txt"
    }  # fmt: skip
    assert_whole(hub)


def test_card_of_a_person_stays(hub: Hub, make: Make) -> None:
    card = b"# My own words\n"
    hub.put(REPO, {CARD_NAME: card})
    package = make()
    publication = publish(package)
    assert content(hub, "main")[CARD_NAME] == card
    assert destination().verify(publication)
    publish(make(2), day=2)
    assert content(hub, "main")[CARD_NAME] == card


@pytest.mark.parametrize("private", [True, False])
def test_created_repository_is_as_private_as_asked(hub: Hub, make: Make, private: bool) -> None:
    HubDestination("hf://acme", "tiny", private=private).stage(make())
    assert hub.repository(REPO).private is private


def test_existing_repository_keeps_its_visibility(hub: Hub, make: Make) -> None:
    hub.put(REPO, {"notes.txt": b"mine"})
    HubDestination("hf://acme", "tiny", private=True).stage(make())
    assert not hub.repository(REPO).private


# --- whose repository -------------------------------------------------------------------------------------------------


def test_repository_of_one_name_takes_that_name_and_no_other(hub: Hub, make: Make, tmp_path: Path) -> None:
    publish(make(name="tiny"), uri="hf://acme/Showcase")
    assert_whole(hub, "acme/Showcase")
    before = hub.repository("acme/Showcase").refs("heads")
    other = make_package(tmp_path / "other", 3, name="other")
    place = destination("hf://acme/Showcase", "other")
    for call in (place.check, lambda: place.stage(other)):
        with pytest.raises(PublishError, match="holds the adapter 'tiny'") as caught:
            call()
        assert not caught.value.transient
    assert hub.repository("acme/Showcase").refs("heads") == before


def test_manifest_of_something_else_is_never_overwritten(hub: Hub, make: Make) -> None:
    hub.put(REPO, {MANIFEST_NAME: b'{"name": "a web app"}'})
    with pytest.raises(PublishError, match=re.escape("manifest.json in acme/tiny is not a manifest")):
        publish(make())
    assert content(hub, "main") == {MANIFEST_NAME: b'{"name": "a web app"}'}


def test_another_digest_under_the_same_tag_is_refused(hub: Hub, make: Make) -> None:
    first, second = make(1), make(2)
    publish(first)
    repository = hub.repository(REPO)
    assert repository.swap(f"refs/tags/sha-{second.sha12}", repository.refs("heads")["main"])
    before = repository.refs("heads")
    with pytest.raises(PublishError, match=f"should hold {second.manifest.digest} and holds {first.manifest.digest}"):
        destination().stage(second)
    assert repository.refs("heads") == before


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf:///tiny",
        "hf://acme/tiny/more",
        "hf://acme/tiny@main",
        "hf://acme/..",
        "hf://ac--me",
        "hf://acme/a b",
        "s3://acme",
        "acme",
    ],
)
def test_uri_that_names_no_repository_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match="not a place on the Hub"):
        HubDestination(uri, "tiny")


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_of_a_missing_repository_creates_nothing(hub: Hub) -> None:
    destination().check()
    destination("hf://alice").check()
    assert hub.writes == []
    assert not (hub.root / "repositories").exists()


def test_check_of_an_existing_repository_writes_nothing(hub: Hub, make: Make) -> None:
    publish(make())
    hub.requests.clear()
    destination().check()
    assert hub.writes == []


def test_check_says_what_the_token_lacks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(REPO, {"notes.txt": b"public"})
    for token, uri, message in (
        (READER, "hf://acme", "may only read"),
        (STRANGER, "hf://acme", "answered 403"),
        (STRANGER, "hf://other", "does not exist, and the token of mallory cannot create it"),
        ("hf_unknown", "hf://acme", "answered 401"),
        ("", "hf://acme", "no access token"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PublishError, match=message) as caught:
            destination(uri).check()
        assert_one_paragraph(caught.value, transient=False)


# --- errors -----------------------------------------------------------------------------------------------------------


def assert_one_paragraph(error: PublishError, *, transient: bool) -> None:
    text = str(error)
    assert error.transient is transient
    assert "\n" not in text
    assert "Traceback" not in text
    assert not any(secret in text for secret in (WRITER, READER, STRANGER, "signature="))
    assert error.remedy


@pytest.mark.parametrize(
    ("status", "transient"), [(401, False), (403, False), (429, True), (500, True), (503, True), (504, True)]
)
def test_refused_commit_says_what_to_do(hub: Hub, make: Make, status: int, transient: bool) -> None:
    hub.faults.arm(Fault(r"POST .*/commit/", status=status))
    with pytest.raises(PublishError, match=f"the Hub answered {status}") as caught:
        publish(make())
    assert_one_paragraph(caught.value, transient=transient)


def test_refused_upload_says_nothing_of_its_signature(hub: Hub, make: Make) -> None:
    hub.faults.arm(Fault(r"PUT /lfs/", status=403))
    with pytest.raises(PublishError, match="the Hub answered 403") as caught:
        publish(make())
    assert_one_paragraph(caught.value, transient=False)


def test_unreachable_hub_is_a_transient_error(hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    package = make()
    for call in (destination().check, lambda: destination().stage(package)):
        with pytest.raises(PublishError, match="no whole answer") as caught:
            call()
        assert_one_paragraph(caught.value, transient=True)


def test_endpoint_that_is_no_url_is_not_transient(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with pytest.raises(PublishError, match="not a URL") as caught:
        destination().check()
    assert_one_paragraph(caught.value, transient=False)


def test_silent_hub_is_given_up(hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("adapterline.hub.SILENCE_S", 0.2)
    close_session()
    hub.faults.arm(Fault("/refs", delay=1.5))
    with pytest.raises(PublishError, match="no whole answer") as caught:
        destination().stage(make())
    assert caught.value.transient


def test_file_that_arrives_changed_is_not_released(hub: Hub, make: Make) -> None:
    package = make()
    (package.folder / CARD_NAME).write_bytes(b"changed since it was packaged")
    with pytest.raises(PublishError, match=re.escape(f"{CARD_NAME} in stage-{package.sha12}")) as caught:
        destination().stage(package)
    assert caught.value.transient
    assert content(hub, "main") == {}


# --- crashes and lost answers -----------------------------------------------------------------------------------------


@pytest.fixture
def repositories(hub: Hub, make: Make) -> Callable[[int], str]:
    """Copies of a repository that has an export with a file that the next one has not: gives the id of the n-th."""
    publish(make(100, configs={"old.cfg": b"1"}), day=1, uri="hf://acme/first")

    def copy(number: int) -> str:
        folder = hub.root / "repositories/acme"
        shutil.copytree(folder / "first.git", folder / f"copy{number}.git")
        return f"acme/copy{number}"

    return copy


@pytest.mark.slow
def test_crash_before_any_request_is_completed_by_the_next_run(
    hub: Hub, wire: Wire, make: Make, repositories: Callable[[int], str]
) -> None:
    package = make(configs={"new.cfg": b"2"})
    for number in range(1, 100):
        repo_id = repositories(number)

        def die(count: int, line: str, at: int = number) -> None:
            if count >= at:
                raise CrashError

        wire.restart(die)
        try:
            publish(package, day=2, uri=f"hf://{repo_id}")
        except CrashError:
            assert_whole(hub, repo_id)
            wire.restart()
            assert publish(package, day=2, uri=f"hf://{repo_id}").latest == "moved"
        else:
            break
        assert_published(hub, package, repo_id)
        assert len(history(hub, repo_id)) == 3, "a second commit for the same export"
    assert number > 20


@pytest.mark.slow
@pytest.mark.usefixtures("no_pauses")
def test_connection_lost_at_any_request_is_survived_or_transient(
    hub: Hub, make: Make, repositories: Callable[[int], str]
) -> None:
    package = make(configs={"new.cfg": b"2"})
    hub.requests.clear()
    publish(package, day=2, uri=f"hf://{repositories(0)}")
    requests, writes = list(hub.requests), set(hub.writes)
    after = [Fault("", drop="after", skip=number) for number in range(len(requests))]
    before = [Fault("", drop="before", skip=number) for number, line in enumerate(requests) if line in writes]
    survived = 0
    for number, fault in enumerate(after + before, 1):
        repo_id = repositories(number)
        hub.faults.arm(fault)
        try:
            publish(package, day=2, uri=f"hf://{repo_id}")
            survived += 1
        except PublishError as error:
            assert_one_paragraph(error, transient=True)
            assert_whole(hub, repo_id)
            publish(package, day=2, uri=f"hf://{repo_id}")
        assert_published(hub, package, repo_id)
        assert len(history(hub, repo_id)) == 3, "a second commit for the same export"
    assert len(before) == 6
    assert survived > len(before)


@pytest.mark.parametrize(
    "write", ["/repos/create", "POST .*/branch/", "/commit/stage-", "/commit/main", "/tag/", "DELETE"]
)
def test_lost_answer_to_a_write_is_taken_for_what_it_did(hub: Hub, make: Make, write: str) -> None:
    hub.faults.arm(Fault(write, drop="after"))
    package = make()
    assert publish(package).latest == "moved"
    assert_published(hub, package)
    assert history(hub) == [f"Publish tiny {package.sha12}", "initial commit"]
    assert len([line for line in hub.writes if re.search(write, line)]) == 1


def test_leftover_branch_of_other_bytes_is_completed(hub: Hub, make: Make) -> None:
    package = make()
    destination().stage(package)
    hub.put(REPO, {WEIGHT_NAME: b"damaged", "manifest.json": None}, f"stage-{package.sha12}")
    receipt = destination().stage(package)
    destination().release(package, receipt, order_on(1))
    assert_published(hub, package)


def test_staging_that_somebody_took_away_is_transient(hub: Hub, make: Make) -> None:
    package = make()
    receipt = destination().stage(package)
    hub.repository(REPO).delete(f"refs/heads/stage-{package.sha12}")
    subprocess.run(
        ["git", "-C", str(hub.root / "repositories" / f"{REPO}.git"), "gc", "--prune=now", "--quiet"], check=True
    )
    with pytest.raises(PublishError, match="not there any more") as caught:
        destination().release(package, receipt, order_on(1))
    assert caught.value.transient
    publish(package)
    assert_published(hub, package)


# --- others at the same time ------------------------------------------------------------------------------------------


def test_commit_of_a_person_in_between_is_kept(hub: Hub, wire: Wire, make: Make) -> None:
    package = make()
    receipt = destination().stage(package)

    def interfere(count: int, line: str) -> None:
        if line.endswith("/commit/main"):
            wire.restart()
            hub.put(REPO, {"notes.txt": b"just now"})

    wire.restart(interfere)
    destination().release(package, receipt, order_on(1))
    assert content(hub, "main")["notes.txt"] == b"just now"
    assert content(hub, "main")[WEIGHT_NAME] == bytes_of(package)[WEIGHT_NAME]
    assert history(hub) == [f"Publish tiny {package.sha12}", "by hand", "initial commit"]


def test_main_that_changes_all_the_time_is_given_up(
    hub: Hub, wire: Wire, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterline.destinations.hub_repository.random.uniform", lambda low, high: 0)
    package = make()
    receipt = destination().stage(package)

    def interfere(count: int, line: str) -> None:
        if line.endswith("/commit/main"):
            hub.put(REPO, {"notes.txt": str(count).encode()})

    wire.restart(interfere)
    with pytest.raises(PublishError, match="changed by others") as caught:
        destination().release(package, receipt, order_on(1))
    assert_one_paragraph(caught.value, transient=True)


def test_newer_export_that_came_in_between_stays_latest(hub: Hub, wire: Wire, make: Make) -> None:
    older, newer = make(1), make(2)
    receipt = destination().stage(older)

    def interfere(count: int, line: str) -> None:
        if line.endswith("/commit/main"):
            wire.restart()
            publish(newer, day=9)

    wire.restart(interfere)
    assert destination().release(older, receipt, order_on(3)).latest == "kept"
    assert_published(hub, newer)
    assert content(hub, f"sha-{older.sha12}") == bytes_of(older)


def test_second_exporter_of_a_bundle_adopts_the_first_manifest(hub: Hub, make: Make) -> None:
    first, second = make(tool="1"), make(tool="2")
    assert first.manifest.digest == second.manifest.digest
    mine = destination().stage(first)
    theirs = destination().stage(second)
    assert mine.manifest_sha256 != theirs.manifest_sha256
    published = destination().release(first, mine, order_on(1))
    adopted = destination().release(second, theirs, order_on(1))
    assert_published(hub, first)
    assert adopted.receipt.manifest_sha256 == published.receipt.manifest_sha256 == mine.manifest_sha256
    assert adopted.receipt.files == first.files
    assert destination().verify(adopted)
    assert destination().stage(second).manifest_sha256 == mine.manifest_sha256
    assert len(history(hub)) == 2


def test_exporter_that_finds_an_untagged_release_of_its_bundle_completes_that(hub: Hub, wire: Wire, make: Make) -> None:
    first, second = make(tool="1"), make(tool="2")

    def die(count: int, line: str) -> None:
        if "/tag/" in line:
            raise CrashError

    wire.restart(die)
    with pytest.raises(CrashError):
        publish(first)
    wire.restart()
    publish(second)
    assert_published(hub, first)


def test_repository_that_somebody_else_just_created_is_used(hub: Hub, wire: Wire, make: Make) -> None:
    def interfere(count: int, line: str) -> None:
        if line.endswith("/repos/create"):
            hub.put(REPO, {"notes.txt": b"mine"})

    wire.restart(interfere)
    publish(make())
    assert content(hub, "main")["notes.txt"] == b"mine"
    assert_whole(hub)


@pytest.mark.parametrize("same", [True, False], ids=["one bundle", "two bundles"])
def test_exporters_that_race_leave_one_whole_latest_and_every_version(hub: Hub, make: Make, same: bool) -> None:
    packages = [make(0 if same else number, tool=str(number)) for number in range(3)]
    start = threading.Barrier(len(packages))
    done: dict[int, Publication | PublishError] = {}

    def run(number: int) -> None:
        start.wait()
        try:
            done[number] = publish(packages[number], day=number + 1)
        except PublishError as error:
            done[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(packages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, package in enumerate(packages):
        if isinstance(error := done[number], PublishError):
            assert error.transient, error
            done[number] = publish(package, day=number + 1)
    assert_whole(hub)
    latest = from_bytes(content(hub, "main")[LATEST_NAME], "main")
    assert latest.order == order_on(3)
    assert latest.digest == packages[2].manifest.digest
    assert refs(hub) == {"main", *(f"sha-{package.sha12}" for package in packages)}
    assert all(destination().verify(each) for each in done.values() if isinstance(each, Publication))
    if same:
        manifests = {each.receipt.manifest_sha256 for each in done.values() if isinstance(each, Publication)}
        assert manifests == {latest.manifest_sha256}


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_looks_at_the_tag_and_not_at_main(hub: Hub, make: Make) -> None:
    publication = publish(make(1), day=1)
    publish(make(2), day=2)
    hub.put(REPO, {WEIGHT_NAME: b"other"})
    assert destination().verify(publication)


def test_verify_is_false_when_the_tag_or_the_repository_is_gone(hub: Hub, make: Make) -> None:
    package = make()
    publication = publish(package)
    hub.repository(REPO).delete(f"refs/tags/sha-{package.sha12}")
    assert not destination().verify(publication)
    HfApi(endpoint=hub.url).delete_repo(REPO)
    assert not destination().verify(publication)


@pytest.mark.parametrize("path", [WEIGHT_NAME, CARD_NAME, MANIFEST_NAME])
def test_verify_is_false_when_a_tagged_file_has_other_bytes(hub: Hub, make: Make, path: str) -> None:
    package = make()
    publication = publish(package)
    commit = hub.put(REPO, {path: json.dumps({"name": "x"}).encode()})
    repository = hub.repository(REPO)
    assert repository.swap(f"refs/tags/sha-{package.sha12}", commit, repository.refs("tags")[f"sha-{package.sha12}"])
    assert not destination().verify(publication)


def test_verify_of_an_unreachable_hub_raises(hub: Hub, make: Make) -> None:
    publication = publish(make())
    hub.faults.arm(Fault("/refs", status=503))
    with pytest.raises(PublishError, match="503") as caught:
        destination().verify(publication)
    assert caught.value.transient
