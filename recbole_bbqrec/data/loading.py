"""RecBole's sequential data set as it is read, filtered and split, where RecBole's own steps stumble over files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from torch.nn.functional import pad

from .. import compat
from ..errors import InputError
from ..preparation.atomic import read_atomic, read_header
from . import splitting
from .numbering import CodedDataset
from .presplit import NO_TIMES, Columns, arrange, number_sessions, read_columns
from .sequences import Histories

ROW = "row_number_"
"""Column that numbers the rows of the whole data set while it is split."""


def taken(rows: Interaction, index: np.ndarray) -> Interaction:
    """Some rows; RecBole would make a list of Python numbers of `index` [B] first."""
    chosen = torch.from_numpy(index)
    return Interaction({field: values[chosen] for field, values in rows.interaction.items()})


class LoadedDataset(CodedDataset):
    """RecBole's `SequentialDataset`, strict about its files, and with files that are split already in every shape.

    Attributes
    ----------
    histories : all that stands before the target of every row. `data[rows]` has the last of it as RecBole's lists.
    makes_prefixes : whether the lists of all rows stand in `inter_feat` as well, as RecBole's own models may ask for.
    rows_are_interactions : whether a row is a user's interaction with an item, and not a history with its target.
    """

    histories: Histories
    makes_prefixes = rows_are_interactions = False

    def __init__(self, config: Any) -> None:
        if config["USER_ID_FIELD"] is None:
            raise InputError(
                "USER_ID_FIELD: found none, expected a name; drop the key, files with histories need no users"
            )
        given = config["benchmark_filename"] is not None and not self.rows_are_interactions
        self._split = read_columns(config) if given else None
        with compat.lengths_by_element():
            super().__init__(config)

    def build(self) -> list[Any]:
        """Split as RecBole does; every part knows the histories of its rows."""
        splits = self._splits()
        self._set_histories(splits)
        return splits

    def _splits(self) -> list[Any]:
        return super().build()

    def _set_histories(self, splits: list[Any]) -> None:
        whole = self.histories
        for part in (self, *splits):
            part.histories = whole[part.inter_feat[ROW].numpy()]
            part.inter_feat.drop(ROW)

    @property
    def positive_rows(self) -> np.ndarray | None:
        """Rows [R] of what users liked; none where that is all of them, as nothing says otherwise."""
        return None

    def positive(self) -> Any:
        """This part of a split with its `positive_rows` alone."""
        return self

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their histories as lists, cut to MAX_ITEM_LIST_LENGTH."""
        if self.makes_prefixes:
            return super().__getitem__(index, join)
        index = np.asarray(index, dtype=np.int64).reshape(-1)
        rows, lists = taken(self.inter_feat, index), self.lists(index)
        named = {self.list_field: lists, self.item_list_length_field: (lists != 0).sum(1)}
        rows.update(Interaction(named))
        return self.join(rows) if join else rows

    @property
    def list_field(self) -> str:
        """Name of the lists of items."""
        return self.iid_field + self.config["LIST_SUFFIX"]

    def lists(self, index: Any = slice(None)) -> torch.Tensor:
        """Histories of some rows as models read them, [B, MAX_ITEM_LIST_LENGTH]; 0 pads on the right."""
        return torch.from_numpy(self.histories[index].padded(self.max_item_list_len))

    def data_augmentation(self) -> None:
        """Make rows with histories as RecBole does, and keep the histories whole."""
        self.sort(by=[self.uid_field, self.time_field])
        users, items = (self.inter_feat[field].numpy() for field in (self.uid_field, self.iid_field))
        at = np.arange(len(users))
        start = np.maximum.accumulate(np.where(np.r_[True, users[1:] != users[:-1]][: len(users)], at, 0))
        rows = np.flatnonzero(at > start)
        if self.makes_prefixes:
            super().data_augmentation()
        else:
            self.inter_feat = taken(self.inter_feat, rows)
        self.histories = Histories(items, start[rows], rows)

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[Any]:
        """As RecBole's, without a list of numbers for every user."""
        return self._parts(splitting.leave_one_out(self.inter_feat[group_by].numpy(), leave_one_mode))

    def split_by_ratio(self, ratios: list[float], group_by: str | None = None) -> list[Any]:
        """As RecBole's, without a list of numbers for every user."""
        shares = [ratio / sum(ratios) for ratio in ratios]

        def cut(size: int) -> list[int]:
            return self._calcu_split_ids(tot=size, ratios=shares)

        if group_by is None:
            return self._parts(np.split(np.arange(len(self)), cut(len(self))))
        return self._parts(splitting.by_ratio(self.inter_feat[group_by].numpy(), len(ratios), cut))

    def time_based_split(self, ratios: list[float], group_by: str) -> list[Any]:
        """As RecBole's, without a table for every user; or by time over all users."""
        if self.time_cuts is not None:
            times = self.inter_feat[self.time_field].numpy()
            return self._parts(splitting.over_all_users(times, self.time_cuts))
        users, times = (self.inter_feat[field].numpy() for field in (group_by, self.time_field))
        return self._parts(splitting.by_time(users, times, [ratio / sum(ratios) for ratio in ratios]))

    def _parts(self, rows: list[np.ndarray]) -> list[Any]:
        self._drop_unused_col()
        return [self.copy(taken(self.inter_feat, of_part)) for of_part in rows]

    def _get_field_from_config(self) -> None:
        super()._get_field_from_config()
        self.time_field = self.time_field or NO_TIMES

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)
        if self.config["TIME_FIELD"] is None or self.time_field not in self.inter_feat:
            self.inter_feat[self.time_field] = np.arange(len(self.inter_feat), dtype=np.float64)
            self.set_field_property(self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
            self.logger.info(f"{self.time_field}: no times, the order of rows in the file counts")
        if self._split is not None:
            self._arrange(self._split)

    def _arrange(self, columns: Columns) -> None:
        before = self.file_size_list
        if columns.user in columns.missing:
            self.logger.warning(
                f"no column {columns.user} in the files: rows are sessions; --USER_ID_FIELD names a column of users"
            )
            self.inter_feat[columns.user] = number_sessions(self.inter_feat, before, columns)
            self.set_field_property(columns.user, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        found = arrange(self.inter_feat, before, columns)
        for size, name in zip(found.sizes, self.benchmark_filename_list, strict=True):
            if not size:
                path = f"{self.dataset_path}/{self.dataset_name}.{name}.inter"
                raise InputError(
                    f"{path}: found no row with anything before it, expected a history or an earlier row; move rows of "
                    "another file into it"
                )
        if without := sum(before[1:]) - sum(found.sizes[1:]):
            self.logger.warning(f"{without} validation and test rows have nothing before them and are not judged")
        if found.backwards:
            self.logger.warning(f"{found.backwards} users have a row earlier in time than one in a file before it")
        self.inter_feat, self.file_size_list = found.rows, found.sizes
        for field in self._list_fields():
            self.inter_feat[field] = [values[-self.max_item_list_len :] for values in self.inter_feat[field]]
            self.field2seqlen[field] = self.max_item_list_len
        self._sequences = pd.DataFrame({columns.histories: found.sequences})
        self._spans = found.start, found.stop
        self.field2type.pop(columns.histories, None)  # numbered with the items, not as a column of its own

    def _init_alias(self) -> None:
        loaded = [*self.token_like_fields, *([self._split.histories] if self._split else [])]
        for key in ("alias_of_user_id", "alias_of_item_id"):
            given = self.config[key] or []
            if not isinstance(given, list) or not set(given) <= set(loaded):
                raise InputError(
                    f"{key}: found {given!r}, expected a list of loaded columns of tokens ({', '.join(loaded)}); mend "
                    "it, or add the column to load_col"
                )
        super()._init_alias()
        for field in self._rest_fields if self._split else ():
            if (histories := field + self.config["LIST_SUFFIX"]) in self._rest_fields:
                self.alias[field] = np.array([field, histories])
                self._rest_fields = np.setdiff1d(self._rest_fields, self.alias[field])

    def _get_remap_list(self, field_list: np.ndarray) -> list[Any]:
        if self._split is None or self.iid_field not in field_list:
            return super()._get_remap_list(field_list)
        histories = self._split.histories
        rest = super()._get_remap_list(np.array([field for field in field_list if field != histories]))
        return [(self._sequences, histories, FeatureType.TOKEN_SEQ), *rest]

    def _benchmark_presets(self) -> None:
        assert self._split
        field, most = self._split.histories, self.max_item_list_len
        items, start, stop = np.concatenate(self._sequences.pop(field)), *self._spans
        self.histories = Histories(items, start, stop)
        if not self.makes_prefixes:
            return
        self.inter_feat[field] = list(Histories(items, np.maximum(start, stop - most), stop))
        self.set_field_property(field, FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, most)
        self.item_id_list_field = field  # RecBole's name for it, whatever the field is called
        super()._benchmark_presets()

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        for field in self._list_fields() if self._split else ():  # as long as the lists that RecBole makes
            values = self.inter_feat[field]
            width = [0, 0] * (values.dim() - 2) + [0, self.max_item_list_len - values.shape[1]]
            self.inter_feat[field] = pad(values, width)
        if not self.rows_are_interactions:
            self.inter_feat[ROW] = torch.arange(len(self.inter_feat))

    def _list_fields(self) -> list[str]:
        """Columns of histories: of items, and what else came with them."""
        lists = {field + self.config["LIST_SUFFIX"] for field in self.inter_feat}
        return [field for field in self.inter_feat if field in lists]

    def _columns_to_load(self, path: str, source: Any) -> tuple[set[str] | None, set[str] | None]:
        """As `load_col` and `unload_col` say; with the columns that other settings, or the shape of the files, need."""
        load_col, unload_col = self._get_load_and_unload_col(source)
        if load_col is None or not isinstance(source, FeatureSource):
            return load_col, unload_col
        default = (self.config.internal_config_dict.get("load_col") or {}).get("inter")
        if source == FeatureSource.INTERACTION and self.config["load_col"].get("inter") in (None, default):
            named = {"user_id": self.uid_field, "item_id": self.iid_field, "timestamp": self.config["TIME_FIELD"]}
            load_col = {named.get(field, field) for field in load_col or named} - {None}
        if source == FeatureSource.INTERACTION and self._split:
            load_col = (load_col | {self._split.histories}) - self._split.missing
        if wanted := (self.config["val_interval"] or {}).keys() - self.field2type.keys():
            how = self.config["field_separator"], self.config["encoding"] or "utf-8"
            found = wanted & read_header(path, *how).keys()
            ids = {FeatureSource.USER: {self.uid_field}, FeatureSource.ITEM: {self.iid_field}}.get(source, set())
            load_col = load_col | found | ids if found else load_col
        return load_col, unload_col

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        load_col, unload_col = self._columns_to_load(filepath, source)
        if load_col == set():
            return None
        separator, encoding = self.config["field_separator"], self.config["encoding"] or "utf-8"
        # RecBole's own data sets, which read their files by this in its own scripts, number tokens as they are.
        coded = source == FeatureSource.INTERACTION and isinstance(self, LoadedDataset) and self._split is None
        fields = load_col and sorted(load_col)
        frame, types = read_atomic(Path(filepath), fields, separator, encoding, coded=coded)
        unwanted = set(unload_col or ()) & types.keys()
        frame, types = frame.drop(columns=list(unwanted)), {k: v for k, v in types.items() if k not in unwanted}
        for field, name in types.items():
            kind = FeatureType(name)
            if isinstance(source, FeatureSource) or source != "link":
                self.field2source[field], self.field2type[field] = source, kind
                if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                    self.field2bucketnum[field] = 2
            if kind in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                read, mark = float if kind == FeatureType.FLOAT_SEQ else str, self.config["seq_separator"]
                rows = [np.array([read(part) for part in text.split(mark) if part]) for text in frame[field]]
                longest = max((len(row) for row in rows), default=0)
                self.field2seqlen[field] = min((self.config["seq_len"] or {}).get(field, longest), longest)
                frame[field] = [row[: self.field2seqlen[field]] for row in rows]
            else:
                self.field2seqlen[field] = 1
                if kind == FeatureType.TOKEN and not coded:
                    frame[field] = frame[field].astype(object).where(frame[field] != "", np.nan)
        if source == FeatureSource.INTERACTION:
            self._check_interactions(filepath, frame, types)
        return frame

    def _check_interactions(self, path: str, frame: pd.DataFrame, types: dict[str, str]) -> None:
        for key, kind in (("USER_ID_FIELD", "token"), ("ITEM_ID_FIELD", "token"), ("TIME_FIELD", "float")):
            field = self.config[key]
            if field is None or (self._split and field in self._split.missing):
                continue
            if types.get(field) != kind:
                found = f"{field}:{types[field]}" if field in types else f"no column {field} among {', '.join(types)}"
                instead = ", or let the order of rows count with --TIME_FIELD=~" if key == "TIME_FIELD" else ""
                raise InputError(
                    f"{path}, line 1: found {found}, expected {field}:{kind}; mend the header, name the column with "
                    f"--{key}=..., or add it to load_col{instead}"
                )
            blank = np.flatnonzero(frame[field].isna())
            if len(blank):
                raise InputError(
                    f"{path}, line {blank[0] + 2}: found a blank {field}, expected a value in every row of an "
                    f"interaction file ({len(blank)} are blank); fill it in or delete the line"
                )

    def _fill_nan(self) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in list(feat):
                kind = self.field2type[field]
                if kind == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif kind == FeatureType.FLOAT:
                    if name == "inter_feat" and (blank := int(feat[field].isna().sum())):
                        self.logger.warning(
                            f"{field}: {blank} blank cells of interactions become the mean of all rows, of held-out "
                            "ones too; fill them in the file by what training rows say"
                        )
                    feat[field] = feat[field].fillna(feat[field].mean())
                else:
                    empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                    feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]

    def _normalize(self) -> None:
        every = self.float_like_fields if self.config["normalize_all"] else self.config["normalize_field"] or []
        read = {*self.config["numerical_features"]} & {*self.inter_feat}
        if scaled := sorted(read & {*every, *(self.config["discretization"] or [])}):
            self.logger.warning(
                f"{', '.join(scaled)}: scaled or cut by the smallest and largest value of all interactions, of "
                "held-out ones too; scale the column in the file by what training rows say"
            )
        super()._normalize()

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        with warnings.catch_warnings():
            # Columns of pandas 3 are read-only views; RecBole reorders them into new tensors next and writes to none.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return super()._dataframe_to_interaction(data)

    def get_preload_weight(self, field: str) -> np.ndarray:
        """As RecBole's, in single precision: KSR multiplies the vectors with its weights as they are."""
        return super().get_preload_weight(field).astype(np.float32)
