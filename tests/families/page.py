"""The tables of docs/families.md, made from FAMILIES. `python -m tests.families.page` writes them into the page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapterline.families import FAMILIES, Component, Family
from adapterline.values import WEIGHT_NAME

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def current() -> str:
    """The page with tables as FAMILIES has them now."""
    text = PAGE.read_text()
    for name, table in (("families", _families()), ("calls", _calls())):
        before, mark, after = text.partition(f"<!-- {name} -->\n")
        text = before + mark + table + after[after.index("<!-- end -->") :]
    return text


def _families() -> str:
    head = (
        "family",
        "of",
        "adapted and loaded",
        "adapted by some trainers, dropped by the loader",
        "mixin of diffusers",
    )
    return _table(
        head,
        (
            (
                f"`{family.name}`",
                family.title,
                _models(c for c in family.components if c.loads),
                _models(c for c in family.components if not c.loads),
                f"`{family.mixin}`",
            )
            for family in FAMILIES
        ),
    )


def _models(components: Iterable[Component]) -> str:
    return "; ".join(f"`{each.name}`: {', '.join(each.models)}" for each in components)


def _calls() -> str:
    others = [
        (family, each)
        for family in FAMILIES
        for each in family.components
        if each.loads and (each.file, each.method, each.flag) != (WEIGHT_NAME, "load_lora_weights", "")
    ]
    return _table(("family", "component", "file", "call"), (_call(*each) for each in others))


def _call(family: Family, each: Component) -> tuple[str, ...]:
    flag = f", {each.flag}=True" if each.flag else ""
    return f"`{family.name}`", f"`{each.name}`", f"`{each.file}`", f"`pipe.{each.method}(..., weight_name=...{flag})`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(current())
