"""The map of a catalogue and the table of its first codes."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch

from recbole_bbqrec.serving.service import views

PADDING = ("[PAD]", 0.0, 0.0, 0.0, -1)


def catalogue(*rows, seed=2020):
    """What stands for a bundle: items of a token, three numbers and a first code."""
    tokens, x, y, z, codes = zip(PADDING, *rows, strict=True)
    return SimpleNamespace(
        item_tokens=list(tokens),
        titles=["", *(f"title of {token}" for token in tokens[1:])],
        vectors=torch.tensor([x, y, z]).T.float(),
        catalogue=SimpleNamespace(semantic_ids=SimpleNamespace(codes=torch.tensor([codes]).T)),
        settings={"seed": seed},
    )


def clusters(n=40):
    """Items of four codes, each around a corner of a flat square; the last item has no code."""
    generator = np.random.default_rng(0)
    corners = np.array([[9.0, 5.0, 0.0], [-9.0, 5.0, 0.0], [-9.0, -5.0, 0.0], [9.0, -5.0, 0.0]])
    places = corners[np.arange(n) % 4] + generator.normal(0, 0.1, (n, 3))
    return [(f"i{at}", *map(float, place), at % 4 if at < n - 1 else -1) for at, place in enumerate(places)]


def test_principal_components_keep_the_largest_distances_in_one_orientation():
    rows = np.random.default_rng(0).normal(size=(50, 4)) * [1, 7, 0.1, 3]
    places = views.principal_components(rows)
    centred = rows - rows.mean(0)
    assert np.allclose(np.abs(np.corrcoef(places[:, 0], centred[:, 1])[0, 1]), 1, atol=0.02)
    assert places.var(0)[0] > places.var(0)[1] > 0
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(places), np.abs(centred @ axes[:2].T))
    assert np.allclose(np.linalg.norm(places, axis=0), values[:2])
    turned = views.principal_components(rows * [1, -1, 1, -1])  # what is large points to the right and up
    assert np.allclose(np.abs(turned), np.abs(places))
    assert views.principal_components(rows[:, :1]).shape == (50, 2)


def test_the_map_places_items_and_names_their_first_codes():
    rows = clusters()
    points = views.map_and_codes(catalogue(*rows))[0]["points"]
    assert [point["item"] for point in points] == [row[0] for row in rows]
    assert [point["code"] for point in points] == [None if row[4] < 0 else row[4] for row in rows]
    assert points[0]["title"] == "title of i0"
    assert np.allclose([point["x"] for point in points], [row[1] for row in rows], atol=1)
    assert np.allclose([point["y"] for point in points], [row[2] for row in rows], atol=1)


def test_a_large_catalogue_is_drawn_from_by_the_seed(monkeypatch):
    monkeypatch.setattr(views, "ON_THE_MAP", 10)

    def drawn(seed):
        return [point["item"] for point in views.map_and_codes(catalogue(*clusters(), seed=seed))[0]["points"]]

    assert len(drawn(1)) == 10
    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) == sorted(drawn(1), key=lambda item: int(item[1:]))


def test_codes_are_told_by_size_with_the_items_nearest_their_mean():
    line = [("far", 9.0, 0.0, 0.0, 5), ("mid", 4.0, 0.0, 0.0, 5), ("near", 1.0, 0.0, 0.0, 5), ("one", 0.0, 3.0, 0.0, 2)]
    codes = views.map_and_codes(catalogue(*line))[1]["codes"]
    assert [(held["code"], held["n"]) for held in codes] == [(5, 3), (2, 1)]
    assert [item["item"] for item in codes[0]["items"]] == ["mid", "near", "far"]  # their mean is 4.67
    assert codes[1]["items"] == [{"item": "one", "title": "title of one"}]
    many = [(f"i{at}", float(at), 0.0, 0.0, 0) for at in range(9)]
    assert len(views.map_and_codes(catalogue(*many))[1]["codes"][0]["items"]) == views.OF_A_CODE


def test_codes_have_marks_of_their_own_as_long_as_there_are_marks():
    angles = np.linspace(-3, 3, 32)
    rows = [(f"i{at}", float(9 * np.cos(a)), float(5 * np.sin(a)), 0.0, at) for at, a in enumerate(angles)]
    codes = {held["code"]: held for held in views.map_and_codes(catalogue(*rows))[1]["codes"]}
    marks = [(codes[code]["colour"], codes[code]["shape"]) for code in range(32)]
    assert len(set(marks)) == 32
    changes = sum(one[0] != two[0] for one, two in zip(marks, marks[1:] + marks[:1], strict=True))
    assert changes in (8, 9)  # neighbours share a colour: around the map there are eight
    assert all(one[1] != two[1] for one, two in itertools.pairwise(marks))


def test_items_without_codes_have_a_map_all_the_same():
    bundle = catalogue(*clusters())
    bundle.catalogue.semantic_ids = None
    found, codes = views.map_and_codes(bundle)
    assert {point["code"] for point in found["points"]} == {None}
    assert codes == {"codes": []}


def test_it_is_made_once_for_each_bundle(monkeypatch):
    made, make = [], views.map_and_codes
    monkeypatch.setattr(views, "map_and_codes", lambda bundle: made.append(bundle) or make(bundle))
    kept, bundle, newer = views.Views(), catalogue(*clusters()), catalogue(*clusters(20))
    assert kept.map(bundle) == make(bundle)[0]
    assert kept.codes(bundle) == make(bundle)[1]
    assert len(kept.map(newer)["points"]) == 20
    assert made == [bundle, newer]
