from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings, tiny_interactions

import recbole_bbqrec
from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures
from recbole_bbqrec.model.untrained import ContentNeighbors, Pop, TransitionGraph
from recbole_bbqrec.training.untrained_trainer import CHOSEN, coordinate_search

FIXED = {
    "graph_hops": [3],
    "graph_last_items": [2],
    "graph_hop_decay": [0.5],
    "graph_position_decay": [0.25],
    "graph_cosine_weight": [1.0],
}
CONFIG = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": 50,
    "device": torch.device("cpu"),
}
# 1 -> 2 twice, 2 -> 3 once, 2 -> 4 once, 5 -> 1 once; 2 -> 2 is no edge; 6 and 7 stand alone, 7 twice.
SEQUENCES = [[1, 2, 3], [5, 1, 2, 2, 4], [7], [7], [6]]


def made(kind, features=None, n_items=9, **changes):
    catalogue = Catalogue([f"i{i}" for i in range(n_items)], features)
    dataset = SimpleNamespace(num=lambda field: n_items, catalogue=catalogue)
    model = kind({**CONFIG, **FIXED, **changes}, dataset)
    model.count(np.cumsum([0, *map(len, SEQUENCES)]), np.concatenate(SEQUENCES))
    return model


def ranked(scores):
    return torch.argsort(scores[1:], descending=True, stable=True) + 1


def test_popularity_ranks_by_training_counts():
    scores = made(Pop).score(torch.tensor([[3, 0], [1, 2]]))
    assert scores.shape == (2, 9) and torch.equal(scores[0], scores[1])
    assert scores[0].tolist() == [0, 2, 3, 1, 1, 1, 1, 2, 0]


def test_content_neighbours_add_up_cosines_with_the_last_items():
    rows = torch.tensor([[0, 0], [4, 1], [-4, 1], [4, 3], [1, 1], [0, 0], [2, 2], [2, 2], [2, 2.0]])
    present = {"text": torch.tensor([False, *[True] * 4, False, *[True] * 3])}
    features = ItemFeatures([f"i{i}" for i in range(9)], {"text": rows}, present)
    fixed = {"content_last_items": [2], "content_position_decay": [0.25]}
    model = made(ContentNeighbors, features, **fixed)
    unit = model.catalogue.content["text"].rows * present["text"].unsqueeze(1)
    cosine = unit @ unit.T
    scores = model.score(torch.tensor([[6, 1, 3, 0], [2, 0, 0, 0], [5, 2, 0, 0]]))
    torch.testing.assert_close(scores[0], cosine[3] + 0.25 * cosine[1])
    torch.testing.assert_close(scores[1], cosine[2])
    torch.testing.assert_close(scores[2], cosine[2])
    assert not scores[:, 5].any(), "of an item without a text nothing is known"
    with pytest.raises(InputError, match="ContentNeighbors: found no item features, expected some"):
        made(ContentNeighbors, **fixed)


@pytest.mark.parametrize("hops", [2, 3])
def test_paths_of_a_toy_graph_score_as_by_hand(hops):
    """History 5, 1: from 1 two paths to 2, two of two edges to 3 and to 4; from 5 one to 1, and two of two edges to 2.

    Item 5 stands a step back: its two edges lead three away from the end.
    """
    scores = made(TransitionGraph, graph_hops=[hops]).score(torch.tensor([[5, 1, 0]]))[0]
    one, two = np.log(2), np.log(3)
    expected = {1: 0.25 * one, 2: two + 0.25 * 0.5 * two * (hops == 3), 3: 0.5 * two, 4: 0.5 * two}
    for item, value in expected.items():
        assert scores[item].item() == pytest.approx(value, rel=1e-6)
    # Unreached: 7 (met twice) before 5 and 6 (once) before 8 (never), all below whatever is reached.
    assert scores[7] > scores[5] == scores[6] > scores[8] and scores[7] < scores[[1, 2, 3, 4]].min()


@pytest.mark.parametrize(("changes", "reached"), [
    ({"graph_hops": [1], "graph_last_items": [1]}, {1}),
    ({"graph_hops": [3], "graph_last_items": [1]}, {1, 2, 3, 4}),
    ({"graph_hops": [1], "graph_last_items": [3]}, {1, 3, 4}),
])  # fmt: skip
def test_hops_and_last_items_bound_what_is_reached(changes, reached):
    model = made(TransitionGraph, **changes)
    scores = model.score(torch.tensor([[2, 3, 5]]))[0]
    assert set(torch.nonzero(scores > 0).flatten().tolist()) == reached
    assert model.score(torch.tensor([[3, 6]]))[0].argmax() == 2, "nothing is reached: the most popular one"


def features_of(rows, known):
    return ItemFeatures(
        [f"i{i}" for i in range(len(rows))], {"text": torch.tensor(rows)}, {"text": torch.tensor(known)}
    )


