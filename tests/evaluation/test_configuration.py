import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import settings, write_dataset

from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.configuration import (
    TimesTested,
    comparable_settings,
    data_fingerprint,
    judged_parts,
    name_of_split,
    run_key,
)
from recbole_bbqrec.experiments import records


def config(folder, **changes):
    return Config(config_dict=settings(folder, **{"final": True, **changes}))


def times_tested(given):
    return TimesTested(given).after_run()


def test_what_changes_no_weights_is_in_no_key(tiny):
    def key(**changes):
        given = config(tiny, **changes)
        return run_key(comparable_settings(given), data_fingerprint(given))

    others = [
        *({"topk": [1, 10]}, {"metrics": ["NDCG", "MRR"]}, {"final": False}, {"seed": 1}, {"show_progress": True}),
        *({"state": "ERROR"}, {"use_gpu": False}, {"eval_batch_size": 7}, {"results": "elsewhere"}),
    ]
    assert {key(**changes) for changes in others} == {key()}
    assert len({key(), key(valid_metric="Recall@10"), key(stopping_step=3), key(n_candidate_last=1)}) == 4


def test_the_key_knows_the_knowledge_graph_that_is_read(tmp_path):
    graph = write_dataset(tmp_path) / "tiny" / "tiny.kg"

    def keys():
        of_models = config(tmp_path, model="CKE"), config(tmp_path, model="CKE", kg="codes"), config(tmp_path)
        return [run_key(comparable_settings(given), data_fingerprint(given)) for given in of_models]

    (tmp_path / "tiny" / "tiny.link").write_text("item_id:token\tentity_id:token\ni01\te1\n")
    header = "head_id:token\trelation_id:token\ttail_id:token\n"
    graph.write_text(f"{header}e1\tr\te2\n")
    before = keys()
    graph.write_text(f"{header}e1\tr\te3\n")
    assert [one == other for one, other in zip(before, keys(), strict=True)] == [False, True, True]


def test_records_from_before_keep_their_keys():
    found = records.runs_in(Path(__file__).parents[2] / "results/runs/Beauty")
    assert found and all(run_key(run.record["settings"], run.data) == run.key for run in found)
    assert not [run for run in found if "topk" in run.record["settings"]]


def test_looks_at_test_are_counted_by_configuration(tiny, tmp_path):
    assert times_tested(config(tiny, final=False)) == 0 and not (tmp_path / "results").exists()
    changes = {}, {"seed": 1}, {"topk": [10]}, {"metrics": ["NDCG"], "show_progress": True}, {"checkpoint_dir": "b"}
    assert [times_tested(config(tiny, **given)) for given in changes] == [1, 2, 3, 4, 5]
    assert times_tested(config(tiny, hidden_size=32)) == times_tested(config(tiny, model="SASRec")) == 1
    assert times_tested(config(tiny, final=False)) == 5
    assert times_tested(config(tiny, results="elsewhere")) == 1
    assert records.runs_in(tmp_path / "results/runs/tiny") == []


def test_records_are_counted_where_the_count_is_gone(tiny, tmp_path):
    given = config(tiny)
    key = run_key(comparable_settings(given), data_fingerprint(given))
    folder = tmp_path / "results/runs/tiny"
    folder.mkdir(parents=True)
    for seed, times in ((1, 3), (2, 4)):
        (folder / f"full-{seed}-{key}.json").write_text(json.dumps({"times_tested": times}))
    assert [times_tested(given) for _ in range(2)] == [5, 6]
    (path,) = (folder / "tested").glob("*.json")
    for content in ("{", "null", "[]"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"tested/BBQRec-[0-9a-f]{16}\.json: found no readable count .* delete it"):
            TimesTested(given)


def test_a_count_that_cannot_be_kept_is_found_out_before_the_run(tiny, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(InputError, match=r"results: results/runs/tiny/tested cannot be made .* name another folder"):
        TimesTested(config(tiny))


def test_no_look_is_lost_where_runs_end_at_once(tiny):
    given = config(tiny)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: times_tested(given), range(24)))
    assert sorted(counts) == list(range(1, 25))


@pytest.mark.parametrize(
    ("split", "changes", "parts"),
    [
        ({"LS": "valid_and_test"}, {}, ("valid", "test")),
        ({"LS": "valid_only"}, {}, ("valid",)),
        ({"LS": "test_only"}, {}, ("test",)),
        ({"LS": "test_only"}, {"benchmark_filename": ["train", "valid", "test"]}, ("valid", "test")),
        ({"RS": [8, 1, 1]}, {}, ("valid", "test")),
        ({"RS": [0.9, 0.0, 0.1]}, {}, ("test",)),
        ({"TS": [0.9, 0.1, 0]}, {}, ("valid",)),
        ({"LS": "valid_and_test"}, {"train_on": "all"}, ()),
        (None, {}, ("valid", "test")),
    ],
)
def test_what_is_kept_apart_from_training(split, changes, parts):
    given = {"train_on": "train", "benchmark_filename": None, "eval_args": {"split": split}, **changes}
    assert judged_parts(given) == parts


@pytest.mark.parametrize(
    ("eval_args", "name"),
    [
        ({"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO"}, ""),
        ({"split": {"LS": "test_only"}, "group_by": "user"}, "LS-test_only"),
        ({"split": {"TS": [8, 1, 1]}, "group_by": "none"}, "TS"),
        ({"split": {"TS": [0.8, 0.1, 0.1]}, "group_by": "user"}, "TS-user"),
        ({"split": {"TS": [0.7, 0.1, 0.2]}, "group_by": "none"}, "TS-0.7-0.1-0.2"),
        ({"split": {"RS": [8, 1, 1]}, "group_by": "user"}, "RS"),
        ({"split": {"RS": [8, 1, 1]}, "group_by": "none", "order": "RO"}, "RS-none-RO"),
    ],
)
def test_splits_have_short_names(eval_args, name):
    assert name_of_split({"eval_args": eval_args}) == name
