from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings

from recbole_bbqrec import quick_start
from recbole_bbqrec.evaluation.groups import groups_of
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.evaluation.report import result_table


def judged(targets, lengths):
    rows = SimpleNamespace(start=np.zeros(len(targets), int), stop=np.array(lengths))
    return SimpleNamespace(
        inter_feat={"item_id": torch.tensor(targets)}, iid_field="item_id", item_num=9, histories=rows
    )


def test_targets_fall_into_groups_by_what_training_has():
    train = SimpleNamespace(train_sequences=SimpleNamespace(items=np.repeat([1, 2, 3], [4, 5, 20])))
    split, places = judged([1, 2, 3, 8, 1], [4, 5, 9, 10, 60]), np.array([3, 1, 4, 2, 5])
    ranks = Ranks(np.arange(5), places, places)
    found = groups_of(ranks, split, train, ["popularity", "length", "cold"])
    ranks_of = {name: of.masked.tolist() for name, of in found.items()}
    assert ranks_of == {
        "all": [3, 1, 4, 2, 5],
        "warm": [3, 1, 4, 5],
        "cold": [2],
        "popularity 0": [2],
        "popularity 1-4": [3, 5],
        "popularity 5-19": [1],
        "popularity 20+": [4],
        "length 0-4": [3],
        "length 5-9": [1, 4],
        "length 10-19": [2],
        "length 50+": [5],
    }
    some = Ranks(np.arange(2), places[[0, 3]], places[[0, 3]], rows=np.array([0, 3]))
    assert [*groups_of(some, split, train, ["popularity"])] == ["all", "popularity 0", "popularity 1-4"]
    assert [*groups_of(ranks, split, train, [])] == ["all"]


@pytest.mark.parametrize("model", ["Pop", "BPR"])
def test_groups_of_a_run_make_up_the_whole_and_stand_in_its_table(tiny, tmp_path, model):
    asked = {"group_metrics": ["popularity", "length"], "metrics": ["NDCG", "GiniIndex"], "topk": [10]}
    record = quick_start.run(config_dict=settings(tiny, model, checkpoint_dir=str(tmp_path), epochs=1, **asked))
    groups, whole = record["groups"]["valid"], record["metrics"]["valid"]
    assert groups["all"] == {"rows": 60, "metrics": whole}
    for kind in asked["group_metrics"]:
        parts = [group for name, group in groups.items() if name.startswith(kind)]
        assert len(parts) > (kind == "length") and sum(part["rows"] for part in parts) == 60
        for column in ("masked", "unmasked"):
            mean = sum(part["rows"] * part["metrics"][column]["ndcg@10"] for part in parts) / 60
            assert mean == pytest.approx(whole[column]["ndcg@10"])
    lines = [line for line in result_table(record).splitlines() if "length 5-9" in line]
    assert len(lines) == 2 and lines[0].split("|")[-2].strip() == "", "what is shown belongs to no group of targets"
    again = quick_start.run(config_dict=settings(tiny, model, checkpoint_dir=str(tmp_path), epochs=1))
    assert "groups" not in again and again["run_dir"] == record["run_dir"], "the same training"
