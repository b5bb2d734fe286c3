"""How a release reaches people on the Hub: onto another branch, as a pull request, later, or not at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from huggingface_hub import HfApi

from adapterline.destinations import address_of, open_destination
from adapterline.destinations.hub import HubDestination
from adapterline.destinations.latest import LATEST_NAME, MANIFEST_NAME, from_bytes
from adapterline.errors import PublishError, UsageError
from adapterline.package.card import CARD_NAME
from adapterline.settings import Settings
from adapterline.values import WEIGHT_NAME, Package, Publication
from tests.hub_double.faults import Fault
from tests.hub_double.server import Hub
from tests.hub_fixtures import CrashError, Wire
from tests.packages import order_of

REPO = "acme/tiny"
Make = Callable[..., Package]


def place(**how: Any) -> HubDestination:
    return HubDestination("hf://acme", "tiny", **how)


def publish(package: Package, day: int = 1, **how: Any) -> Publication:
    return place(**how).release(package, place(**how).stage(package), order_of(day))


def propose(package: Package, day: int = 1) -> Publication:
    return publish(package, day, pull_request=True)


def bytes_of(package: Package) -> dict[str, bytes]:
    files = {file.path: (package.folder / file.path).read_bytes() for file in package.files}
    return {**files, MANIFEST_NAME: package.manifest_bytes}


def content(hub: Hub, revision: str) -> dict[str, bytes]:
    found = hub.content(REPO, revision)
    assert found is not None, revision
    return found


def without_latest(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path != LATEST_NAME}


def refs(hub: Hub) -> set[str]:
    return {*hub.repository(REPO).refs("heads"), *hub.repository(REPO).refs("tags")}


# --- a pull request ---------------------------------------------------------------------------------------------------


def test_a_pull_request_has_the_export_and_main_has_nothing(hub: Hub, make: Make) -> None:
    package = make()
    publication = propose(package)
    assert (publication.latest, publication.revision) == ("proposed", "refs/pr/1")
    assert publication.url == f"{hub.url}/{REPO}/discussions/1"
    assert publication.receipt.location == f"hf://{REPO}@refs/pr/1"
    assert refs(hub) == {"main"}
    assert content(hub, "main") == {}
    offered = content(hub, "refs/pr/1")
    assert without_latest(offered) == bytes_of(package)
    assert from_bytes(offered[LATEST_NAME], "").digest == package.manifest.digest
    (request,) = hub.repository(REPO).pull_requests.values()
    assert request.title == f"Publish tiny {package.sha12}"
    assert package.manifest.digest in request.description
    assert place(pull_request=True).verify(publication)


def test_a_second_run_finds_the_open_pull_request_and_writes_nothing(hub: Hub, make: Make) -> None:
    package = make()
    first = propose(package)
    for seed in (1, 2, 3):
        propose(make(seed))
    hub.requests.clear()
    place(pull_request=True).check()
    receipt = place(pull_request=True).stage(package)
    again = place(pull_request=True).release(package, receipt, order_of(1))
    assert receipt.published
    assert receipt.location == first.receipt.location
    assert (again.url, again.latest, again.receipt.files) == (first.url, first.latest, first.receipt.files)
    assert hub.writes == []


def test_a_merged_pull_request_gets_its_tag_by_the_next_run(hub: Hub, make: Make) -> None:
    package = make()
    proposed = propose(package)
    hub.merge(REPO, 1)
    assert not place(pull_request=True).verify(proposed), "a run that stops here never sets the tag"
    publication = propose(package)
    assert (publication.latest, publication.revision) == ("moved", "")
    assert without_latest(content(hub, "main")) == bytes_of(package)
    assert content(hub, f"sha-{package.sha12}") == content(hub, "main")
    assert refs(hub) == {"main", f"sha-{package.sha12}"}
    assert place(pull_request=True).verify(publication)
    assert place().verify(publication)


def test_a_merged_one_that_is_no_longer_the_latest_keeps_what_is(hub: Hub, make: Make) -> None:
    first, second = make(1), make(2)
    propose(first)
    hub.merge(REPO, 1)
    propose(second, day=2)
    hub.merge(REPO, 2)
    publication = propose(first)
    assert (publication.latest, publication.revision) == ("kept", f"sha-{first.sha12}")
    assert without_latest(content(hub, f"sha-{first.sha12}")) == bytes_of(first)
    assert without_latest(content(hub, "main")) == bytes_of(second)


def test_what_somebody_closed_is_not_offered_again(hub: Hub, make: Make) -> None:
    package = make()
    publication = propose(package)
    hub.close(REPO, 1)
    assert not place(pull_request=True).verify(publication)
    with pytest.raises(PublishError, match="somebody closed it") as caught:
        propose(package)
    assert not caught.value.transient
    assert f"{REPO}/discussions/1" in str(caught.value)
    assert caught.value.remedy
    assert hub.repository(REPO).delete("refs/pr/1")  # as one may, on its page
    with pytest.raises(PublishError, match="somebody closed it"):
        propose(package)
    assert len(hub.repository(REPO).pull_requests) == 1
    assert publish(package).latest == "moved"  # who does not ask, publishes
    assert propose(package).latest == "moved"


def test_an_export_that_is_published_is_not_offered(hub: Hub, make: Make) -> None:
    package = make()
    publish(package)
    hub.requests.clear()
    assert propose(package).latest == "moved"
    assert hub.writes == []
    assert hub.repository(REPO).pull_requests == {}


def test_an_open_pull_request_is_no_reason_not_to_publish(hub: Hub, make: Make) -> None:
    package = make()
    proposed = propose(package)
    assert not place().verify(proposed.model_copy(update={"latest": "moved"}))
    assert publish(package).latest == "moved"
    assert without_latest(content(hub, "main")) == bytes_of(package)


def test_an_older_export_is_offered_and_says_that_it_is_older(hub: Hub, make: Make) -> None:
    newer, older = make(1), make(2)
    publish(newer, day=9)
    assert propose(older, day=3).latest == "proposed"
    assert "later training run" in hub.repository(REPO).pull_requests[1].description
    assert without_latest(content(hub, "main")) == bytes_of(newer)


def test_a_lost_answer_to_the_pull_request_opens_no_second_one(hub: Hub, make: Make) -> None:
    hub.faults.arm(Fault("/commit/main", drop="after"))
    assert propose(make()).latest == "proposed"
    assert len(hub.repository(REPO).pull_requests) == 1


@pytest.mark.slow
def test_a_crash_before_any_request_leaves_one_pull_request_after_the_next_run(
    hub: Hub, wire: Wire, make: Make
) -> None:
    package = make()
    for number in range(1, 40):
        repo_id = f"acme/crash{number}"
        destination = HubDestination(f"hf://{repo_id}", "tiny", pull_request=True)

        def die(count: int, line: str, at: int = number) -> None:
            if count >= at:
                raise CrashError

        wire.restart(die)
        try:
            destination.release(package, destination.stage(package), order_of(1))
        except CrashError:
            wire.restart()
            assert destination.release(package, destination.stage(package), order_of(1)).latest == "proposed"
        else:
            break
        repository = hub.repository(repo_id)
        assert len(repository.pull_requests) == 1
        assert {*repository.refs("heads"), *repository.refs("tags")} == {"main"}
    assert 15 < number < 40


def test_a_card_that_is_edited_in_review_counts(hub: Hub, make: Make) -> None:
    package = make()
    publication = propose(package)
    repository = hub.repository(REPO)
    head = repository.find("refs/pr/1")
    assert head is not None
    edited = repository.commit(head, {CARD_NAME: b"# Reviewed\n"}, "better words")
    assert repository.swap("refs/pr/1", edited, head)
    assert place(pull_request=True).verify(publication)
    hub_weights = repository.commit(edited, {WEIGHT_NAME: b"other"}, "other weights")
    assert repository.swap("refs/pr/1", hub_weights, edited)
    assert not place(pull_request=True).verify(publication)
    with pytest.raises(PublishError, match="is not what manifest.json beside it says"):
        propose(package)


# --- a branch ---------------------------------------------------------------------------------------------------------


def test_a_branch_takes_the_place_of_main(hub: Hub, make: Make) -> None:
    first, second, on_main = make(1), make(2), make(3)
    publish(on_main, day=9)
    main = hub.repository(REPO).refs("heads")["main"]
    publication = publish(first, day=1, branch="beta")
    assert (publication.latest, publication.revision) == ("moved", f"sha-{first.sha12}")
    assert without_latest(content(hub, "beta")) == bytes_of(first)
    assert publish(second, day=2, branch="beta").latest == "moved"
    assert publish(make(4), day=1, branch="beta").latest == "kept"
    assert without_latest(content(hub, "beta")) == bytes_of(second)
    assert from_bytes(content(hub, "beta")[LATEST_NAME], "").order == order_of(2)
    assert hub.repository(REPO).refs("heads")["main"] == main
    assert without_latest(content(hub, f"sha-{first.sha12}")) == bytes_of(first)
    assert place(branch="beta").verify(publication)


def test_what_is_on_main_comes_onto_a_branch_by_the_next_run_for_it(hub: Hub, make: Make) -> None:
    package = make()
    publish(package)
    tagged = hub.repository(REPO).refs("tags")
    assert publish(package, branch="release/2.0").latest == "moved"
    assert content(hub, "release/2.0") == content(hub, "main")
    assert hub.repository(REPO).refs("tags") == tagged


def test_another_name_on_the_branch_is_refused(hub: Hub, make: Make) -> None:
    hub.put(REPO, {"notes.txt": b"mine"})
    repository = hub.repository(REPO)
    start = repository.find("main")
    assert start is not None
    assert repository.swap("refs/heads/beta", start)
    hub.put(REPO, {MANIFEST_NAME: make(name="other").manifest_bytes}, branch="beta")
    for call in (place(branch="beta").check, lambda: publish(make(), branch="beta")):
        with pytest.raises(PublishError, match="holds the adapter 'other'"):
            call()


@pytest.mark.slow
def test_a_crash_before_any_request_to_a_new_branch_is_completed(hub: Hub, wire: Wire, make: Make) -> None:
    packages = [make(seed) for seed in range(40)]
    for number, package in enumerate(packages, 1):

        def die(count: int, line: str, at: int = number) -> None:
            if count >= at:
                raise CrashError

        wire.restart(die)
        try:
            publish(package, branch=f"beta-{number}")
        except CrashError:
            wire.restart()
            publish(package, branch=f"beta-{number}")
        else:
            break
        assert without_latest(content(hub, f"beta-{number}")) == bytes_of(package)
        assert content(hub, f"sha-{package.sha12}") == content(hub, f"beta-{number}")
        assert content(hub, "main") == {}
        assert f"stage-{package.sha12}" not in refs(hub)
    assert 15 < number < 40


# --- by settings, and by the command ----------------------------------------------------------------------------------


def test_settings_say_how_it_is_published(hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make()
    monkeypatch.setenv("ADAPTERLINE_HUB_PR", "true")
    monkeypatch.setenv("ADAPTERLINE_HUB_PRIVATE", "false")
    destination = open_destination("hf://acme", "tiny")
    assert destination.release(package, destination.stage(package), order_of(1)).latest == "proposed"
    assert not hub.repository(REPO).private
    monkeypatch.setenv("ADAPTERLINE_HUB_PR", "false")
    monkeypatch.setenv("ADAPTERLINE_HUB_BRANCH", "beta")
    destination = open_destination("hf://acme", "tiny")
    destination.release(package, destination.stage(package), order_of(1))
    assert without_latest(content(hub, "beta")) == bytes_of(package)
    assert content(hub, "main") == {}


def test_an_export_to_a_branch_or_a_pull_request_is_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {address_of("hf://acme")}
    for name, value in (("HUB_PR", "true"), ("HUB_BRANCH", "beta"), ("HUB_BRANCH", "gamma")):
        with monkeypatch.context() as context:
            context.setenv(f"ADAPTERLINE_{name}", value)
            addresses.add(address_of("hf://acme"))
            assert address_of("s3://bucket") == "s3://bucket"
    assert len(addresses) == 4
    assert "hf://acme" in addresses


@pytest.mark.parametrize("name", ["", "sha-123", "stage-1", "refs/pr/1", "a b", "a..b", "a/", "-a", "x.lock", "a//b"])
def test_a_branch_that_cannot_be_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a branch"):
        Settings(hub_branch=name)


def test_a_pull_request_to_another_branch_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="go to main"):
        Settings(hub_branch="beta", hub_pr=True)


def test_options_of_the_command_are_settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import json, sys\n"
        "from adapterline import api, cli\n"
        "from adapterline.settings import Settings\n"
        "def export(checkpoint, **given):\n"
        "    print(json.dumps([Settings().hub_private, Settings().hub_branch, Settings().hub_pr, sorted(given),\n"
        "                      given['options'].model_dump(mode='json')]))\n"
        "    sys.exit(0)\n"
        "api.export = export\n"
        "cli.main()\n"
    )

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-c", code, "export", "x", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=120)
        assert done.returncode in (0, 2), done.stderr
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    plain = run()
    assert plain[:3] == [True, "main", False]
    chosen = run("--hub-public", "--hub-branch", "beta")
    assert chosen[:3] == [False, "beta", False]
    assert chosen[3:] == plain[3:], "how it is published is part of what is exported"
    assert "go to main" in run("--hub-pr", "--hub-branch", "beta")


# --- a repository that must not be created ----------------------------------------------------------------------------


def test_a_missing_repository_is_refused_where_none_may_be_created(hub: Hub, make: Make) -> None:
    for call in (place(create=False).check, lambda: publish(make(), create=False)):
        with pytest.raises(PublishError, match="ADAPTERLINE_HUB_CREATE is false") as caught:
            call()
        assert not caught.value.transient
        assert caught.value.remedy
    assert hub.writes == []
    HfApi(endpoint=hub.url).create_repo(REPO, private=True)
    place(create=False).check()
    assert publish(make(), create=False).latest == "moved"


# --- limits of the Hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr("adapterline.hub.time.sleep", waited.append)
    return waited


def _in(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    "match", ["/refs", "/repos/create", "POST .*/branch/", "/commit/stage-", "/commit/main", "/tag/"]
)
def test_the_pause_that_the_hub_asks_for_is_made(hub: Hub, make: Make, pauses: list[float], match: str) -> None:
    hub.faults.arm(Fault(match, status=429, headers={"Retry-After": "7"}, times=2))
    package = make()
    assert publish(package).latest == "moved"
    assert pauses[:2] == [7, 7]
    assert len([line for line in hub.writes if re.search("/commit/main", line)]) <= 3
    assert without_latest(content(hub, "main")) == bytes_of(package)


def test_a_pause_may_be_a_date_or_a_limit_of_the_hub(hub: Hub, make: Make, pauses: list[float]) -> None:
    hub.faults.arm(Fault("/commit/main", status=429, headers={"Retry-After": _in(50)}))
    publish(make(1))
    assert 40 < pauses.pop() <= 50
    hub.faults.arm(Fault("/commit/main", status=429, headers={"RateLimit": '"api";r=0;t=55'}))
    publish(make(2), day=2)
    assert pauses == [55]


@pytest.mark.parametrize("said", ["100000", "", "soon", "a date"])
def test_a_pause_that_is_too_long_or_not_said_is_left_to_the_caller(
    hub: Hub, make: Make, pauses: list[float], said: str
) -> None:
    said = _in(4000) if said == "a date" else said
    hub.faults.arm(Fault("/commit/main", status=429, headers={"Retry-After": said} if said else {}, times=99))
    with pytest.raises(PublishError, match="answered 429") as caught:
        publish(make())
    assert caught.value.transient
    assert pauses == []


def test_pauses_end(hub: Hub, make: Make, pauses: list[float]) -> None:
    hub.faults.arm(Fault("/refs", status=429, headers={"Retry-After": "60"}, times=10**6))
    with pytest.raises(PublishError, match="answered 429"):
        place().stage(make())
    assert pauses == [60] * 5
    hub.faults.arm(Fault("/refs", status=429, headers={"Retry-After": "0"}, times=10**6))
    with pytest.raises(PublishError, match="answered 429"):
        place().check()
