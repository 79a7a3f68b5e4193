"""What a run has reached, for a card that goes with its bundle."""

import re
from pathlib import Path

import numpy as np
from experiments.fakes import N_USERS, FakeExecute

from recbole_bbqrec.experiments import context, records, tables
from recbole_bbqrec.experiments.tables import results_of

KNOWN = {"run_key": "k", "data_fingerprint": "d", "settings": {}, "peak_memory_is_bound": False}


def test_results_are_of_the_run_in_the_folder_with_intervals_around_its_means(tmp_path):
    for seed in (1, 2):
        config = {"model": "BBQRec", "dataset": "tiny", "seed": seed, "final": True}
        record, ranks = FakeExecute()(config_dict=config)
        more = {"run_dir": f"BBQRec-tiny-{seed}", "users": {"valid": N_USERS, "test": N_USERS}}
        records.write(tmp_path / "runs/tiny", "BBQRec", {**record, **KNOWN, **more}, ranks)
    found = results_of(Path("saved/BBQRec-tiny-2"), tmp_path)
    assert found is not None and "seed 2; means over 400 users of valid, 400 users of test" in found
    for metric, value in record["metrics"]["test"]["masked"].items():
        (row,) = [line for line in found.splitlines() if metric in line]
        mean, low, high = map(float, re.findall(r"\d\.\d{4}", row)[3:])
        assert mean == round(value, 4) and low < mean < high
        assert np.isclose(high - mean, mean - low, atol=2e-4)
    assert results_of(Path("saved/BBQRec-tiny-3"), tmp_path) is None


def test_studies_of_other_splits_have_pages_of_their_own():
    assert tables.name_of("cold", "Beauty", "") == "cold-Beauty"
    assert tables.name_of("cold", "Beauty", "TS", None) == "cold-Beauty-TS"
    usual = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO"}}
    assert context.page_of("ml-100k", {"eval_args": context.SPLIT}) == "context-ml-100k"
    assert context.page_of("ml-100k", usual) == "context-ml-100k-LS"
