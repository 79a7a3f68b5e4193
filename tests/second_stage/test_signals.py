"""Signals against plain counting, and that nothing held out and no numbers of items are in them."""

import numpy as np
import pytest
import torch
from second_stage import plain

from recbole_bbqrec.data.sequences import Sequences
from recbole_bbqrec.model.catalogue import Vectors
from recbole_bbqrec.second_stage import neighbours, signals
from recbole_bbqrec.second_stage.signals import Batch, CodeTransitions, Cosines, PairList, Popularity, pair_lists

LISTS = ["next_1", "next_2", "next_3", "together", "step", "walk", "side_step", "side_walk"]


def batch_of(recent, items, n_items):
    slots = torch.full((len(recent), n_items), -1, dtype=torch.int32)
    for row, of in enumerate(items):
        for place, item in enumerate(of):
            if item:
                slots[row, item] = place
    return Batch(torch.tensor(recent), torch.tensor(items), slots)


@pytest.mark.parametrize("name", [*LISTS, "together_normalised"])
def test_lists_of_pairs_against_plain_counting(name):
    data = plain.dataset()
    stage = plain.built(data, "behavior", "popularity")
    assert {of for of, signal in stage.signals.items() if isinstance(signal, PairList)} == {
        *LISTS,
        "together_normalised",
    }
    got = plain.listed(stage.signals[name])
    assert got == pytest.approx(dict(plain.lists_of(data)[name]), rel=1e-5) and len(got) > 100


def test_lists_that_would_be_long_keep_the_largest(monkeypatch):
    data = plain.dataset()
    whole = plain.built(data, "behavior").signals
    monkeypatch.setattr(signals, "MOST", 4)
    monkeypatch.setattr(neighbours, "ENTRIES", 500)  # a few rows at a time
    short = plain.built(data, "behavior").signals
    for name in LISTS:
        long, kept = plain.listed(whole[name]), plain.listed(short[name])
        for item in range(30):
            of = sorted((value for (left, _), value in long.items() if left == item), reverse=True)
            wanted = of[:4] if name in ("together", "walk", "side_walk") else of
            assert sorted((value for (left, _), value in kept.items() if left == item), reverse=True) == wanted
    assert len(plain.listed(short["walk"])) < len(plain.listed(whole["walk"]))


@pytest.mark.parametrize("sequences", [[], [[3]], [[3], [4]], [[3, 3, 3]]])
def test_sequences_without_pairs(sequences):
    offsets = np.r_[0, np.cumsum([len(items) for items in sequences])].astype(int)
    for counts in pair_lists(offsets, np.array([item for items in sequences for item in items], int), 6).values():
        assert counts.shape == (6, 6) and not counts.nnz


def test_what_a_list_says_of_candidates():
    lists = PairList(torch.tensor([0, 0, 2, 2, 3]), torch.tensor([2, 3, 1]).int(), torch.tensor([0.5, 2.0, 7.0]))
    batch = batch_of([[1, 3, 1], [3, 0, 0], [9, 1, 0]], [[3, 2, 1, 0], [1, 2, 0, 0], [2, 9, 0, 1]], 10)
    wanted = torch.zeros(3, 4, 3)
    wanted[0, 0, [0, 2]], wanted[0, 1, [0, 2]], wanted[0, 2, 1] = 2.0, 0.5, 7.0  # items 1, 3, 1 of 3, 2 and 1
    wanted[1, 0, 0], wanted[2, 0, 1] = 7.0, 0.5  # item 9 is new and says nothing
    assert torch.equal(lists(batch), wanted)


def test_cosines_are_of_the_last_items_and_go_one_way():
    rows = torch.nn.functional.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    present = torch.arange(40) % 3 > 0
    recent = [[*range(1, 13)], [5, *[0] * 11]]
    batch = batch_of(recent, [[2, 3, 20], [7, 0, 0]], 40)
    got = Cosines.of(Vectors(rows, present))(batch)
    assert got.shape == (2, 3, signals.LOOKED_AT) and not got[0, 1].any() and not got[1, :, 1:].any()
    assert got[0, 0, 3].item() == pytest.approx(float(rows[4] @ rows[2])) and got[0, 0, 2] == 0.0
    one_way = Cosines(rows, rows.flip(0))(batch)
    assert one_way[1, 0, 0].item() == pytest.approx(float(rows[5] @ rows[40 - 1 - 7]))
    assert not Cosines(rows, rows).state_dict(), "they come with the catalogue"


def test_popularity_counts_training():
    batch = batch_of([[3, 1], [9, 0]], [[1, 2, 9], [3, 0, 0]], 10)
    counts = torch.tensor([0.0, 4.0, 0.0, 2.0])
    of_candidate, of_last = (Popularity(counts, last)(batch).squeeze(2) for last in (False, True))
    torch.testing.assert_close(of_candidate, torch.tensor([[5.0, 1, 1], [3, 1, 1]]).log())
    torch.testing.assert_close(of_last, torch.tensor([[3.0, 3, 3], [1, 1, 1]]).log())


