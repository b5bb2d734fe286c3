"""The page of what each version does with each kind of file, made of the table."""

from __future__ import annotations

from pathlib import Path

from adapterline.validation.consumers.versions import RIGHT, Row, table
from tests.consumers.environments import ENVIRONMENTS, ROOT

PAGE = ROOT / "docs" / "consumers.md"
_HEAD = """# Versions of the consumers

What is exported is proven with the installed diffusers and PEFT. Other versions were tried on one export of each kind,
each in an environment of its own with the transformers of its day: {environments}. `make consumers` runs them again and
makes this page; it takes about a quarter of an hour, and half of that is installing.

- **right**: every adapted layer changes its weight as in training, to the rounding of the export, and no other does.
- **wrong**: it loads without an error, and does something else.
- **refuses**: it raises. **absent**: that version has no such pipeline.

A manifest's `consumers` names, beside what the export itself was proven with, the versions that are right with files of
its kind, as `diffusers==0.35.2`: by the pipeline, the layout, and what is in the file (a header with
`lora_adapter_metadata`, DoRA, biases, mixed ranks, convolutions). Of a kind that is not in the table it says nothing.
"""


def write_page(page: Path) -> None:
    page.write_text(text_of(table()))


def text_of(rows: tuple[Row, ...]) -> str:
    environments = "; ".join(
        f"diffusers {env.diffusers} with transformers {env.transformers} and PEFT {env.peft}" for env in ENVIRONMENTS
    )
    parts = [_HEAD.format(environments=environments)]
    for layout, consumer in (("diffusers", "diffusers"), ("kohya", "diffusers"), ("peft", "peft")):
        versions = [f"{consumer}=={getattr(env, consumer)}" for env in ENVIRONMENTS]
        lines = [f"| pipeline | with | {' | '.join(versions)} |", f"|---|---|{'---|' * len(versions)}"]
        for row in rows:
            if row.layout == layout:
                cells = [row.results.get(version, "").partition(":")[0] for version in versions]
                lines.append(f"| {row.pipeline} | {', '.join(row.traits)} | {' | '.join(cells)} |")
        parts.append(f"\n## The layout {layout}\n\n" + "\n".join(lines) + "\n")
    parts.append("\n## Why\n\n" + "\n".join(_reasons(rows)) + "\n")
    return "".join(parts)


def _reasons(rows: tuple[Row, ...]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        for version, verdict in row.results.items():
            kind, _, why = verdict.partition(": ")
            if verdict != RIGHT and kind != "absent":
                found.setdefault(f"{version} {kind}: {why}", []).append(f"{row.pipeline} ({row.layout})")
    return [f"- {', '.join(dict.fromkeys(where))}: {_clean(why)}" for why, where in sorted(found.items())]


def _clean(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")
