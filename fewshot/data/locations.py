"""Where images are looked for and where decoded ones are kept.

The data directory belongs to the user and may be read-only: only `fewshot data get` writes there. What this
package makes for itself goes to the cache directory, which can be deleted at any time.
"""

import os
from pathlib import Path

import platformdirs

DATA_VARIABLE = "FEWSHOT_DATA"
CACHE_VARIABLE = "FEWSHOT_CACHE"


def data_root(root: Path | None = None) -> Path:
    """The data directory: root, else $FEWSHOT_DATA, else datasets/ of the checkout or of the cache."""
    if root is not None:
        return Path(root).expanduser()
    if chosen := os.environ.get(DATA_VARIABLE):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "datasets").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "datasets"
    return cache_root() / "datasets"


def cache_root() -> Path:
    """The cache directory: $FEWSHOT_CACHE, else the user's."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("fewshot")
