"""Tables in, tables out: lists of recommendations for the users of a frame."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import InputError, listed
from ..preparation.bad_rows import Bad
from ..preparation.tables import milliseconds

if TYPE_CHECKING:
    from .bundle import Bundle

NAMES = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "TIME_FIELD": "time"}
"""What columns may be called beside the names that the run's settings give them."""


def histories_of(frame: pd.DataFrame, settings: Any) -> "pd.Series[Any]":
    """Return a list of items for each user of a frame, in the order of time, or of the rows where it has no times.

    Raises
    ------
    InputError : no frame, or none with users and items; or a row lacks one of these or its time.
    """
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"frame: found {type(frame).__name__}, expected a pandas frame of users and items")
    found = {}
    for key, name in NAMES.items():
        wanted = [settings[key], name]
        found[name] = next((column for column in wanted if column in frame), None)
        if found[name] is None and name != "time":
            there = listed(wanted[0], map(str, frame.columns))
            raise InputError(f"frame: found no column {wanted[0]} or {name}; rename the one with the {name}s, {there}")
    if twice := [name for name in found.values() if name is not None and isinstance(frame[name], pd.DataFrame)]:
        raise InputError(f"frame: found two columns {twice[0]}, expected names that differ; rename one")
    if frame[[found["user"], found["item"]]].isna().any(axis=None):
        raise InputError("frame: found a row without a user or an item, expected both in all; drop such rows")
    if found["time"] is not None:
        frame = frame.sort_values(found["time"], kind="stable", key=_moments)
    # Of a column of categories only those that are there: a user without rows has no history.
    return frame.groupby(found["user"], observed=True)[found["item"]].apply(list)


def _moments(times: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return times as what can be sorted: texts are read as `bbqrec prepare` reads them."""
    if times.isna().any():
        raise InputError(
            f"frame: found a row without a {times.name}; drop such rows, or the column if rows are in order"
        )
    if pd.api.types.is_numeric_dtype(times) or pd.api.types.is_datetime64_any_dtype(times):
        return times
    try:
        return times.map(milliseconds).astype("int64")
    except Bad as error:
        reason = error.reason.removeprefix("time: ")
        raise InputError(f"frame: {times.name}: {reason}, found {error.text[:40]!r}; mend the row") from None


def recommend_frame(bundle: "Bundle", frame: pd.DataFrame, k: int, **how: Any) -> pd.DataFrame:
    """As `Bundle.recommend_frame`."""
    histories = histories_of(frame, bundle.settings)
    found = bundle.recommend(histories, k, **how)
    rows = [
        (user, rank, item, bundle.title(item), score)
        for user, result in zip(histories.index, found, strict=True)
        for rank, (item, score) in enumerate(zip(result.items, result.scores, strict=True), 1)
    ]
    return pd.DataFrame(rows, columns=["user", "rank", "item", "title", "score"])
