import json

import numpy as np
import pytest
import torch

from recbole_bbqrec.tokenizer import registry
from recbole_bbqrec.tokenizer.report_card import report_card, report_card_table, warnings_of, write_report_card


@pytest.fixture(scope="module")
def card(world, fitted):
    return report_card(fitted, *world[:3], compare=True)


def test_the_card_is_plain_data_and_says_what_the_tokenizer_says(fitted, card):
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert [row["utilisation"] for row in card["codes"]] == fitted.utilisation_
    assert [row["perplexity"] for row in card["codes"]] == fitted.perplexity_
    assert [(row["signal"], row["level"]) for row in card["codes"]][1:3] == [("text", 2), ("image", 1)]
    assert [row["items"] for row in card["codes"]] == [60, 60, 48, 48, 60, 60]
    collisions = card["collisions"]
    assert collisions["before"] == fitted.collisions_before_ and collisions["moved"] == fitted.n_moved_
    assert collisions["after"] == {"sharing": 0, "distinct": 60, "largest": 1}
    assert card["cost"]["seconds"] == fitted.seconds_ and card["cost"]["card_seconds"] > 0
    assert set(card["neighbors"]["cooccurrence"]["overlap"]) == {"all signals", "text", "image", "id", "raw features"}


def test_both_networks_are_judged(card):
    assert set(card["disentanglement"]) == {"text", "image"}
    for stages in card["disentanglement"].values():
        for stage in ("before", "after"):
            assert set(stages[stage]) >= {"club", "r2", "r2_ridge", "r2_mlp", "variance", "dimensions"}
            assert all(np.isfinite(value) for value in stages[stage].values())
        assert stages["after"]["reconstruction"] < 0.8 * stages["before"]["reconstruction"]
        assert stages["before"]["reconstruction"] == pytest.approx(1.0, abs=0.15)
        assert stages["after"]["variance"] != stages["before"]["variance"]


def test_codes_of_this_world_follow_behaviour_and_features(card):
    for of in ("cooccurrence", "features"):
        near = card["neighbors"][of]
        assert near["chance"] == pytest.approx(10 / 59) and near["overlap"]["all signals"] > 2 * near["chance"]
    for found in card["agreement"].values():
        assert found["share"] > 2 * found["chance"]


def test_an_rqvae_of_as_many_codes_stands_beside_it(world, fitted, card):
    assert len(card["rqvae"]["codes"]) == len(card["codes"])
    assert all(row["signal"] == "features" for row in card["rqvae"]["codes"])
    rqvae = registry.TOKENIZERS["rqvae"](levels=6, codebook_size=16, steps=300, progress=False).fit(*world)
    assert card["rqvae"]["collisions"]["before"] == rqvae.collisions_before_
    assert report_card(fitted, *world[:3])["rqvae"] == {"skipped": "not asked for"}


def test_judging_changes_nothing_and_repeats_itself(world, fitted, card):
    state = {name: value.clone() for name, value in fitted.network_.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = report_card(fitted, *world[:3])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in fitted.network_.state_dict().items())
    for part in ("codes", "collisions", "agreement", "neighbors", "disentanglement"):
        assert again[part] == card[part]


def test_a_tokenizer_that_was_read_from_its_file_gets_the_same_card(world, fitted, card, tmp_path):
    fitted.save(tmp_path / "t")
    loaded = report_card(registry.load(tmp_path / "t"), *world[:3])
    for part in ("codes", "collisions", "agreement", "neighbors", "disentanglement", "losses"):
        assert loaded[part] == card[part]
    assert loaded["cost"]["seconds"] == card["cost"]["seconds"]


