"""Filtering and numbering of a data set over columns of coded tokens; rows and ids come out as RecBole's.

A column of tokens is either of objects or a categorical one, which has every token once.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureType

from ..errors import InputError
from .splitting import check_sizes, cuts_in_time, part_of, shares_of_time


def numbered(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Number the tokens [R] of a column from 0 as they are met; -1 is a blank. Returns the tokens by number as well."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        ids, tokens = pd.factorize(column.to_numpy())
        return ids, tokens
    codes = column.cat.codes.to_numpy()
    is_known = codes >= 0
    ids = np.full(len(codes), -1, np.int64)
    ids[is_known], met = pd.factorize(codes[is_known])
    return ids, column.cat.categories.to_numpy()[met]


def _is_interval(text: str) -> bool:
    found = re.fullmatch(r"\s*[\[(]([^,]+),([^,]+)[\])]\s*", text)
    try:
        return found is not None and float(found[1]) <= float(found[2])
    except ValueError:
        return False


class TokenIds(Mapping[str, int]):
    """Ids by token, from tokens by id; built on the first look-up. RecBole's knowledge graphs add a relation."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._tokens = tokens

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._tokens)}

    def __getitem__(self, token: str) -> int:
        return self._ids[token]

    def __setitem__(self, token: str, index: int) -> None:
        self._ids[token] = index

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class CodedDataset(SequentialDataset):
    """RecBole's `SequentialDataset` over columns of coded tokens.

    Attributes
    ----------
    part_sizes : numbers [3] of rows of training, validation and test in a split by time over all users; none in any
        other. Filters by number of interactions then count training alone.
    time_cuts : the times at which validation and test begin then, in the form that RecBole gives to times.
    """

    part_sizes: np.ndarray | None = None
    time_cuts: np.ndarray | None = None

    def _remap(self, remap_list: list[Any]) -> None:
        if not remap_list or any(kind != FeatureType.TOKEN for _, _, kind in remap_list):
            super()._remap(remap_list)
            return
        ids, tokens = zip(*(numbered(feat[field]) for feat, field, _ in remap_list), strict=True)
        of_all, every = pd.factorize(np.concatenate([np.asarray(part, dtype=object) for part in tokens]))
        by_id = np.array(["[PAD]", *every])
        begins = np.cumsum([0, *map(len, tokens)])
        for (feat, field, _), of_part, begin, end in zip(remap_list, ids, begins, begins[1:], strict=False):
            if field not in self.field2id_token:
                self.field2id_token[field], self.field2token_id[field] = by_id, TokenIds(by_id)
            feat[field] = np.r_[of_all[begin:end] + 1, 0][of_part]  # a blank is the last one, padding

    def _data_filtering(self) -> None:
        for field, values in (self.config["val_interval"] or {}).items():
            if field not in self.field2type:
                raise InputError(
                    f"val_interval: found {field!r}, expected a column of {self.dataset_name}.inter, .user or .item; "
                    "mend the name"
                )
            is_token = self.field2type[field] in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
            if is_token and not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
                raise InputError(
                    f"val_interval: {field}: found {values!r}, expected a list of texts, such as ['a', 'b']"
                )
        super()._data_filtering()
        if self.config["shuffle_ties"] is not None:
            # RecBole sorts by time with a stable sort, so the order made here decides among equal times.
            shuffled = self.inter_feat.sample(frac=1, random_state=self.config["shuffle_ties"])
            self.inter_feat = shuffled.reset_index(drop=True)
        # Times go by their rank where RecBole's float32 would merge them (Unix time: steps of 128 s).
        times = self.inter_feat[self.time_field].to_numpy()
        if times.size and len(np.unique(times.astype(np.float32))) < len(np.unique(times)):
            self.inter_feat[self.time_field] = np.unique(times, return_inverse=True)[1].astype(np.float64)
            self.logger.info(f"{self.time_field}: replaced by its order, as some would be equal in RecBole's float32")

    def _change_feat_format(self) -> None:
        if self.part_sizes is not None:
            times = np.sort(self.inter_feat[self.time_field].to_numpy()).astype(np.float32)
            self.time_cuts = np.r_[times, np.inf][np.cumsum(self.part_sizes[:-1])]
        super()._change_feat_format()

    def _parse_intervals_str(self, intervals_str: Any) -> Any:
        # RecBole warns of what it cannot read and filters by something else.
        parts = [] if intervals_str is None else str(intervals_str).split(";")
        if not all(map(_is_interval, parts)):
            raise InputError(
                f"user_inter_num_interval, item_inter_num_interval or val_interval: found {str(intervals_str)!r}, "
                "expected an interval such as [5,inf), or several with ; between them"
            )
        return super()._parse_intervals_str(intervals_str)

    def _reset_index(self) -> None:
        if empty := [name for name in self.feat_name_list if getattr(self, name).empty]:
            raise InputError(
                f"{self.dataset_name}: filtering failed (nothing is left of {empty[0]}); loosen or mend "
                "user_inter_num_interval, item_inter_num_interval or val_interval"
            )
        super()._reset_index()

    def _filter_by_inter_num(self) -> None:
        """Take out users and items with too few or too many rows, all of them at once, until no such one is left.

        In a split by time over all users, only training rows count; users and items it does not know leave the other
        parts.
        """
        keys = {"user_inter_num_interval": self.uid_field, "item_inter_num_interval": self.iid_field}
        asked = {field: self._parse_intervals_str(self.config[key]) for key, field in keys.items()}
        shares = shares_of_time(self.config["eval_args"])
        if not any(asked.values()) and shares is None:
            return
        part = np.zeros(len(self.inter_feat), np.int8)  # of which the first is counted
        if shares is not None:
            times = self.inter_feat[self.time_field].to_numpy()
            part = part_of(times, cuts_in_time(times, shares))
        ids, tokens = {}, {}
        for field, intervals in asked.items():
            if intervals or shares is not None:
                ids[field], tokens[field] = numbered(self.inter_feat[field])
                if len(intervals or ()) > 1:
                    self.logger.warning(f"{field}: {len(intervals)} intervals of the number of interactions are given")
        kept, counts, banned = self._within(part == 0, ids, asked)
        if shares is not None:
            kept |= self._known_later(part > 0, ids, counts)
            self.part_sizes = np.bincount(part[kept], minlength=len(shares))
            check_sizes(self.part_sizes, shares, "training knows no user with an item of the others")
            banned = {field: n == 0 for field, n in counts.items()}
        self.inter_feat = self.inter_feat[kept]
        for name, field in (("user_feat", self.uid_field), ("item_feat", self.iid_field)):
            feat = getattr(self, name)
            if feat is None or field not in ids:
                continue
            at = pd.Index(tokens[field]).get_indexer(feat[field])
            n = np.r_[counts[field], 0][at]  # what has no row is the last one
            too_few = n < (asked[field][0][1] if asked[field] else 0)
            unknown = np.r_[banned[field], shares is not None][at]
            setattr(self, name, feat[~(too_few | unknown)])

    def _within(
        self, counted: np.ndarray, ids: dict[str, np.ndarray], asked: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return which of the rows `counted` [R] are kept; by field, the rows left of each id, and if it went."""
        kept, sizes = counted.copy(), {field: int(of.max(initial=-1)) + 1 for field, of in ids.items()}
        banned = {field: np.zeros(size, bool) for field, size in sizes.items()}
        while True:
            counts = {field: np.bincount(ids[field][kept], minlength=size) for field, size in sizes.items()}
            new = {
                field: (n > 0) & ~self._within_intervals(n, asked[field]) for field, n in counts.items() if asked[field]
            }
            if not any(found.any() for found in new.values()):
                return kept, counts, banned
            for field, found in new.items():
                banned[field] |= found
                kept &= ~found[ids[field]]

    def _known_later(self, later: np.ndarray, ids: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> np.ndarray:
        """Return which rows [R] `later` than training have a user and an item it knows; the log counts the rest."""
        known = {field: counts[field][of] > 0 for field, of in ids.items()}
        kept = later & np.logical_and.reduce([*known.values()])
        left_out = [f"{len(np.unique(ids[field][later & ~of]))} of {field}" for field, of in known.items()]
        self.logger.info(
            f"split by time over all users: {later.sum() - kept.sum()} of {later.sum()} rows after training are left "
            f"out, with tokens that training does not know: {', '.join(left_out)}"
        )
        return kept