def test_the_cosine_orders_what_is_reached_and_lifts_nothing_else():
    rows = [
        [0.0, 0.0],
        [1.0, 0.0],
        [0.0, 1.0],
        [-1.0, 0.0],
        [1.0, 0.0],
        [0.0, -1.0],
        [1.0, 0.0],
        [1.0, 0.0],
        [0.0, 1.0],
    ]
    known = [False, *[True] * 7, False]
    model = made(TransitionGraph, features_of(rows, known), graph_last_items=[1], graph_cosine_weight=[5.0])
    plain = made(TransitionGraph, graph_last_items=[1])
    scores, without = (kind.score(torch.tensor([[1]]))[0] for kind in (model, plain))
    centred = torch.tensor(rows[1:8]) - torch.tensor(rows[1:8]).mean(0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    expected = without[2:5] + 5 * (unit[1:4] @ unit[0])
    torch.testing.assert_close(scores[2:5], expected, atol=1e-5, rtol=1e-5)
    assert scores[3] < 0 and scores[[5, 6, 7, 8]].max() < scores[3], "a reached item far by text is still reached"
    assert plain.grid["graph_cosine_weight"] == [0.0] and model.grid["graph_cosine_weight"] == [5.0]


def test_points_judged_together_score_as_each_alone():
    model = made(TransitionGraph)
    points = [dict(model.chosen), {**model.chosen, "graph_hops": 1, "graph_last_items": 1, "graph_position_decay": 0.9}]
    histories = torch.tensor([[5, 1], [2, 0]])
    together = list(model.scores_at(histories, points))
    for point, scores in zip(points, together, strict=True):
        model.choose(point)
        assert torch.equal(model.score(histories), scores)
    assert not torch.equal(*together)


def test_coordinate_search_finds_the_top_and_asks_nothing_twice():
    asked = []

    def judge(points):
        asked.extend(tuple(point.values()) for point in points)
        return [-2 * abs(point["a"] - 3) - abs(point["b"] - point["a"]) for point in points]

    assert coordinate_search({"a": [1, 2, 3], "b": [1, 2, 3], "c": [7]}, judge) == {"a": 3, "b": 3, "c": 7}
    assert len(asked) == len(set(asked)) and coordinate_search({}, judge) == {}
    assert coordinate_search({"a": [2, 1]}, lambda points: [0.5] * len(points)) == {"a": 2}


def given(tiny, tmp_path, model="TransitionGraph", **changes):
    place = {"checkpoint_dir": str(tmp_path / "saved"), "result_file": str(tmp_path / "result.json")}
    return settings(tiny, model, **place, final=True, **changes)


@pytest.mark.parametrize("model", ["Pop", "TransitionGraph", "ContentNeighbors"])
def test_a_run_counts_chooses_and_recommends_again(tiny, tmp_path, model):
    record = quick_start.run(config_dict=given(tiny, tmp_path, model))
    assert record["epochs"] == {"best": 0, "done": 0, "hit_cap": False} and record["parameters"] == 0
    chosen = record["chosen"]
    assert tuple(chosen) == registry.get_model(model).KEYS
    path = tmp_path / "saved" / record["run_dir"].rpartition("/")[2] / CHOSEN
    before = path.stat().st_mtime_ns
    again = quick_start.run(config_dict=given(tiny, tmp_path, model))
    assert (again["metrics"], again["chosen"]) == (record["metrics"], chosen) and path.stat().st_mtime_ns == before
    anew = quick_start.run(config_dict=given(tiny, tmp_path, model, resume=False))
    assert (anew["metrics"], anew["chosen"]) == (record["metrics"], chosen) and path.stat().st_mtime_ns > before
    path.unlink()  # as a kill leaves it
    assert quick_start.run(config_dict=given(tiny, tmp_path, model))["metrics"] == record["metrics"]

    bundle = recbole_bbqrec.load_bundle(record["run_dir"])
    _, net, dataset, _, _, _ = quick_start.load_data_and_model(record["run_dir"])
    histories = torch.tensor([[5, 6, 7]])
    assert torch.equal(bundle.model.score(histories), net.score(histories)) and net.chosen == chosen
    items = bundle.recommend([dataset.catalogue.tokens[5:8]], k=3)[0].items
    scores = net.score(histories)[0]
    scores[[0, 5, 6, 7]] = -torch.inf
    assert items[0] == dataset.catalogue.tokens[int(scores.argmax())]


def test_the_graph_beats_popularity_and_fixed_settings_stay(tiny, tmp_path):
    def ndcg(model, **changes):
        record = quick_start.run(config_dict=given(tiny, tmp_path / model, model, **changes))
        return record["metrics"]["valid"]["masked"]["ndcg@10"], record["chosen"]

    (graph, chosen), (popularity, _) = ndcg("TransitionGraph"), ndcg("Pop")
    assert graph > popularity + 0.1
    fixed, one = ndcg("TransitionGraph", graph_hops=1, graph_last_items=1)
    assert (one["graph_hops"], one["graph_last_items"]) == (1, 1) and fixed <= graph
    assert chosen["graph_hops"] in (1, 2, 3)
    assert ndcg("TransitionGraph", text_encoder=None)[1]["graph_cosine_weight"] == 0


def test_held_out_interactions_are_not_counted(tiny, tmp_path):
    record = quick_start.run(config_dict=given(tiny, tmp_path, "Pop"))
    _, net, dataset, _, _, _ = quick_start.load_data_and_model(record["run_dir"])
    users = {}
    for user, item, _ in sorted(tiny_interactions(), key=lambda row: (row[0], row[2])):
        users.setdefault(user, []).append(item)
    expected = Counter(item for items in users.values() for item in items[:-2])
    assert {
        token: int(count) for token, count in zip(dataset.catalogue.tokens, net.counts, strict=True) if count
    } == expected
