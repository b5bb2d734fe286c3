"""The names that a Python caller uses."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import adapterline


def test_no_module_takes_the_name_of_a_call() -> None:
    """A submodule becomes an attribute of its package once anything imports it: the call would be gone."""
    modules = {module.name for module in pkgutil.iter_modules(adapterline.__path__)}
    assert not modules & set(adapterline.__all__)
    importlib.import_module("adapterline.cli")
    for name in adapterline.__all__:
        assert callable(getattr(adapterline, name))
        assert not isinstance(getattr(adapterline, name), ModuleType)
