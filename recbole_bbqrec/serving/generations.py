"""Generations of a bundle's items: 0 is as trained, each later one adds all new items known by then.

A generation is a folder of its own beside the bundle's files. `generations.json`, written last and in one step, says
which is the newest: a kill at any moment leaves the one before it whole, and what it left is written over.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import storage
from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, two programs must not add items at the same time
    fcntl = None

MANIFEST, FOLDER, LOCK = "generations.json", "generations", "lock"
KEPT = 2
"""The newest generations that stay on the disk: whoever is reading the one before the newest can finish."""


def newest(folder: Path) -> int:
    """Return the number of the newest whole generation; 0 where items were never added. Reads the manifest alone."""
    return _manifest(Path(folder) / MANIFEST)[0]


def _manifest(path: Path) -> tuple[int, str]:
    """The generation that a manifest names and the training that it is of."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return int(content["generation"]), str(content["training"])
    except FileNotFoundError:
        return 0, ""
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"not a manifest of generations ({error!r})"
        raise InputError(f"{path}: {why}; delete it to go back to the items of training") from error


def folder_of(folder: Path, generation: int) -> Path:
    """Folder of a generation."""
    return folder / FOLDER / f"{generation:04d}"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Wait until nobody else is adding items to a bundle, and keep others waiting meanwhile."""
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
        with open(folder / FOLDER / LOCK, "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the system, too, where the process is killed
            yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"{folder}: items cannot be added ({why}); make the folder writable, free some space"
        ) from error


def publish(folder: Path, generation: int, training: str, write: Callable[[Path], None]) -> None:
    """Have `write` fill the folder of a generation, then make it the newest. Call it within `writing`.

    `training` is the fingerprint of what was trained, see `keep_those_of`.
    """
    target = folder_of(folder, generation)
    shutil.rmtree(target, ignore_errors=True)  # what was left by a kill
    target.mkdir(parents=True)
    write(target)
    storage.write_json(folder / MANIFEST, {"generation": generation, "training": training})
    for old in range(1, generation - KEPT + 1):
        shutil.rmtree(folder_of(folder, old), ignore_errors=True)


def keep_those_of(folder: Path, training: str) -> None:
    """Remove generations unless they are of this `training`: their items have features and codes made for their own."""
    if _manifest(folder / MANIFEST)[1] in ("", training):
        return
    logging.getLogger().warning(f"{folder}: trained anew, so items that were added are gone; add them again")
    (folder / MANIFEST).unlink()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
