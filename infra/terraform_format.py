"""How `terraform fmt` lays out what is in infra/terraform/: the rules that these files come near.

There is no Terraform on PyPI, npm or in Debian, and `make infra-check` downloads from nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

_INDENT = 2
_ATTRIBUTE = re.compile(r"(?P<name>\s*[\w.\"-]+)(?P<gap>\s*)=(?P<after>\s*)(?P<value>[^=\s].*)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')


def misplaced(text: str) -> Iterator[str]:
    """What `terraform fmt` would change, as `line: what`."""
    if not text.endswith("\n") or text.endswith("\n\n"):
        yield "the end: not one newline"
    lines = text.splitlines()
    depth = 0
    for number, line in enumerate(lines, 1):
        code = _STRING.sub('""', line).partition("#")[0]
        opened, closed = len(re.findall(r"[\[({]", code)), len(re.findall(r"[\])}]", code))
        leading = len(re.match(r"[\s\])}]*", code.strip()).group().strip()) if code.strip() else 0  # type: ignore[union-attr]
        if "\t" in line or line != line.rstrip():
            yield f"{number}: a tab, or space at the end"
        elif line and len(line) - len(line.lstrip()) != _INDENT * (depth - min(leading, 1)):
            yield f"{number}: not indented by {_INDENT * (depth - min(leading, 1))}"
        depth += (opened > closed) - (closed > opened)
    yield from _unaligned(lines)


def _unaligned(lines: list[str]) -> Iterator[str]:
    """Neighbouring attributes have their `=` in one column, as far left as can be; values of many lines are apart."""

    def place(item: tuple[int, str]) -> tuple[bool, int]:
        _, line = item
        alone = _ATTRIBUTE.fullmatch(line)
        return bool(alone), len(line) - len(line.lstrip())

    for (is_attribute, _), found in groupby(enumerate(lines, 1), key=place):
        if not is_attribute:
            continue
        group = [(number, match) for number, line in found if (match := _ATTRIBUTE.fullmatch(line))]
        for part in _single_lines(group):
            column = max(len(match["name"]) for _, match in part) + 1
            for number, match in part:
                if len(match["name"] + match["gap"]) != column or match["after"] != " ":
                    yield f"{number}: its = is not in column {column + 1}"


def _single_lines(group: list[tuple[int, re.Match[str]]]) -> Iterator[list[tuple[int, re.Match[str]]]]:
    """Cut where a value goes on in the next line: that attribute is aligned with none."""
    part: list[tuple[int, re.Match[str]]] = []
    for number, match in group:
        if match["value"][-1] in "[({":
            if part:
                yield part
            yield [(number, match)]
            part = []
        else:
            part.append((number, match))
    if part:
        yield part
