"""Tries every export in every version of its consumers, writes the table that ships and the page: `make consumers`.

`python -m tests.consumers [--only TEXT] [--cache FOLDER] [--check]`; with --check nothing is written, and a difference
to the table is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from adapterline.validation.consumers.versions import TABLE, table
from tests.consumers.cases import Tried, cases
from tests.consumers.environments import ENVIRONMENTS, ROOT, Environment
from tests.consumers.page import PAGE, write_page

CACHE = ROOT / "build" / "consumers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the environments are kept")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tried = list(cases(Path(name, "exports"), arguments.only))
        print(f"{len(tried)} exports", flush=True)
        results = {env: _run(env, tried, arguments.cache, Path(name)) for env in ENVIRONMENTS}
    document = {"environments": [vars(env) for env in ENVIRONMENTS], "rows": _rows(tried, results)}
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    for env, found in results.items():
        said = [verdict.partition(":")[0] for verdict in found.values()]
        print(f"diffusers {env.diffusers}: " + ", ".join(f"{said.count(each)} {each}" for each in sorted(set(said))))
    if arguments.only:
        return 0
    if arguments.check:
        return int(text != TABLE.read_text())
    TABLE.write_text(text)
    table.cache_clear()
    write_page(PAGE)
    return 0


def _run(env: Environment, tried: list[Tried], cache: Path, work: Path) -> dict[str, str]:
    print(f"diffusers {env.diffusers}, transformers {env.transformers}, peft {env.peft}", flush=True)
    asked, answer = work / "cases.json", work / f"{env.diffusers}.json"
    asked.write_text(json.dumps([each.document for each in tried]))
    command = [
        str(env.python(cache)),
        "-W",
        "ignore",
        str(Path(__file__).with_name("load.py")),
        str(asked),
        str(answer),
    ]
    # Nothing of this project, and nothing of its environment, is in the other one.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    subprocess.run(command, check=True, env={**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    found: dict[str, str] = json.loads(answer.read_text())
    return found


def _rows(tried: list[Tried], results: dict[Environment, dict[str, str]]) -> list[dict[str, Any]]:
    """One for each kind of file; where two exports are of one kind, the worse verdict."""
    rows: dict[tuple[str, str, tuple[str, ...]], dict[str, str]] = {}
    for each in tried:
        row = rows.setdefault((each.pipeline, each.layout, each.traits), {})
        for env, found in results.items():
            consumer = f"peft=={env.peft}" if each.layout == "peft" else f"diffusers=={env.diffusers}"
            if row.get(consumer, "right") == "right":
                row[consumer] = found[each.name]
    return [
        {"pipeline": pipeline, "layout": layout, "traits": list(traits), "results": verdicts}
        for (pipeline, layout, traits), verdicts in sorted(rows.items())
    ]


if __name__ == "__main__":
    sys.exit(main())
