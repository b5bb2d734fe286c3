"""The section of docs/validate.md that lists the edits: `python -m tests.mutants.page` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from tests.mutants.adapters import ADAPTERS, EVERY_FAMILY
from tests.mutants.edits import BREAKING, EDITS, KEEPING, Edit, meaning_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "validate.md"
TITLE = "## What was tried against it"

_FAMILIES, _MORE = len(EVERY_FAMILY), len(ADAPTERS) - len(EVERY_FAMILY)
_HEAD = f"""\
{TITLE}

`make mutants` exports a good adapter for each of the {_FAMILIES} families, and {_MORE} more with what can break \
besides (DoRA,
biases, mixed ranks, 16-bit factors, a control adapter, LoHa, LoKr), with the scale in the factors, with the scale in
the header, and with a manifest beside the files. Each of the {len(EDITS)} edits below is made on a copy of them, \
which is
then proven against the checkpoint. A broken copy must fail, with a message that names the modules, or, where more is
broken, the component or the file; a copy with the same effect must pass. `make test` does it on four of them.

A file of another tool may round a scale that its dtype cannot fold exactly, within [the limit](#limits). Where nothing
has to be rounded (the scale is in the header, or is a power of two), and in an export with its manifest, one unit in
the last place of one element is caught. Bytes that are not those of the manifest are caught by their digest.

Other names for the same count as broken unless a family's loader knows them: unless the layers of a real model compute
the same with them.
"""


def section() -> str:
    """The section, up to the next one."""
    tables = [_table(f"Broken: {kind}", edits) for kind, edits in BREAKING.items()]
    return "\n".join([_HEAD, *tables, _table("Not broken: the effect is the same", KEEPING)])


def _table(title: str, edits: tuple[Edit, ...]) -> str:
    return "\n".join([f"| {title} |", "|---|", *(f"| {meaning_of(edit)} |" for edit in edits), ""])


def written(page: str) -> str:
    """The page with the section as it should be: in its place, or else before the last one."""
    match = re.search(rf"^{TITLE}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    start, end = match.span() if match else [page.rindex("\n## ") + 1] * 2
    return f"{page[:start]}{section()}\n{page[end:]}" if page[end:] else f"{page[:start]}{section()}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
