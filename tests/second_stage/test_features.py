"""Every feature against its definition; `plain` has them once more in plain Python."""

import pytest
import torch
from second_stage import plain

from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage import boosted, features
from recbole_bbqrec.second_stage.features import FORMS, OF_MODEL

FEATURES = {
    "model": {"score": "", "margin": "", "rank": "", "length": "", "seen": ""},
    "behavior": {
        **{"next_1": "last second decayed", "next_2": "last second decayed", "next_3": "last third decayed"},
        **{"together": "last decayed number", "step": "last decayed number", "walk": "last decayed number"},
        **{"side_step": "last decayed number", "side_walk": "last decayed number"},
    },
    "text": {"cosine_text": "last decayed"},
    "image": {"cosine_image": "last decayed"},
    "towers": {"towers": "last decayed"},
    "codes": {
        **{"codes_text": "last", "codes_id": "last", "id_log_p": ""},
        **{"quantised_text": "last decayed most", "quantised_id": "last decayed most"},
    },
    "popularity": {"popularity": "last", "popularity_of_last": "last", "together_normalised": "last decayed number"},
}
"""Group -> signal -> forms. docs/second-stage.md has a line for each."""


@pytest.fixture(scope="module")
def data():
    return plain.dataset()


@pytest.fixture(scope="module")
def stage(data):
    return plain.built(data, *plain.SIGNALS, "popularity")


def said(n_items, rows, seed=3):
    generator = torch.Generator().manual_seed(seed)
    scores, log_p = (torch.randn(rows, n_items, generator=generator) for _ in range(2))
    return FirstStage(scores, lambda items: log_p.gather(1, items))


def test_every_feature_there_is_stands_in_the_table(stage):
    table = [
        (group, signal, form)
        for group, signals in FEATURES.items()
        for signal, forms in signals.items()
        for form in (forms.split() or [""])
    ]
    assert sorted(table) == sorted(feature[:3] for feature in stage.features)
    assert {form for _, _, form in table if form} == set(FORMS)
    known = {signal for signals in FEATURES.values() for signal in signals}
    for begins in boosted.FORMS_OF:
        assert any(signal.startswith(begins) for signal in known), f"no feature of {begins} is tested"
    pushed = {feature.signal: feature.direction for feature in stage.features if feature.direction}
    assert pushed == {"score": 1, "margin": 1, "rank": -1}
    assert stage.features[0] == OF_MODEL[0], "the fit takes the first for the model's score"


def test_every_feature_against_its_definition(data, stage):
    histories = plain.histories_of(30, 6)
    first = said(30, 6)
    batch = stage.batch(first.scores, histories)
    got = stage.features_of(first, batch).double() * (batch.items > 0).unsqueeze(2)
    wanted = plain.Plain(data, stage).features(stage, first, batch)
    for at, feature in enumerate(stage.features):
        torch.testing.assert_close(got[..., at], wanted[..., at], rtol=1e-4, atol=1e-5, msg=str(feature))
        if feature.signal != "length":
            assert len(wanted[..., at].unique()) > 2, f"{feature} is the same everywhere: nothing is tested"


def test_a_model_without_code_heads_says_nothing_of_ids(stage):
    first = FirstStage(said(30, 2).scores)
    batch = stage.batch(first.scores, plain.histories_of(30, 2))
    assert not stage.features_of(first, batch)[..., -1].any() and stage.features[-1] == features.ID_LOG_P


def test_where_everything_has_been_seen_the_margin_is_finite(data, stage):
    first = FirstStage(said(30, 1).scores.index_fill(1, torch.tensor([0]), -torch.inf))
    batch = stage.batch(first.scores, torch.arange(1, 30).unsqueeze(0))
    assert stage.features_of(first, batch)[batch.items > 0].isfinite().all()
