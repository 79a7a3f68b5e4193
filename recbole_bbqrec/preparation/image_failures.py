"""The list of items without an image: who, where from, why, and whether another run may do better."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..storage import replacing

FAILURES = "failures.tsv"
HEADER = "item_id\turl\ttried_again\treason"


class Failure(NamedTuple):
    """Why an item has no image, and whether another run may do better."""

    url: str
    transient: bool
    reason: str


def read_failures(path: Path) -> dict[str, Failure]:
    """Read the list of an earlier run; without one, or where it is unreadable, everything is tried."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [line.split("\t") for line in lines[1:]] if lines[0] == HEADER else []
    return {row[0]: Failure(row[1], row[2] == "yes", row[3]) for row in rows if len(row) == 4}


def write_failures(path: Path, failures: Mapping[str, Failure]) -> None:
    """Write the list, sorted, so that its content does not tell which thread was first; none is no file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = [
        "\t".join([stem, failure.url, "yes" if failure.transient else "no", failure.reason])
        for stem, failure in sorted(failures.items())
    ]
    with replacing(path) as temporary:
        Path(temporary).write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8", errors="replace")


def one_line(url: str) -> str:
    """Return `url` as it can stand in the list."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "?", url)[:2000]