class TestCodeTransitions:
    """Levels, backing off, and classes that training does not know."""

    @pytest.fixture
    def counted(self):
        data = plain.dataset()
        ids, sequences = data.catalogue.semantic_ids, data.train_sequences
        return data, CodeTransitions.count(ids.codes[:, :2], 3, sequences.offsets, sequences.items)

    def test_all_pairs_against_plain_counting(self, counted):
        data, transitions = counted
        assert transitions.n_levels == 2
        everything = [*range(1, 30)]
        got = transitions(batch_of([[last] for last in everything], [everything] * 29, 30)).squeeze(2)
        wanted = torch.tensor(
            [[plain.code_step(data, 2, slice(0, 2), last, item) for item in everything] for last in everything]
        )
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(got[8], got[8, :1].expand(29)) is False  # item 9 has no codes, which are a class too

    def test_probabilities_sum_to_one(self, counted):
        everything = [*range(1, 30)]
        got = counted[1](batch_of([[4], [20]], [everything] * 2, 30)).squeeze(2)
        torch.testing.assert_close(got.exp().sum(1) / 29, torch.ones(2))

    def test_levels_that_tell_nearly_every_item_apart_are_left_out(self):
        codes = torch.tensor([[-1, -1], [0, 0], [0, 1], [1, 0], [1, 1]])
        assert CodeTransitions.count(codes, 2, np.array([0, 4]), np.array([1, 2, 3, 4])).n_levels == 1

    def test_new_items_change_nothing_and_unknown_classes_back_off(self, counted):
        data, transitions = counted
        codes = torch.cat([data.catalogue.semantic_ids.codes[:, :2], torch.tensor([[1, 2], [2, 3], [3, 3]])])
        grown = CodeTransitions(codes, 3, transitions.state_dict())
        twin = next(item for item in range(1, 30) if codes[item].tolist() == [1, 2])
        got = grown(batch_of([[4], [4], [31], [32]], [[5, twin, 6], [30, 31, 32], [5, 30, 6], [5, 6, 7]], 33)).squeeze(
            2
        )
        assert torch.equal(got[0], transitions(batch_of([[4]], [[5, twin, 6]], 30))[0, :, 0])
        assert got[1, 0] == got[0, 1]  # codes that are known
        coarse = CodeTransitions.count(codes[:30, :1], 3, *_arrays(data))
        other = next(item for item in range(1, 30) if codes[item, 0] == 2)
        assert got[1, 1] == coarse(batch_of([[4]], [[other]], 30)).item()  # known up to the first code
        assert got[1, 2] == got[3].unique().item() == 0.0  # nothing known: N * 1 / N
        assert got[2, 0] == coarse(batch_of([[other]], [[5]], 30)).item()

    def test_no_transitions_at_all(self):
        codes = plain.dataset().catalogue.semantic_ids.codes
        transitions = CodeTransitions.count(codes, 3, np.array([0, 1]), np.array([3]))
        torch.testing.assert_close(transitions(batch_of([[1]], [[4, 5]], 30)), torch.zeros(1, 2, 1))


def _arrays(data):
    return data.train_sequences.offsets, data.train_sequences.items


def test_numbers_of_items_change_no_signal(monkeypatch):
    monkeypatch.setattr(signals, "MOST", 5)  # so that ties are cut
    data = plain.dataset()
    new = torch.cat(
        [torch.zeros(1, dtype=torch.long), 1 + torch.randperm(29, generator=torch.Generator().manual_seed(2))]
    )
    renumbered, old = plain.renumbered(data, new), new.argsort()
    one, other = (plain.built(each, *plain.SIGNALS, "popularity") for each in (data, renumbered))
    recent, items = plain.histories_of(30, 8), torch.arange(1, 30).expand(8, 29)
    here = batch_of(recent.tolist(), items.tolist(), 30)
    there = batch_of(new[recent].tolist(), new[items].tolist(), 30)
    assert torch.equal(old[there.items], here.items)
    for name, signal in one.signals.items():
        assert torch.equal(signal(here), other.signals[name](there)), name


def test_signals_are_of_training_sequences_alone():
    """Nothing but `train_sequences` and `catalogue` of the data set is read, and other sequences change every count."""
    data = plain.dataset()
    one = plain.built(data, *plain.SIGNALS, "popularity")
    data.train_sequences = Sequences(data.train_sequences.offsets, data.train_sequences.items[::-1].copy())
    other = plain.built(data, *plain.SIGNALS, "popularity")
    batch = batch_of([[4, 5], [9, 3]], [[*range(1, 30)]] * 2, 30)
    same = {name for name, signal in one.signals.items() if torch.equal(signal(batch), other.signals[name](batch))}
    of_content = {"cosine_text", "cosine_image", "quantised_text", "quantised_id"}
    assert same == of_content | {"popularity", "popularity_of_last"}
