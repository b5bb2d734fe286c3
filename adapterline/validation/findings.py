"""Checks as they are made: nothing is raised, everything is collected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adapterline.values import Check


class Findings:
    """Collects checks in the order in which they are made."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

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
