"""The other libraries, imported where they are first used."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fewshot.errors import InteropError


def check_installed(package: str) -> None:
    """Raise InteropError unless there is such a package."""
    if find_spec(package) is None:
        raise InteropError(
            f"{package} is not installed: `make interop` in a checkout builds an environment that has it"
        )


def foreign(module: str) -> Any:
    """A module of another library; InteropError where that is not installed."""
    check_installed(module.partition(".")[0])
    return import_module(module)
