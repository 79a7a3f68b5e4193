"""What people hand to a bundle, as item tokens: lists, arrays, tensors and columns of tables, of texts or numbers."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from ..errors import InputError

HISTORIES = "a list of lists of item tokens: [['B0048KGFHU', ...]]"
TOKENS = "item tokens: texts or whole numbers"
COLUMN = "a column of lists, as frame.groupby('user_id')['item_id'].apply(list) makes it"


def histories_of(given: Any, known: Collection[str]) -> list[list[str]]:
    """Return the item tokens of every history of an iterable of iterables, see `tokens_of`."""
    histories = _values(given, "histories", HISTORIES)
    return [tokens_of(history, known, f"history {at}", HISTORIES) for at, history in enumerate(histories)]


def lists_of(given: Any, known: Collection[str], n_histories: int, name: str) -> list[list[str]]:
    """Return the tokens of one list for all histories, or of a list for each of them: what holds lists is lists.

    `name` is that of the argument.
    """
    values = _values(given, name, "a list of item tokens, or one for each history", ordered=False)
    of_each = [_is_collection(value) for value in values]
    if not any(of_each):
        return [tokens_of(values, known, name)]
    if not all(of_each):
        _refuse(name, values[of_each.index(False)], "item tokens alone, or lists of them alone, one for each history")
    if len(values) != n_histories:
        why = f"give one list of item tokens to {name} the same to all"
        raise InputError(f"{name}: found {len(values)} lists, expected one for each of {n_histories} histories; {why}")
    return [tokens_of(value, known, f"{name}, history {at}", ordered=False) for at, value in enumerate(values)]


def tokens_of(
    given: Any, known: Collection[str], place: str, expected: str = f"a list of {TOKENS}", ordered: bool = True
) -> list[str]:
    """Return the item tokens that an iterable holds; a set will do where they need no order.

    A whole number stands for the token that spells it. A column with gaps makes 168.0 of 168: a token is read either
    way, as it is spelled among those `known`.
    """
    return [_token(value, known, place) for value in _values(given, place, expected, ordered)]


def number_of(given: Any) -> int:
    """Return `k`, of whatever numeric type, as a whole number of at least 1."""
    value = _plain(given)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse("k", given, "a whole number, at least 1")
    return value


def _token(given: Any, known: Collection[str], place: str) -> str:
    value = _plain(given)
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # From 2 ** 53 on a float has lost digits; NaN is not below that either.
    if not is_number or (isinstance(value, float) and not abs(value) < 2**53):
        _refuse(place, given, TOKENS)
    if isinstance(value, float) and not value.is_integer():
        return str(value)
    plain, with_point = str(int(value)), f"{int(value)}.0"
    return with_point if with_point in known and (isinstance(value, float) or plain not in known) else plain


def _values(given: Any, place: str, expected: str, ordered: bool = True) -> list[Any]:
    """Return what an iterable holds; texts, mappings and frames, whose content may surprise, are refused."""
    if hasattr(given, "columns") or hasattr(given, "ngroups"):  # a frame, or its groups
        _refuse(place, given, COLUMN)
    if isinstance(given, Mapping) or not _is_collection(given) or (ordered and isinstance(given, set | frozenset)):
        _refuse(place, given, expected)
    return given.tolist() if hasattr(given, "tolist") else list(given)


def _is_collection(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def _plain(value: Any) -> Any:
    """Return the Python value of a number of numpy or torch."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _refuse(place: str, found: Any, expected: str) -> NoReturn:
    shown = repr(found)
    if _is_collection(found) or len(shown) > 40 or "\n" in shown:
        shown = type(found).__name__
    raise InputError(f"{place}: found {shown}, expected {expected}")
