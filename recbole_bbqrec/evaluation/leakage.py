"""Whether training was kept apart from what is judged: checked on a run's own loaders, before it trains.

The sequences that everything is compared with are made from users, items and times alone, not by the code that splits
them or collects what users have seen.

Shapes: R rows (prefixes with their targets), U users with rows, n = R + U interactions.
"""

from typing import Any

import numpy as np
import scipy.sparse

from ..data.sequences import Sequences, seen_before, token_places
from ..data.splitting import shares_of_time
from ..errors import InputError


def check_leakage(dataset: Any, train: Any, valid: Any, test: Any) -> dict[str, str]:
    """Check a split, and return what the record says of it: `leakage_check`.

    Every user's sequence in time is the training part, then the validation and then the test targets; training rows and
    `train_sequences` hold nothing but the training part, the latter none of the items that are held out of training
    (`cold_items`); the items masked for a target are exactly those before it. In a split by time over all users, every
    row is later than all rows of earlier parts. Where any of this fails, an `InputError` names the first user.
    `dataset` is RecBole's before its split, the others are loaders of its parts.

    Files that were split already decide the order themselves: training sequences must hold the steps of the training
    rows and no others, and masks what stands in earlier files and in the row's own history. Where rows are
    interactions, the parts must hold each of those of `dataset` once, in the order of time where they are split by it.
    """
    parts = [loader._dataset for loader in (train, valid, test)]
    by_files = dataset.config["benchmark_filename"] is not None
    if not by_files and shares_of_time(dataset.config["eval_args"]) is not None:
        _check_over_all_users(parts)
    if dataset.rows_are_interactions:
        return {"leakage_check": _check_interactions(dataset, parts)}
    if by_files:
        return {"leakage_check": _check_files(parts)}
    (users, targets, times), (split_users, split_targets, split_times) = _rows(dataset), _rows(*parts)
    if len(users) != len(split_users):
        raise InputError(f"leakage check: found {len(split_users)} rows in the split, expected {len(users)}")
    sizes = [len(part.inter_feat) for part in parts]
    by_time = np.lexsort((times, users))
    by_phase = np.lexsort((split_times, np.repeat(np.arange(3), sizes), split_users))
    users, targets = users[by_time], targets[by_time]
    wrong = (users != split_users[by_phase]) | (targets != split_targets[by_phase])
    _refuse(dataset, users[wrong], "a held-out item that is not behind all training items in time")

    # All interactions [n]. A user's first one has no row of its own: it is the history of the user's first row.
    is_first = np.r_[True, users[1:] != users[:-1]][: len(users)]
    firsts, number = np.flatnonzero(is_first), np.cumsum(is_first)
    items = np.insert(targets, firsts, dataset.histories.items[dataset.histories.start[by_time[firsts]]])
    owner = np.insert(users, firsts, users[firsts])
    # Of each row of the split: where its user begins among the interactions, and where its target stands.
    begin, end = np.empty((2, len(users)), np.int64)
    end[by_phase] = np.arange(len(users)) + number
    begin[by_phase] = (firsts + np.arange(len(firsts)))[number - 1]
    bounds = np.cumsum([0, *sizes])
    rows = slice(bounds[0], bounds[1])
    in_training = np.zeros(len(items), bool)
    in_training[begin[rows]] = in_training[end[rows]] = True
    _check_training(parts[0], owner[in_training], items[in_training])
    for at in (1, 2):
        rows = slice(bounds[at], bounds[at + 1])
        _check_seen(parts[at], parts[:at], items, begin[rows], end[rows])
    return {"leakage_check": "passed"}


def _check_over_all_users(parts: list[Any]) -> None:
    users, _, times = zip(*(_rows(part) for part in parts), strict=True)
    for at in (1, 2):
        early = times[at] <= np.concatenate(times[:at]).max(initial=-np.inf)
        _refuse(parts[at], users[at][early], "a row that is not later than all rows of earlier parts")


