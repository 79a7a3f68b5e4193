import os
import re
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import QUICK, settings
from scipy.sparse import dok_matrix

from recbole_bbqrec import compat, quick_start

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def switched(monkeypatch):
    """What torch's switch of deterministic algorithms is set to, instead of setting it."""
    calls = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, warn_only: calls.append((on, warn_only)))
    monkeypatch.delenv(VARIABLE, raising=False)
    return calls


def run_on(device, reproducibility):
    compat.init_seed({"device": torch.device(device), "seed": 3, "reproducibility": reproducibility})


def test_a_gpu_adds_up_in_a_fixed_order_and_a_cpu_is_left_alone(switched):
    run_on("cpu", True)
    run_on("cuda", False)
    assert switched == [(False, True)] and VARIABLE not in os.environ
    run_on("cuda:0", True)
    assert switched[1:] == [(True, True)] and os.environ[VARIABLE] == ":4096:8"


def test_a_workspace_that_the_user_chose_stays(switched, monkeypatch):
    monkeypatch.setenv(VARIABLE, ":16:8")
    run_on("cuda", True)
    assert os.environ[VARIABLE] == ":16:8"


def test_the_seed_is_recboles():
    torch.manual_seed(3)
    expected = torch.rand(2)
    run_on("cpu", True)
    assert torch.equal(torch.rand(2), expected)


def test_runs_are_seeded_in_this_one_place():
    package = Path(compat.__file__).parent
    calls = {
        path.name: re.findall(r"[\w.]*\binit_seed\(", path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
    }
    assert calls.pop("compat.py") == ["init_seed(", "recbole.utils.init_seed("]
    assert {call for found in calls.values() for call in found} == {"compat.init_seed("}


@pytest.mark.parametrize("change", [compat.lengths_by_element, compat.keeping_anomaly_mode])
def test_what_is_changed_for_a_while_is_put_back_whatever_other_threads_do(change):
    def state():
        return pd.Series.agg, torch.is_anomaly_enabled()

    def other():
        with change():
            entered.set()
            left.wait(10)

    before, entered, left = state(), threading.Event(), threading.Event()
    thread = threading.Thread(target=other)
    try:
        with change():
            torch.autograd.set_detect_anomaly(change is compat.keeping_anomaly_mode)  # as RecBole's import does
            thread.start()
            entered.wait(0.3)
        left.set()
        thread.join()
        assert state() == before
    finally:
        pd.Series.agg, _ = before
        torch.autograd.set_detect_anomaly(before[1])


def test_graph_models_of_recbole_can_fill_their_sparse_matrix():
    compat.restore_sparse_update()
    matrix = dok_matrix((2, 2))
    matrix._update({(0, 1): 2.0, (1, 0): 3.0})
    assert matrix.tocsr().toarray().tolist() == [[0, 2], [3, 0]]


SMALL = {key: value for key, value in QUICK.items() if key.startswith("sid_")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: on a CPU every operation is deterministic")
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("BBQRec", {}),
        ("BBQRecGenerate", {**SMALL, "beam_size": 5, "report_card": False}),
        ("TIGER", {"sid_steps": 40, "beam_size": 5, "report_card": False}),
        ("UniSRec", {}),
        ("TransitionGraph", {}),
        ("SASRec", {**SMALL, "similarity_attention": "additive", "attach_semantic_ids": True}),
    ],
)
def test_no_operation_of_a_run_but_the_start_of_codebooks_is_without_a_deterministic_form(
    tiny, tmp_path, recwarn, model, changes
):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path), final=True, **changes)
    assert quick_start.run(config_dict=given)["users"]["test"]
    found = [str(warning.message) for warning in recwarn if "deterministic" in str(warning.message)]
    assert all("cumsum" in message for message in found)
