"""What every command prints: data alone, on stdout, as text or as one JSON document; and how every one fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from cyclopts import Parameter, validators

from adapterline.errors import AdapterlineError, ValidationFailedError

#: What a server listens at; 0 is any free one.
Port = Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))]
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on stdout.")]


def print_document(document: dict[str, Any], text: Callable[[], str], as_json: bool) -> None:
    """The document, or what a person reads of it."""
    print(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text())


def fail(error: AdapterlineError, as_json: bool) -> NoReturn:
    """Ends the process with the error's exit code: one paragraph on stderr, with `as_json` a document on stdout too."""
    if as_json:
        document: dict[str, Any] = {
            "error": type(error).__name__,
            "message": str(error),
            "found": error.found,
            "expected": error.expected,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
        if isinstance(error, ValidationFailedError):
            document["report"] = error.report.model_dump(mode="json")
        print(json.dumps(document, indent=2, ensure_ascii=False))
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.exit_code)
