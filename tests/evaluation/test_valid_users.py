import numpy as np
import polars as pl
import pytest
from conftest import settings
from training.test_labelled import LABELLED, write_rated

from recbole_bbqrec import quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.ranking import rows_of_some
from recbole_bbqrec.evaluation.report import result_table


def test_a_user_is_judged_on_all_rows_or_none():
    users = np.array([4, 4, 2, 9, 9, 9, 7])
    rows = rows_of_some(users, 2)
    chosen = set(users[rows].tolist())
    assert len(chosen) == 2 and np.array_equal(rows, np.flatnonzero(np.isin(users, [*chosen])))
    assert rows_of_some(users, 0) is None and rows_of_some(users, 4) is None


@pytest.mark.parametrize("model", ["SASRecPlus", "Pop", "SASRec", "BBQRec"])
def test_validation_figures_of_some_users_are_theirs_among_all(tiny, tmp_path, model):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "all"), epochs=1)
    second = {"second_stage": "linear"} if model == "BBQRec" else {}
    _, everybody = quick_start.execute(config_dict={**given, **second})
    some = {"valid_users": 7, "checkpoint_dir": str(tmp_path / "some"), "ranks_file": str(tmp_path / "ranks.csv")}
    record, ranks = quick_start.execute(config_dict={**given, **second, **some})
    found = ranks["valid"]
    assert record["users"] == {"valid": 7} and record["drawn_from"] == {"valid": len(everybody["valid"].users)}
    assert f"users: 7 of {len(everybody['valid'].users)} valid" in result_table(record)
    for column in ("masked", "unmasked"):
        of_user = dict(zip(everybody["valid"].users, getattr(everybody["valid"], column), strict=True))
        assert getattr(found, column).tolist() == [of_user[user] for user in found.users]
    assert pl.read_csv(tmp_path / "ranks.csv").height == 7


def test_without_validation_there_are_no_users_to_draw(tiny, tmp_path):
    given = settings(tiny, checkpoint_dir=str(tmp_path), valid_users=7)
    with pytest.raises(InputError, match="valid_users: found 7, but nothing is validated"):
        quick_start.run(config_dict={**given, "eval_args": {"split": {"LS": "test_only"}}})


def test_users_without_a_target_are_none_that_others_were_drawn_from(tmp_path):
    given = settings(write_rated(tmp_path), "FM", **LABELLED, epochs=1)
    _, everybody = quick_start.execute(config_dict=given)
    record, ranks = quick_start.execute(config_dict={**given, "valid_users": 20})
    with_target = len(np.unique(everybody["valid"].users))
    assert record["drawn_from"] == {"valid": with_target} and with_target < 60
    assert record["users"]["valid"] == len(np.unique(ranks["valid"].users)) < with_target


def test_which_users_are_drawn_does_not_depend_on_their_numbers(tiny, tmp_path):
    drawn = []
    for shuffled in (None, 1):  # rows in another order number users otherwise
        path = tmp_path / f"{shuffled}.csv"
        given = settings(tiny, "Pop", checkpoint_dir=str(tmp_path / str(shuffled)), ranks_file=str(path))
        quick_start.execute(config_dict={**given, "valid_users": 7, "shuffle_ties": shuffled})
        drawn.append(set(pl.read_csv(path)["user"]))
    assert drawn[0] == drawn[1] and len(drawn[0]) == 7
