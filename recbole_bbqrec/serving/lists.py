"""Top-k lists of many users as a table: what a data set knows of its users, and a file of what to show them."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from tqdm import tqdm

from .. import storage
from ..config import Config
from ..data.dataset import MultiModalSequentialDataset
from ..data.presplit import read_columns
from ..errors import InputError
from ..settings import settings_to_load
from .bundle import Bundle, Recommendation, warn_of_unknown
from .calls import number_of, tokens_of
from .scoring import BATCH

Columns = dict[str, list[Any]]


class Histories(Protocol):
    """A history for each user: a dict, or a pandas Series of lists that users index."""

    def __len__(self) -> int: ...
    def items(self) -> Iterable[tuple[Any, Any]]: ...


def known_histories(bundle: Bundle, data_path: str | Path | None = None) -> dict[str, list[str]]:
    """Return all that the run's data set knows of each user: item tokens in time order, by user token.

    These are training, validation and test interactions alike, after the run's filters: the model is in use, nothing is
    judged. The files are read as they are today; neither features nor the tokenizer are made again.

    Parameters
    ----------
    data_path : folder of data sets, where it is no longer that of the run.

    Raises
    ------
    InputError : the data set is not there, is damaged, or has no users.
    """
    moved = {} if data_path is None else {"data_path": str(data_path)}
    config = Config(config_dict={**settings_to_load(bundle.settings), **moved})
    if config["benchmark_filename"] and config["USER_ID_FIELD"] in read_columns(config).missing:
        raise InputError(
            f"{config['dataset']}: its files have no column {config['USER_ID_FIELD']}, so histories have no names; "
            "recommend from histories of your own (--history)"
        )
    config["attach_item_features"] = config["attach_semantic_ids"] = False
    config["similarity_attention"] = "off"
    dataset = MultiModalSequentialDataset(config)
    fields = dataset.uid_field, dataset.iid_field, dataset.iid_field + config["LIST_SUFFIX"]
    rows = dataset.inter_feat
    if (whole := getattr(dataset, "histories", None)) is not None:  # where lists in the rows are as models read them
        rows = rows.assign(**{fields[2]: list(whole)})
    # Rows of files that are split already stand in their order, whatever their times say.
    order = [dataset.uid_field, *([] if config["benchmark_filename"] else [dataset.time_field])]
    rows = rows.sort_values(order, kind="stable")
    users, items, lists = (_tokens(dataset, rows, field) for field in fields)
    histories: dict[str, list[str]] = {}
    for user, item, earlier in zip(users, items, lists, strict=True):
        history = histories.setdefault(user, [])
        if earlier and history[: len(earlier) + 1] == [*earlier, item]:
            continue  # a row that stands twice
        # A list begins with what is known already, or, where it was cut, with the end of it.
        sizes = range(min(len(history), len(earlier)), 0, -1)
        overlap = next((size for size in sizes if history[-size:] == earlier[:size]), 0)
        history += [*earlier[overlap:], item]
    return histories


def _tokens(dataset: Any, rows: Any, field: str) -> list[Any]:
    """Return the tokens of a column, or its lists of tokens; empty lists of a column that is not there."""
    if field not in rows:
        return [[]] * len(rows)
    tokens = np.array([str(token) for token in dataset.field2id_token[field]], dtype=object)  # shared, not copied
    is_list = len(rows) and np.ndim(rows[field].iloc[0])
    return [tokens[ids].tolist() for ids in rows[field]] if is_list else tokens[rows[field].to_numpy()].tolist()


def write_lists(
    path: str | Path,
    bundle: Bundle,
    histories: Histories,
    k: int = 10,
    exclude_seen: bool = True,
    allow: Iterable[Any] | None = None,
    deny: Iterable[Any] | None = None,
    progress: bool = False,
) -> int:
    """Write the `k` best items after the history of each user as a table: user, rank (from 1), item, score.

    Users are scored and written in blocks, so memory does not grow with their number; the file is whole or not there. A
    user whose history has no known item, or to whom no item is left to show, has no rows.

    Parameters
    ----------
    path : the table, CSV or Parquet by its ending; Parquet needs pyarrow.
    histories : item tokens by user, such as `known_histories(bundle)`; else as in `Bundle.recommend`.
    k, exclude_seen : as in `Bundle.recommend`.
    allow, deny : item tokens that all users' lists choose from, none = the whole catalogue; and those left out.
    progress : show a progress bar.

    Returns
    -------
    The number of rows.

    Raises
    ------
    InputError : the ending is another, the file cannot be written, or arguments are wrong.
    """
    known, count = frozenset(bundle.item_tokens[1:]), number_of(k)
    allowed, denied = (
        None if given is None else [tokens_of(given, known, name, ordered=False)]
        for name, given in (("allow", allow), ("deny", deny))
    )
    entries, n_rows, n_empty, unknown = iter(histories.items()), 0, 0, set[str]()
    with (
        _table(path) as write,
        tqdm(total=len(histories), desc="Lists", unit="user", ncols=100, disable=not progress) as bar,
    ):
        while block := list(islice(entries, BATCH)):
            given = [tokens_of(history, known, f"history of user {user}") for user, history in block]
            found = bundle.ranked(given, count, exclude_seen, allowed, denied)
            write(_columns([str(user) for user, _ in block], found))
            n_rows += sum(len(each.items) for each in found)
            n_empty += sum(not each.items for each in found)
            unknown.update(*(each.unknown for each in found))
            bar.update(len(block))
    warn_of_unknown(unknown, bundle.item_tokens[1])
    if n_empty:
        logging.getLogger().warning(
            f"{n_empty} of {len(histories)} users have no list, because they have no items to read or show"
        )
    return n_rows


def _columns(users: list[str], found: list[Recommendation]) -> Columns:
    return {
        "user": [user for user, each in zip(users, found, strict=True) for _ in each.items],
        "rank": [rank for each in found for rank in range(1, 1 + len(each.items))],
        "item": list(chain.from_iterable(each.items for each in found)),
        "score": list(chain.from_iterable(each.scores for each in found)),
    }


def check_table(path: str | Path) -> str:
    """Return the ending of a table that can be written, `.csv` or `.parquet`; else raise `InputError`."""
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise InputError(f"{path}: found the ending {ending!r}, expected .csv or .parquet")
    if ending == ".parquet" and find_spec("pyarrow") is None:
        how = "pip install 'recbole-bbqrec[parquet]', or name a .csv file"
        raise InputError(f"{path}: writing Parquet needs pyarrow, which is not installed; {how}")
    return ending


@contextmanager
def _table(path: str | Path) -> Iterator[Callable[[Columns], None]]:
    """Yield what adds rows to a table that takes its place when all are there."""
    ending = check_table(path)
    with ExitStack() as opened:
        try:
            if Path(path).is_dir():
                raise IsADirectoryError(None, "Is a directory")
            temporary = opened.enter_context(storage.replacing(path))
            write = opened.enter_context((_csv if ending == ".csv" else _parquet)(temporary))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from error
        yield write


@contextmanager
def _csv(path: str) -> Iterator[Callable[[Columns], None]]:
    schema = {"user": pl.String, "rank": pl.Int32, "item": pl.String, "score": pl.Float32}
    with open(path, "wb") as file:
        pl.DataFrame(schema=schema).write_csv(file)
        yield lambda columns: pl.DataFrame(columns, schema).write_csv(file, include_header=False)


@contextmanager
def _parquet(path: str) -> Iterator[Callable[[Columns], None]]:
    import pyarrow
    from pyarrow import parquet

    types = {"user": pyarrow.string(), "rank": pyarrow.int32(), "item": pyarrow.string(), "score": pyarrow.float32()}
    with parquet.ParquetWriter(path, schema := pyarrow.schema(types)) as file:
        yield lambda columns: file.write_table(pyarrow.table(columns, schema))
