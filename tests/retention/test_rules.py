"""What stays and what goes, for any versions, aliases and rules."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterline.errors import UsageError
from adapterline.retention.rules import Rules, newest_first, reasons_to_leave, reasons_to_stay
from adapterline.values import Order, Orphan, Receipt, Version
from tests.packages import manifest_of

MANIFEST = manifest_of(())  # the rules do not read it
NOW = datetime(2026, 6, 1, tzinfo=UTC)
times = st.datetimes(datetime(2026, 1, 1), datetime(2026, 5, 31)).map(lambda time: time.replace(tzinfo=UTC))
orders = st.builds(Order, finished_at=times, step=st.integers(-1, 3), run_id=st.sampled_from(["", "a", "b"]))


def version(number: int, order: Order, published_at: datetime) -> Version:
    digest = hashlib.sha256(bytes([number])).hexdigest()
    receipt = Receipt(
        destination="place",
        name="tiny",
        digest=digest,
        location=digest[:12],
        manifest_sha256=digest,
        files=(),
        published=True,
    )
    return Version(receipt=receipt, manifest=MANIFEST, order=order, published_at=published_at)


versions = st.lists(st.tuples(orders, times), max_size=9).map(
    lambda rows: [version(number, *row) for number, row in enumerate(rows)]
)
rules = st.builds(
    Rules, keep_last=st.integers(0, 10), older_than=st.none() | st.integers(0, 200).map(lambda days: timedelta(days))
)


@given(versions, st.lists(st.integers(0, 8), max_size=4), rules)
def test_nothing_that_an_alias_points_to_goes(found: list[Version], pointed: list[int], rules: Rules) -> None:
    aliases = {f"alias-{i}": found[each].pointer() for i, each in enumerate(pointed) if each < len(found)}
    goes = {each.digest for each, reasons in reasons_to_stay(found, aliases, rules, NOW) if not reasons}
    assert not goes & {to.digest for to in aliases.values()}


@given(versions, st.integers(0, 10))
def test_keep_last_of_n_keeps_the_n_newest_and_no_more(found: list[Version], keep: int) -> None:
    judged = reasons_to_stay(found, {}, Rules(keep_last=keep), NOW)
    stays = [each for each, reasons in judged if reasons]
    assert len(stays) == min(keep, len(found))
    goes = [each for each, reasons in judged if not reasons]
    assert all(kept.order.key() >= gone.order.key() for kept in stays for gone in goes)


@given(versions, rules)
def test_every_version_is_judged_once_and_goes_only_if_every_rule_lets_it(found: list[Version], rules: Rules) -> None:
    judged = reasons_to_stay(found, {}, rules, NOW)
    assert sorted(each.digest for each, _ in judged) == sorted(each.digest for each in found)
    for place, (each, reasons) in enumerate(judged):
        young = rules.older_than is not None and NOW - each.published_at < rules.older_than
        newest = rules.keep_last is not None and place < rules.keep_last
        assert bool(reasons) == (young or newest)


@given(versions, st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_listing(found: list[Version], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert newest_first(shuffled) == newest_first(found)


@given(times, st.integers(0, 200))
def test_an_orphan_younger_than_the_limit_stays(changed_at: datetime, days: int) -> None:
    orphan = Orphan(kind="staged", place="place", changed_at=changed_at)
    stays = bool(reasons_to_leave(orphan, timedelta(days), NOW))
    assert stays == (NOW - changed_at < timedelta(days))


def test_rules_that_keep_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="Nothing says which versions may go"):
        Rules()
    with pytest.raises(UsageError, match="--keep-last is -1"):
        Rules(keep_last=-1)
