"""Files that are split already, `<name>.train.inter` and so on (`benchmark_filename`), in the shapes people have them.

Rows hold a history (`item_id_list`) and its target, or they are plain interactions; users and times may be missing. All
of them become rows with histories in one order, in which the same data gives the same results however it was split.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..conditions import FILTERED
from ..errors import InputError
from ..keys import KEYS
from ..preparation.atomic import read_atomic, read_header
from ..recbole_keys import RECBOLE

EXAMPLE = "--benchmark_filename=\"['train','valid','test']\""
NO_TIMES = "timestamp"
"""Name of the column of times where TIME_FIELD names none."""
WITHOUT_EFFECT = [
    key for key, known in {**RECBOLE, **KEYS}.items() if set(FILTERED) <= set(known.used) and key != "eval_args"
]
"""Settings that filter or order interactions before they are split."""
READ_USERS = {"Caser", "DIEN", "DIN", "FOSSIL", "FPMC", "HGN", "HRM", "NPE", "SHAN", "TransRec"}
"""RecBole's sequential models that learn something about every user."""


class Columns(NamedTuple):
    """Names of the columns of users, items, times and histories, and which of these the files do without."""

    user: str
    item: str
    time: str
    histories: str
    missing: frozenset[str]


class Arranged(NamedTuple):
    """Rows with histories: see `arrange`."""

    rows: pd.DataFrame
    sizes: list[int]
    sequences: list[np.ndarray]
    start: np.ndarray
    stop: np.ndarray
    backwards: int


def is_given(config: Any, key: str) -> bool:
    """Say whether the run's own settings give a key another value than its default."""
    value = config.external_config_dict.get(key)
    return value is not None and value != config.internal_config_dict.get(key)


