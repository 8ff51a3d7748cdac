"""The small split that adapters are tried on, and the real libraries, where they are installed."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import Split
from fewshot.interop.torchmeta import mend


@pytest.fixture(scope="session")
def split(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Eight classes to train on, eight images of 12x12 each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_image_folder(image_folder, 12).split("folders")


@pytest.fixture(scope="session")
def learn2learn() -> Any:
    return _installed("learn2learn")


@pytest.fixture(scope="session")
def torchmeta() -> Any:
    """Mended."""
    _skip_unless_installed("torchmeta")
    mend()
    return _installed("torchmeta")


def _installed(package: str) -> Any:
    _skip_unless_installed(package)
    return import_module(package)


def _skip_unless_installed(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}: make interop")