CASES = {
    "ID only": (lambda world: world._replace(features={}, present={}), "behavior_bind", {}),
    "no ID": (lambda world: world, "behavior_bind", {"use_id": False}),
    "fused": (lambda world: world, "behavior_bind", {"mode": "fused"}),
    "own codebooks": (lambda world: world, "behavior_bind", {"shared_codebook": False}),
    "no sequences": (lambda world: world._replace(sequences=[]), "behavior_bind", {}),
    "nobody has it": (
        lambda world: world._replace(present={name: mask & False for name, mask in world.present.items()}),
        "behavior_bind",
        {},
    ),
    "an RQ-VAE": (lambda world: world, "rqvae", {"steps": 20}),
    "k-means": (lambda world: world, "kmeans", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_tokenizer_gets_a_card_and_a_table(case, world, tmp_path):
    change, name, given = CASES[case]
    world = change(world)
    few = {"code_dim": 8, "min_steps": 2, "epochs": 1} if name == "behavior_bind" else {}
    fitted = registry.TOKENIZERS[name](codebook_size=16, progress=False, **few, **given).fit(*world)
    card = report_card(fitted, *world[:3], compare=case == "nobody has it")
    json.dumps(card, allow_nan=False)
    assert fitted.signals_[0] in report_card_table(card)
    skipped = card["disentanglement"].get("skipped")
    assert (skipped is None) == (name == "behavior_bind" and bool(world.features))
    if case in ("ID only", "nobody has it", "k-means"):  # those whose figures have gaps
        assert write_report_card(card, tmp_path / "card")[1].stat().st_size > 10_000


def test_the_files_hold_the_card_and_a_figure_and_nothing_is_left_beside_them(card, tmp_path):
    data, figure = write_report_card(card, tmp_path / "deep" / "card.of.a.run")
    assert json.loads(data.read_text()) == card and figure.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in data.parent.iterdir()) == ["card.of.a.run.json", "card.of.a.run.png"]


def test_the_table_shows_the_figures_and_the_warnings(card):
    text = report_card_table({**card, "warnings": ["the sky falls"]})
    assert f"{card['codes'][1]['perplexity']:.1f}" in text and "RQ-VAE" in text
    assert f"{card['disentanglement']['text']['after']['r2']:.3f}" in text
    assert text.endswith("warning: the sky falls")


def quiet_card() -> dict:
    """A card that gives no reason for a warning."""
    stage = {"club": 1.0, "r2": 0.1, "dimensions": 20.0, "reconstruction": 0.2}
    return {
        "items": 1000,
        "codebook_size": 64,
        "codes": [{"signal": "text", "level": 1, "items": 1000, "utilisation": 1.0, "perplexity": 50.0}],
        "collisions": {"moved": 10},
        "rqvae": {"collisions": {"moved": 20}},
        "disentanglement": {"text": {"before": {**stage, "club": 2.0}, "after": dict(stage)}},
        "agreement": {"text": {"share": 0.2, "chance": 0.1}},
        "neighbors": {"cooccurrence": {"overlap": {"all signals": 0.2, "raw features": 0.1}}},
    }


def change(card: dict, value, *path) -> dict:
    place = card
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return card


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("codes", 0, "perplexity"), 6.0, "text, level 1: the codebook has collapsed"),
        (("codes", 0, "utilisation"), 0.4, "40% of 64 codes in use"),
        (("collisions", "moved"), 15, None),
        (("collisions", "moved"), 25, "25 items were moved to a free ID, more than the 20 of an RQ-VAE"),
        (("collisions", "moved"), 101, "101 of 1000 items had the ID of another"),
        (("disentanglement", "text", "after", "r2"), 0.6, "still predicts 60% of"),
        (("disentanglement", "text", "after", "club"), 3.0, "training raised the CLUB bound, 2.00 to 3.00"),
        (("disentanglement", "text", "after", "dimensions"), 1.2, "collapsed to 1.2 dimensions"),
        (("disentanglement", "text", "after", "reconstruction"), 0.99, "no better than the mean item"),
        (("agreement", "text", "share"), 0.09, "no more often than chance"),
        (("neighbors", "cooccurrence", "overlap", "all signals"), 0.05, "raw features are nearer to behaviour"),
        (("codes", 0, "items"), 0, None),
        (("rqvae",), {"skipped": "x"}, None),
        (("disentanglement",), {"skipped": "x"}, None),
    ],
)
def test_warnings_name_what_is_wrong(path, value, message):
    assert list(warnings_of(quiet_card())) == []
    found = list(warnings_of(change(quiet_card(), value, *path)))
    assert (found == []) if message is None else any(message in text for text in found)


def test_few_items_cannot_fill_a_large_codebook():
    card = change(quiet_card(), 20, "codes", 0, "items")
    card["codes"][0] |= {"utilisation": 18 / 64, "perplexity": 15.0}
    assert list(warnings_of(card)) == []