def _check_interactions(dataset: Any, parts: list[Any]) -> str:
    rows, split_rows = _rows(dataset), _rows(*parts)
    phase = np.repeat(np.arange(len(parts)), [len(part.inter_feat) for part in parts])
    (users, items, _), (owners, found, _) = (
        [column[np.lexsort(columns)] for column in columns] for columns in (rows, split_rows)
    )
    if not (np.array_equal(users, owners) and np.array_equal(items, found)):
        raise InputError("leakage check: the parts of the split do not have every interaction once")
    says = ", in random order: what is held out may be older than what is trained on"
    if dataset.config["benchmark_filename"] is not None:
        says = ", the files were split already"
    elif dataset.config["eval_args"]["order"] == "TO" or shares_of_time(dataset.config["eval_args"]) is not None:
        says, (users, _, times) = "", split_rows
        by_phase = np.lexsort((times, phase, users))
        later = (np.diff(users[by_phase]) == 0) & (np.diff(times[by_phase]) < 0)
        _refuse(dataset, users[by_phase][1:][later], "a held-out item that is not behind all training items in time")
    train = parts[0]
    users, items, _ = _rows(train.positive())
    learned = train.train_sequences
    places = token_places(train, train.uid_field)
    owners = np.unique(users)[np.argsort(places[np.unique(users)])]  # of the sequences
    trained = np.repeat(owners, np.diff(learned.offsets)) if len(owners) == len(learned) else np.zeros(0, np.int64)
    same = len(trained) == len(learned.items)
    if not same or not _same_pairs((users, items), (trained, learned.items), train.item_num):
        raise InputError("leakage check: the training sequences are not the liked training rows of the users")
    for at in (1, 2):
        users, targets, _ = _rows(parts[at])
        before = np.unique(np.concatenate([of[0] * train.item_num + of[1] for of in map(_rows, parts[:at])]))
        before = np.setdiff1d(before, users * train.item_num + targets)
        masked = seen_before(parts[at], parts[:at]).tocoo()
        pairs = np.unique(users[masked.row] * train.item_num + masked.col)
        expected = before[np.isin(before // train.item_num, users)]
        wrong = np.setxor1d(pairs, expected) // train.item_num
        _refuse(parts[at], wrong, "masked items that are not those of earlier parts")
    return f"passed{says}"


def _same_pairs(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...], n_items: int) -> bool:
    first, second = (np.sort(users * n_items + items) for users, items in (one, other))
    return np.array_equal(first, second)


def _check_files(parts: list[Any]) -> str:
    train, sequences = parts[0], parts[0].train_sequences
    given, held_out = _steps(train), np.concatenate([_steps(part, last=True) for part in parts[1:]])
    inside = np.setdiff1d(np.arange(1, len(sequences.items)), sequences.offsets)
    learned = np.c_[sequences.items[inside - 1], sequences.items[inside]] @ [train.item_num, 1]
    if not np.array_equal(np.unique(learned), np.unique(given % train.item_num**2)):
        raise InputError("leakage check: the training sequences are not those of the training rows")
    met: dict[int, set[int]] = {}
    for at, part in enumerate(parts):
        users, targets, _ = _rows(part)
        if at:
            seen = scipy.sparse.csr_array(seen_before(part, parts[:at]))
            masked = (set(row.tolist()) for row in np.split(seen.indices, seen.indptr[1:-1]))
            rows = zip(users.tolist(), targets.tolist(), part.histories, masked, strict=True)
            wrong = [found != {*own.tolist(), *met.get(user, ())} - {target} for user, target, own, found in rows]
            _refuse(part, users[np.array(wrong)], "masked items that are not those before the target")
        longest = part.histories.covering()
        for user, items in zip(users[longest].tolist(), part.histories[longest], strict=True):
            met.setdefault(user, set()).update(items.tolist())
        for user, target in zip(users.tolist(), targets.tolist(), strict=True):
            met[user].add(target)
    again = np.isin(held_out, given).sum()
    found = f"; {again} of {len(held_out)} held-out targets follow the same item as in their user's training rows"
    return f"passed, the files were split already{found if again else ''}"


def _steps(dataset: Any, last: bool = False) -> np.ndarray:
    """Number every step of the users' histories from an item to the next, or the `last` one of each, to the target."""
    users, targets, _ = _rows(dataset)
    histories = dataset.histories
    parts = [np.c_[users, histories.items[histories.stop - 1], targets]]
    if not last:
        rows = histories.covering()
        row, items = histories[rows].entries()
        same = np.diff(row) == 0
        parts.append(np.c_[users[rows[row[1:][same]]], items[:-1][same], items[1:][same]])
    return np.concatenate(parts) @ [dataset.item_num**2, dataset.item_num, 1]


def _rows(*datasets: Any) -> list[np.ndarray]:
    """Users, targets and times [R] of the rows of some data sets, one after the other."""
    fields = (datasets[0].uid_field, datasets[0].iid_field, datasets[0].time_field)
    return [np.concatenate([data.inter_feat[field].numpy() for data in datasets]) for field in fields]


def _refuse(dataset: Any, users: np.ndarray, found: str) -> None:
    if len(users):
        token = dataset.field2id_token[dataset.uid_field][users[0]]
        raise InputError(
            f"leakage check: user {token}: found {found} ({len(np.unique(users))} users in all), expected a split in "
            "which training ends before validation and validation before test; look at eval_args and the data's times"
        )


def _check_training(train: Any, owner: np.ndarray, items: np.ndarray) -> None:
    """What models learn from: rows, and the sequences that windows and tokenizers are cut from."""
    order = np.argsort(token_places(train, train.uid_field)[owner], kind="stable")
    borders = np.flatnonzero(np.diff(owner[order])) + 1
    learned = train.train_sequences
    expected = Sequences(np.r_[0, borders, len(items)], items[order])
    if train.n_cold:
        expected = expected.only(expected.items < train.item_num)
    expected = expected.offsets, expected.items
    if not all(map(np.array_equal, (learned.offsets, learned.items), expected)):
        raise InputError("leakage check: the training sequences are not the training part of the users' sequences")
    users, row, history = train.inter_feat[train.uid_field].numpy(), *_shown(train)
    n_items = train.item_num + train.n_cold  # RecBole's rows hold the cold ones as well
    foreign = ~np.isin(users[row] * n_items + history, owner * n_items + items)
    _refuse(train, users[row][foreign], "a training history with an item from outside the training part")


def _shown(train: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row and item of all that the histories of training rows show to models."""
    if train.makes_prefixes:
        lists = train.inter_feat[train.list_field].numpy()
        row, column = np.nonzero(lists)
        return row, lists[row, column]
    longest = train.histories.covering()
    row, items = train.histories[longest].entries()
    return longest[row], items


def _check_seen(evaluated: Any, earlier: list[Any], items: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
    """What is masked for each row of `evaluated`: everything before its target, but not the target."""
    users, targets, _ = _rows(evaluated)
    counts = end - begin
    row = np.repeat(np.arange(len(users)), counts)
    before = items[np.arange(counts.sum()) + np.repeat(begin - np.cumsum(counts) + counts, counts)]
    other = before != targets[row]
    entries = np.ones(other.sum(), bool), (row[other], before[other])
    expected = scipy.sparse.csr_array(entries, shape=(len(users), evaluated.item_num))
    wrong = (expected != seen_before(evaluated, earlier)).nonzero()[0]
    _refuse(evaluated, users[wrong], "masked items that are not those before the target")
