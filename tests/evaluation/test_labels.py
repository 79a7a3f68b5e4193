import numpy as np
import pytest
from recbole.evaluator.metrics import AUC, LogLoss

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.labels import label_metrics

RECBOLE = {"metric_decimal_place": 12}


@pytest.mark.parametrize("digits", [1, 7], ids=["many ties", "hardly any ties"])
def test_values_are_those_of_recboles_evaluator(digits):
    generator = np.random.default_rng(digits)
    predictions = np.round(generator.random(500), digits).astype(np.float32)
    predictions[:3] = 0.0, 1.0, 1.0
    labels = (generator.random(500) < predictions).astype(np.float32)
    found = label_metrics(["LogLoss", "NDCG", "AUC"], predictions, labels, "valid")
    assert list(found) == ["logloss", "auc"]
    assert found["auc"] == pytest.approx(AUC(RECBOLE).metric_info(predictions, labels), abs=1e-12)
    assert found["logloss"] == pytest.approx(LogLoss(RECBOLE).metric_info(predictions, labels), abs=1e-12)


def test_rows_of_one_kind_have_no_metric():
    with pytest.raises(InputError, match=r"auc: found only positive rows in valid.*threshold"):
        label_metrics(["AUC"], np.full(3, 0.5), np.ones(3), "valid")
    with pytest.raises(InputError, match="logloss: found no rows in test"):
        label_metrics(["LogLoss"], np.zeros(0), np.zeros(0), "test")
    assert label_metrics(["NDCG"], np.zeros(0), np.zeros(0), "test") == {}
