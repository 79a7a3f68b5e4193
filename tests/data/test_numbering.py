"""Filters and ids over coded tokens against RecBole's own over texts."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_bbqrec.data.numbering import CodedDataset, TokenIds, numbered

TOKENS = st.sampled_from(["a", "b", "ü", "10", "9"])
ROWS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=40)
INTERVALS = st.sampled_from([None, "[2,inf)", "[3,9]", "[1,2);(3,6]"])


def stub(rows, coded, intervals=(None, None), feats=(None, None)):
    """What the filters and `_remap` read of a data set."""
    frame = pd.DataFrame(rows, columns=["user", "item"], dtype=object)
    if coded:
        frame = frame.astype({name: pd.CategoricalDtype(frame[name].unique()) for name in frame})
    tables = [None if feat is None else pd.DataFrame({name: feat}, dtype=object)
              for name, feat in zip(("user", "item"), feats, strict=True)]  # fmt: skip
    found = SimpleNamespace(
        inter_feat=frame,
        user_feat=tables[0],
        item_feat=tables[1],
        uid_field="user",
        iid_field="item",
        config={"user_inter_num_interval": intervals[0], "item_inter_num_interval": intervals[1], "eval_args": {}},
        logger=SimpleNamespace(debug=lambda _: None, warning=lambda _: None),
        field2id_token={},
        field2token_id={},
    )
    for name in (
        "_parse_intervals_str",
        "_within_intervals",
        "_get_illegal_ids_by_inter_num",
        "_concat_remaped_tokens",
    ):
        setattr(found, name, getattr(Dataset, name).__get__(found))
    found._within = CodedDataset._within.__get__(found)
    return found


def tables_of(found):
    return [None if feat is None else feat.astype(object).values.tolist()
            for feat in (found.inter_feat, found.user_feat, found.item_feat)]  # fmt: skip


@settings(deadline=None)
@given(ROWS, INTERVALS, INTERVALS, st.none() | st.just(["a", "x", "9", "ü"]), st.none() | st.just(["b", "y", "10"]))
def test_the_core_is_that_of_recbole(rows, of_users, of_items, users, items):
    kept = []
    for kind in (CodedDataset, Dataset):
        found = stub(rows, kind is CodedDataset, (of_users, of_items), (users, items))
        kind._filter_by_inter_num(found)
        kept.append(tables_of(found))
    assert kept[0] == kept[1]


@given(ROWS, st.lists(TOKENS | st.just("z"), max_size=4, unique=True))
def test_ids_are_those_of_recbole(rows, users):
    ids = []
    for kind in (CodedDataset, Dataset):
        found = stub(rows, kind is CodedDataset, feats=(users, None))
        feats = [(found.inter_feat, "user", FeatureType.TOKEN), (found.user_feat, "user", FeatureType.TOKEN)]
        kind._remap(found, feats)
        ids.append((found.inter_feat["user"].tolist(), found.user_feat["user"].tolist()))
        assert found.field2id_token["user"].tolist()[0] == "[PAD]"
        assert dict(found.field2token_id["user"]) == {x: at for at, x in enumerate(found.field2id_token["user"])}
    assert ids[0] == ids[1]


def test_blanks_have_no_number():
    column = pd.Series(["b", None, "a", "b"], dtype=object)
    for form in (column, column.astype(pd.CategoricalDtype(["a", "b", "c"]))):
        ids, tokens = numbered(form)
        assert ids.tolist() == [0, -1, 1, 0] and tokens.tolist() == ["b", "a"]


def test_tokens_are_looked_up():
    ids = TokenIds(np.array(["[PAD]", "x"]))
    assert ids["x"] == 1 and "y" not in ids and len(ids) == 2
    with pytest.raises(KeyError):
        ids["y"]
