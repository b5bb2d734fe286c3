"""Checks as they are made: nothing is raised, everything is collected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adapterline.values import Check


class Findings:
    """Collects checks in the order in which they are made. `consumer` is what the files were loaded with.

    `not_run` says of what was not checked why.
    """

    def __init__(
        self,
        consumer: str | None = None,
        checks: list[Check] | None = None,
        not_run: dict[str, str] | None = None,
    ) -> None:
        self.consumer = consumer
        self.checks = [] if checks is None else checks
        self.not_run = {} if not_run is None else not_run

    def by(self, consumer: str) -> Findings:
        """The same collection, for what a consumer shows."""
        return Findings(consumer, self.checks, self.not_run)

    def that(
        self,
        name: str,
        passed: bool,
        *,
        observed: float | str,
        limit: float | str,
        component: str | None = None,
        modules: Iterable[str] = (),
        detail: str = "",
    ) -> bool:
        """Notes one check, and gives whether it passed.

        A number is kept with two digits: the last ones of a sum differ between machines, and a report is published.
        """
        check = Check(
            name=name,
            consumer=self.consumer,
            component=component,
            observed=float(f"{observed:.1e}") if isinstance(observed, float) else observed,
            limit=limit,
            passed=passed,
            modules=tuple(sorted(modules)),
            detail=detail,
        )
        self.checks.append(check)
        return passed

    def none_of(self, name: str, failed: Mapping[str, str] | Iterable[str], component: str, total: int) -> bool:
        """A check that each of `total` modules had to pass: `failed` did not, with what was wrong where it is known."""
        details = failed if isinstance(failed, Mapping) else dict.fromkeys(failed, "")
        first = next(iter(sorted(details.items())), ("", ""))
        return self.that(
            name,
            not details,
            observed=f"{len(details)} of {total}",
            limit="0",
            component=component,
            modules=details,
            detail=": ".join(part for part in first if part),
        )
