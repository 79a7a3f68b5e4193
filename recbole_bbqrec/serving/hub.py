"""Bundles on the Hugging Face hub: pushed with a model card, loaded from `hf://org/name[@revision]`.

What comes from a hub is data and stays data: only files that a bundle consists of are fetched, safetensors and JSON,
and nothing in them is run.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, snapshot_download

from .. import storage
from ..errors import InputError
from ..training.checkpoint import WEIGHTS as WEIGHTS_KIND
from . import generations
from .folder import (
    BUNDLE,
    ENCODERS,
    FEATURES,
    ITEMS,
    REPORT_CARD,
    SCHEME,
    SEMANTIC_IDS,
    STAND_IN_FILE,
    TOKENIZER,
    WEIGHTS,
    content_of,
)
from .items import KIND as ITEMS_KIND
from .model_card import CARD, model_card
from .new_items import KIND as ENCODERS_KIND

PATTERNS = [
    *(BUNDLE, WEIGHTS, FEATURES, SEMANTIC_IDS, TOKENIZER, ITEMS, ENCODERS, STAND_IN_FILE, REPORT_CARD),
    *(generations.MANIFEST, f"{generations.FOLDER}/[0-9][0-9][0-9][0-9]/*.safetensors"),
]
"""Files that a bundle consists of; nothing else is pushed or fetched. Images stay behind: most have owners."""
MOST_BYTES = 20 * 2**30
"""A bundle of ten million items takes less; what is larger is not fetched."""


def push(
    folder: str | Path, repo: str, private: bool = False, endpoint: str | None = None, results: str | None = None
) -> str:
    """Upload the bundle in a folder, and a model card that says what it is; return the repository's address.

    The repository is made where there is none. All files come in one commit: whoever loads it meanwhile gets the old
    ones or the new ones. Only the newest generation goes along.

    Parameters
    ----------
    folder : of a finished run.
    repo : `org/name`; the token is that of `hf auth login`, or of the variable `HF_TOKEN`.
    endpoint : address of a hub other than huggingface.co.
    results : Markdown for the card, what the run has reached.

    Raises
    ------
    InputError : the folder is no bundle, or the hub refuses or cannot be reached.
    """
    folder = Path(folder)
    content_of(folder)
    files = files_of(folder)
    with _in_one_line(f"{SCHEME}{repo}"), tempfile.TemporaryDirectory() as place:
        for name in files:
            _copy_without_paths(folder / name, Path(place) / name)
        folder = Path(place)
        content = content_of(folder)
        api = HfApi(endpoint=endpoint)
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        card = model_card(folder, content, files, str(url.repo_id), results)
        additions = [CommitOperationAdd(name, folder / name) for name in files]
        additions.append(CommitOperationAdd(CARD, card.encode("utf-8")))
        api.create_commit(repo, additions, commit_message=f"{content['settings']['model']} by recbole_bbqrec")
    return str(url)


_KINDS = {WEIGHTS: WEIGHTS_KIND, ITEMS: ITEMS_KIND, ENCODERS: ENCODERS_KIND}
"""Files whose headers may name folders of the machine that wrote them."""


def _copy_without_paths(source: Path, target: Path) -> None:
    """Make a file of a bundle to push: a link, or where the file names folders of this machine, a copy without them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == BUNDLE:
        content = json.loads(source.read_text(encoding="utf-8"))
        storage.write_json(target, {**content, "settings": _without_paths(content["settings"])})
    elif kind := _KINDS.get(source.name):
        tensors, header = storage.load(source, kind)
        storage.save(target, kind, tensors, _without_paths(header))
    else:
        target.symlink_to(source.resolve())


def _without_paths(value: Any) -> Any:
    """Return plain data with every absolute path cut to its last name."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def files_of(folder: Path) -> list[str]:
    """Names of the files that the bundle in a folder consists of, the newest generation alone."""
    newest = f"{generations.FOLDER}/{generations.newest(folder):04d}/"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if _is_known(name) and ("/" not in name or name.startswith(newest))]


def _is_known(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def fetch(url: str, endpoint: str | None = None) -> Path:
    """Return the folder of the bundle at `hf://org/name[@revision]`, in the hub's own cache.

    Offline, or where the hub cannot be reached, what is in the cache is taken.

    Raises
    ------
    InputError : there is no such bundle, it is too large, or nothing of it is in the cache and the hub is not reached.
    """
    repo, _, revision = url.removeprefix(SCHEME).partition("@")
    with _in_one_line(url):
        if not constants.HF_HUB_OFFLINE:
            _check(url, repo, revision or None, endpoint)
        # By the name of the revision, which the cache keeps for when the hub is not reached.
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=PATTERNS, endpoint=endpoint))


def _check(url: str, repo: str, revision: str | None, endpoint: str | None) -> None:
    """Look at the names and sizes of the files before any is fetched, where the hub is reached."""
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        if _status(error) is not None or isinstance(error, errors.HFValidationError):
            raise
        return
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_known(file.rfilename)}
    if BUNDLE not in sizes:
        raise InputError(f"{url}: found no {BUNDLE}, expected a bundle that `bbqrec push` has put there")
    if (total := sum(sizes.values())) > MOST_BYTES:
        limit = f"expected at most {MOST_BYTES / 2**30:.0f} GiB"
        raise InputError(f"{url}: found {total / 2**30:.1f} GiB, {limit}; fetch it by hand and load the folder")


@contextlib.contextmanager
def _in_one_line(where: str) -> Iterator[None]:
    """Turn a hub's refusal, or its silence, into an error of one line."""
    try:
        yield
    except InputError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{where}: found no name of a repository, expected {SCHEME}org/name[@revision]") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{where}: found no such revision; give a branch, a tag or a commit that is there") from error
    except Exception as error:
        status = _status(error)
        if status in (401, 403, 404):
            why = "no such repository, or no right to it"
            how = "check its name, and for what is private or to be written run `hf auth login`"
        elif status is not None:
            why, how = "the hub refuses", " ".join(str(error).split())[:200]
        elif isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests"):
            why, how = f"the hub cannot be reached ({type(error).__name__})", "connect to the network"
        else:
            raise
        raise InputError(f"{where}: {why}{f' ({status})' if status else ''}; {how}") from error


def _status(error: BaseException) -> int | None:
    """HTTP status of an answer of the hub; none where it has not answered."""
    response = getattr(error, "response", None)
    if response is None and error.__cause__ is not None:
        return _status(error.__cause__)
    return getattr(response, "status_code", None)
