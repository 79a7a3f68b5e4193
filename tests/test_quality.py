"""A floor under quality: short trainings on real data whose NDCG@10 on validation, seen items masked, stays in a band.

A band is what several seeds gave: their mean, give or take four standard deviations of what is judged here. A change
that falls below it has made the model worse; one that rises above it is a leak, or deserves a new band. Settings are
the defaults but for a training that is cut short. Test is not looked at.
"""

from typing import NamedTuple

import pytest

from recbole_bbqrec import quick_start


class Floor(NamedTuple):
    """A band, and the settings of the short training with seed 1 that is judged."""

    band: tuple[float, float]
    settings: dict[str, int | str]


FLOORS = {
    # Seeds 1 to 4: .1112, .1092, .1118, .1161.
    "ml-100k": Floor((0.100, 0.124), {"epochs": 4, "eval_step": 4, "sid_epochs": 1, "second_stage": "linear"}),
    # Seeds 1 to 4: .0688, .0700, .0686, .0691.
    "Beauty": Floor(
        (0.0666, 0.0716),
        {"epochs": 2, "eval_step": 2, "sid_epochs": 1, "second_stage": "linear", "n_candidate_neighbours": 20},
    ),
}


@pytest.mark.parametrize("name", FLOORS)
def test_ndcg_stays_in_its_band(name, request, tmp_path):
    (low, high), changes = FLOORS[name]
    given = {"model": "BBQRec", "dataset": name, "seed": 1, "show_progress": False, "report_card": False, **changes}
    if name != "ml-100k":  # which comes with RecBole
        given["data_path"] = str(request.getfixturevalue("real_data"))
    record = quick_start.run(config_dict={**given, "checkpoint_dir": str(tmp_path)})
    assert low <= record["metrics"]["valid"]["masked"]["ndcg@10"] <= high