def check_files(config: Any) -> list[Path]:
    """Return the three files, or raise `InputError` where one is missing or a setting would have no effect on them."""
    names = config["benchmark_filename"]
    if not isinstance(names, list | tuple) or len(names) != 3 or len(set(names)) < 3:
        raise InputError(
            f"benchmark_filename: found {names!r}, expected three names, each once, of the training, validation and "
            f"test file: {EXAMPLE}"
        )
    folder, dataset = Path(config["data_path"]), config["dataset"]
    paths = [folder / f"{dataset}.{name}.inter" for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(f"benchmark_filename: no file {path}; expected <data set>.<name>.inter for every name")
    ignored = [key for key in WITHOUT_EFFECT if is_given(config, key)]
    default = config.internal_config_dict.get("eval_args") or {}
    if config["eval_args"]["split"] != default.get("split", config["eval_args"]["split"]):
        ignored.append("eval_args: split")
    histories = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    if histories in (config["seq_len"] or {}):
        ignored.append(f"seq_len: {histories} (MAX_ITEM_LIST_LENGTH cuts histories)")
    if ignored:
        raise InputError(
            f"{ignored[0]}: has no effect on files that are split already (benchmark_filename); filter the files, or "
            "give the unsplit .inter file without benchmark_filename"
        )
    if config["model"] == "DIEN":
        raise InputError(
            "--model=DIEN: reads negative histories, which RecBole draws for unsplit data alone; take DIN, or give the "
            "unsplit .inter file"
        )
    return paths


def read_columns(config: Any) -> Columns:
    """Read the headers of the three files; where they do not fit each other or any shape, raise `InputError`."""
    paths = check_files(config)
    user, item, time = (config[f"{key}_FIELD"] for key in ("USER_ID", "ITEM_ID", "TIME"))
    histories = item + config["LIST_SUFFIX"]
    headers = [read_header(path, config["field_separator"], config["encoding"] or "utf-8") for path in paths]
    for path, header in zip(paths, headers, strict=True):
        for field in (user, time, histories):
            if (field in header) != (field in headers[0]):
                lacks, has = (path, paths[0]) if field not in header else (paths[0], path)
                raise InputError(
                    f"{lacks}, line 1: found no column {field}, expected it as in {has}; add it or drop both"
                )
    header = headers[0]
    unknown = [field for field, kind in header.items() if kind == "token_seq"]
    if histories in header and header[histories] != "token_seq":
        found = f"found {histories}:{header[histories]}, expected {histories}:token_seq; mend the header"
        raise InputError(f"{paths[0]}, line 1: {found}")
    if histories not in header and unknown:
        raise InputError(
            f"{paths[0]}, line 1: found {unknown[0]}:token_seq, expected {histories}:token_seq for histories; rename it"
            " (or set LIST_SUFFIX), or delete it where rows are plain interactions"
        )
    if user not in header and histories not in header:
        raise InputError(
            f"{paths[0]}, line 1: found neither {user} nor {histories} among {', '.join(header)}, expected a user or a "
            "history in every row; name the columns with --USER_ID_FIELD, --ITEM_ID_FIELD and --LIST_SUFFIX"
        )
    if user not in header and config["model"] in READ_USERS:
        raise InputError(
            f"--model={config['model']}: learns something of every user, and {paths[0]} has no column {user}; add it, "
            "or take a model of sequences alone, such as SASRec"
        )
    # A column that the run names is an error where it is missing.
    optional = {histories} | {config[key] for key in ("USER_ID_FIELD", "TIME_FIELD") if not is_given(config, key)}
    missing = optional - header.keys() - {None} | (set() if time else {NO_TIMES})
    return Columns(user, item, time or NO_TIMES, histories, frozenset(missing))


def read_rows(config: Any) -> pd.DataFrame:
    """Read users, items and times, in this order, of a data set's interaction files as a run takes them."""
    if config["benchmark_filename"] is not None:
        columns, paths = read_columns(config), check_files(config)
    else:
        user, item, time = (config[f"{key}_FIELD"] for key in ("USER_ID", "ITEM_ID", "TIME"))
        missing = frozenset() if time else frozenset({NO_TIMES})
        columns = Columns(user, item, time or NO_TIMES, "", missing)
        paths = [Path(config["data_path"]) / f"{config['dataset']}.inter"]
    has_users = columns.user not in columns.missing
    wanted = {columns.user if has_users else columns.histories, columns.item, columns.time} - columns.missing
    how = config["field_separator"], config["encoding"] or "utf-8"
    frames = [read_atomic(path, wanted, *how)[0] for path in paths]
    rows = pd.concat(frames, ignore_index=True)
    if not has_users:
        rows[columns.histories] = [np.array(text.split(config["seq_separator"])) for text in rows[columns.histories]]
        rows[columns.user] = number_sessions(rows, [len(frame) for frame in frames], columns)
    if columns.time in columns.missing:
        rows[columns.time] = np.arange(len(rows))
    return rows[[columns.user, columns.item, columns.time]]


def number_sessions(frame: pd.DataFrame, sizes: list[int], columns: Columns) -> np.ndarray:
    """Return a token for every row of files without users: that of its session.

    A session is one row, or several, one behind the other, each of which continues the one before it or after it.
    """
    lists, items = frame[columns.histories].to_numpy(), frame[columns.item].to_numpy()

    def continues(row: int, other: int) -> bool:
        history, before = lists[row], lists[other]
        fits = len(history) == len(before) + 1 and history[-1] == items[other]
        return fits and np.array_equal(history[:-1], before)

    begins = {0, *np.cumsum(sizes).tolist()}
    new = [row in begins or not (continues(row, row - 1) or continues(row - 1, row)) for row in range(len(frame))]
    return np.cumsum(new).astype(str).astype(object)


def arrange(frame: pd.DataFrame, sizes: list[int], columns: Columns) -> Arranged:
    """Bring the rows of three files, one behind the other, into rows with histories.

    A row of plain interactions has all earlier ones of its user as history, earlier by file, then by time. Rows without
    a history are left out, as RecBole leaves out everyone's first interaction.

    Parameters
    ----------
    frame : rows, with a column of users and of times in any case, and one of histories (arrays) unless it is missing.
    sizes : rows of each file.
    columns : where times are missing, rows of a user are ordered by the length of their history, then as in the file.

    Returns
    -------
    rows : without the column of histories. Within a file RecBole's own order: users by their first time, then time.
    sizes : rows left of each file.
    sequences : item tokens. What every user has done comes first, users in the order of the files; items are numbered
        in this order, as RecBole numbers those of an unsplit file that is sorted by user and time.
    start, stop : `concatenate(sequences)[start[r] : stop[r]]` is the history of row `r`.
    backwards : users with a row that is earlier than one of theirs in a file before it.
    """
    if columns.histories not in columns.missing:
        _check_lists(frame[columns.histories].to_numpy(), frame[columns.item].to_numpy(), columns)
    file = np.repeat(np.arange(len(sizes)), sizes)
    user, times = pd.factorize(frame[columns.user])[0], frame[columns.time].to_numpy()
    items = frame[columns.item].to_numpy()
    by_user = np.lexsort((times, file, user))
    same_user = user[by_user][1:] == user[by_user][:-1]
    backwards = user[by_user][1:][same_user & (np.diff(times[by_user]) < 0)]
    begins = np.flatnonzero(np.r_[True, ~same_user][: len(by_user)])
    if columns.histories not in columns.missing:
        lists = frame.pop(columns.histories).to_numpy()
        lengths = np.array([len(row) for row in lists], np.int64)
        within = (times, lengths) if columns.time in columns.missing else (lengths, times)  # the last one counts first
        by_user = np.lexsort((*within, file, user))
        rows_of_users = np.split(by_user, begins[1:])[: len(begins)]
        sequences = [np.append(lists[rows[0]], items[rows]) for rows in rows_of_users]
        stop = np.cumsum(lengths) + sum(map(len, sequences))
        start, sequences = stop - lengths, sequences + list(lists)
    else:
        sequences = np.split(items[by_user], begins[1:])
        start, stop = np.empty((2, len(frame)), np.int64)
        stop[by_user] = np.arange(len(frame))
        start[by_user] = np.repeat(begins, [len(sequence) for sequence in sequences])
        within = (stop,)
    kept = np.flatnonzero(stop > start)
    begun = np.full(len(frame) and user.max() + 1, np.inf)
    np.minimum.at(begun, user[kept], times[kept])
    order = kept[np.lexsort([key[kept] for key in (*within, user, begun[user], file)])]
    rows, left = frame.iloc[order].reset_index(drop=True), np.bincount(file[order], minlength=len(sizes)).tolist()
    return Arranged(rows, left, sequences, start[order], stop[order], len(np.unique(backwards)))


def _check_lists(lists: np.ndarray, items: np.ndarray, columns: Columns) -> None:
    """Raise `InputError` where lists are not of the items that the column of items has, or hold their own target."""
    full = [(history, item) for history, item in zip(lists, items, strict=True) if len(history)]
    listed, targets = {str(token) for history, _ in full for token in history}, {str(item) for item in items}
    odd = sorted(token for token in listed - targets if token.startswith("[") or token.endswith("]") or "," in token)
    found = ""
    if odd:
        found = f"{odd[0]!r} in a list, expected items with blanks between them; seq_separator names another mark"
    elif listed and not listed & targets:
        found = f"lists of {min(listed)!r} and items such as {min(targets)!r}, expected the same ids in both; mend one"
    elif full and all(history[-1] == item for history, item in full):
        found = "every list ending with its own target, expected what came before it; take the target off"
    elif "0" in listed - targets and sum(history[-1] == "0" for history, _ in full) > len(full) / 2:
        found = "'0' at the end of most lists and as no target, expected lists without padding; take it off"
    if found:
        raise InputError(f"{columns.histories}: found {found}")
