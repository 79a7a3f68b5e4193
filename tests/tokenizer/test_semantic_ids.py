from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.tokenizer.semantic_ids import check_capacity, resolve_chains, resolve_collisions, row_numbers


def quantised(points: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    left, codes = points, []
    for book in books:
        codes.append(torch.cdist(left, book).argmin(1))
        left = left - book[codes[-1]]
    return torch.stack(codes, dim=1)


def plainly(codes: torch.Tensor, points: torch.Tensor, books: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`resolve_collisions` item by item, every prefix of every ID counted in one dictionary."""
    levels, size = books.shape[:2]
    table, at, books = codes.numpy().copy(), points.numpy(), books.double().numpy()
    width = table.shape[1]
    first, same = width - levels, {}
    for item, row in enumerate(table.tolist()):
        same.setdefault(tuple(row), []).append(item)
    quantised = sum(book[column] for book, column in zip(books, table[:, first:].T, strict=True))
    distance = np.square(at - quantised).sum(1)
    movers = [item for items in same.values() for item in sorted(items, key=lambda one: (distance[one], one))[1:]]
    taken = Counter(row[:end] for row in same for end in range(width + 1))
    for mover in sorted(movers, key=lambda one: (distance[one], one)):
        found = tuple(table[mover, :-1].tolist())
        while taken[found] == size ** (width - len(found)):
            found = found[:-1]
        left = at[mover] - sum(book[code] for book, code in zip(books, found[first:], strict=False))
        while len(found) < width:
            book, places = books[len(found) - first], size ** (width - len(found) - 1)
            apart = np.square(left - book).sum(1)
            apart[[code for code in range(size) if taken[(*found, code)] == places]] = np.inf
            left, found = left - book[apart.argmin()], (*found, int(apart.argmin()))
        taken.update(found[:end] for end in range(width + 1))
        table[mover] = found
    return torch.from_numpy(table), len(movers)


@st.composite
def catalogues(draw):
    """Items with a text code, some without, and an ID chain; crowded enough to collide, few enough to fit."""
    levels, size = draw(st.sampled_from([(1, 12), (2, 4), (3, 3)]))
    n_items = draw(st.integers(1, size**levels))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    books = torch.randn(levels, size, 3, generator=generator) * torch.tensor(0.5) ** torch.arange(levels).view(-1, 1, 1)
    spread = draw(st.sampled_from([0.0, 0.01, 1.0]))
    points = torch.randn(1, 3, generator=generator) + spread * torch.randn(n_items, 3, generator=generator)
    text = torch.randint(-1, draw(st.integers(0, 3)), (n_items, 1), generator=generator)
    return torch.cat([text, quantised(points, books)], dim=1), points, books, spread


def shared(codes: torch.Tensor) -> torch.Tensor:
    _, inverse, counts = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_every_item_gets_an_id_of_its_own_and_as_few_as_possible_move(catalogue):
    codes, points, books, _ = catalogue
    unique, n_moved = resolve_collisions(codes, points, books)
    assert len(torch.unique(unique, dim=0)) == len(codes)
    assert n_moved == (unique != codes).any(1).sum() == len(codes) - len(torch.unique(codes, dim=0))
    assert torch.equal(unique[~shared(codes)], codes[~shared(codes)])
    levels, size = books.shape[:2]
    assert torch.equal(unique[:, :-levels], codes[:, :-levels])
    assert (unique[:, -levels:] >= 0).all() and (unique[:, -levels:] < size).all()


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_the_ids_are_those_of_the_plain_way(catalogue):
    codes, points, books, _ = catalogue
    unique, n_moved = resolve_collisions(codes, points, books)
    expected, n_expected = plainly(codes, points, books)
    assert torch.equal(unique, expected) and n_moved == n_expected


@pytest.mark.parametrize("crowd", [1, 3, 16])
def test_a_crowd_gets_the_ids_of_the_plain_way(crowd):
    generator = torch.Generator().manual_seed(crowd)
    size, n_items = 16, 3000
    codes = torch.randint(crowd, (n_items, 5), generator=generator)
    codes[:, 0] = torch.randint(-1, size, (n_items,), generator=generator)
    points, books = torch.randn(n_items, 4, generator=generator), torch.randn(3, size, 4, generator=generator)
    unique, n_moved = resolve_collisions(codes, points, books)
    expected, n_expected = plainly(codes, points, books)
    assert torch.equal(unique, expected) and n_moved == n_expected > 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(0, 12), st.sampled_from([2, 256, 2**40]))
def test_rows_are_numbered_in_their_order(seed, n_rows, width, size):
    rows = np.random.default_rng(seed).integers(-1, size, (n_rows, width))
    expected = np.unique(rows, axis=0, return_inverse=True)[1] if width else np.zeros(n_rows)
    assert np.array_equal(row_numbers(rows), expected.reshape(-1))


@settings(max_examples=100, deadline=None)
@given(catalogues(), st.integers(0, 2**31))
def test_permuting_items_permutes_ids(catalogue, seed):
    codes, points, books, spread = catalogue
    if not spread:
        return  # items at one point are told apart by their order alone
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    unique, n_moved = resolve_collisions(codes, points, books)
    permuted, also_moved = resolve_collisions(codes[order], points[order], books)
    assert torch.equal(permuted, unique[order]) and n_moved == also_moved


def test_the_nearest_item_keeps_the_id_and_the_other_takes_the_nearest_free_code():
    books = torch.tensor([[[0.0], [1.0], [3.0], [-0.6]]])
    points = torch.tensor([[0.2], [0.1], [1.0]])
    unique, n_moved = resolve_collisions(quantised(points, books), points, books)
    # Item 0 would go to the code at 1.0, which is taken; the free code nearest to 0.2 is the one at -0.6.
    assert unique.flatten().tolist() == [3, 0, 1] and n_moved == 1


def test_equal_items_are_settled_by_their_order():
    books = torch.tensor([[[0.0], [1.0], [2.0]]])
    unique, _ = resolve_collisions(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1), books)
    assert unique.flatten().tolist() == [0, 1, 2]


def test_goes_one_level_up_where_the_last_level_is_full():
    books = torch.tensor([[[0.0], [10.0], [20.0]], [[0.0], [1.0], [2.0]]])
    points = torch.zeros(5, 1)
    unique, n_moved = resolve_collisions(torch.zeros(5, 2, dtype=torch.long), points, books)
    assert unique.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]] and n_moved == 4


def test_a_full_catalogue_takes_every_id():
    books = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0))
    unique, n_moved = resolve_collisions(torch.zeros(27, 3, dtype=torch.long), torch.zeros(27, 2), books)
    assert len(torch.unique(unique, dim=0)) == 27 and n_moved == 26


def test_more_ids_than_a_64_bit_number_counts():
    books = torch.randn(9, 256, 2, generator=torch.Generator().manual_seed(0))
    unique, n_moved = resolve_collisions(torch.zeros(300, 9, dtype=torch.long), torch.zeros(300, 2), books)
    assert len(torch.unique(unique, dim=0)) == 300 and n_moved == 299


def test_codes_given_are_not_changed():
    codes = torch.zeros(3, 1, dtype=torch.long)
    resolve_collisions(codes, torch.zeros(3, 1), torch.zeros(1, 4, 1))
    assert np.array_equal(codes, np.zeros((3, 1)))


@st.composite
def chains(draw):
    """Items with one to three chains of codes, any of which may be missing, but not all; with or without sharing.

    There may be more items than a chain has codes, and more than that with equal codes before their last chain.
    """
    n_chains, levels = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    size = draw(st.sampled_from([3, 12] if levels == 1 else [2, 4]))
    n_items = draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    books = torch.randn(draw(st.sampled_from([1, n_chains])) * levels, size, 3, generator=generator)
    inputs = draw(st.sampled_from([0.01, 1.0])) * torch.randn(n_chains, n_items, 3, generator=generator)
    known = torch.rand(n_chains, n_items, generator=generator) < 0.6
    known[torch.randint(n_chains, (n_items,), generator=generator), torch.arange(n_items)] = True
    sets = books.split(levels)
    codes = [quantised(points, sets[index % len(sets)]) for index, points in enumerate(inputs)]
    missing = [code.masked_fill(~has.unsqueeze(1), -1) for code, has in zip(codes, known, strict=True)]
    return torch.cat(missing, dim=1), inputs, books


@settings(max_examples=300, deadline=None)
@given(chains())
def test_ids_and_items_are_a_bijection_whatever_is_missing(catalogue):
    codes, inputs, books = catalogue
    levels = codes.shape[1] // len(inputs)
    last = (codes >= 0).int().cumsum(1).argmax(1) // levels
    position = torch.arange(codes.shape[1]) // levels
    earlier = position < last.unsqueeze(1)
    prefixes = torch.cat([codes.masked_fill(~earlier, -1), last.unsqueeze(1)], dim=1)
    most = int(torch.unique(prefixes, dim=0, return_counts=True)[1].max())
    places = books.shape[1] ** levels
    if most > places:
        with pytest.raises(InputError, match=rf"^semantic IDs: \d+ items .* has {places} places"):
            resolve_chains(codes, inputs, books)
        return
    unique, n_moved = resolve_chains(codes, inputs, books)
    assert len(torch.unique(unique, dim=0)) == len(codes)
    assert n_moved == (unique != codes).any(1).sum() == len(codes) - len(torch.unique(codes, dim=0))
    assert torch.equal(unique < 0, codes < 0), "what is missing stays missing"
    assert torch.equal(unique[earlier], codes[earlier]), "only the last chain of an item changes"


def three_signals(n_items: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Items of one code a signal that share the codes 1 and 2 of the first two, and inputs and codebook of width 1."""
    inputs = torch.arange(3.0 * n_items).reshape(3, n_items, 1) / n_items
    codes = torch.tensor([1, 2, 0]).repeat(n_items, 1)
    return codes, inputs, torch.arange(float(size)).reshape(1, size, 1)


def test_a_prefix_may_be_full():
    codes, inputs, books = three_signals(4, 4)
    unique, n_moved = resolve_chains(codes, inputs, books)
    assert n_moved == 3 and sorted(unique.tolist()) == [[1, 2, code] for code in range(4)]


def test_more_items_than_one_signal_has_codes():
    codes, inputs, books = three_signals(7, 4)
    codes[:3, 0], codes[3:, 2] = 3, 1
    unique, n_moved = resolve_chains(codes, inputs, books)
    assert n_moved == 5 and len(torch.unique(unique, dim=0)) == 7
    assert torch.equal(unique[:, :2], codes[:, :2])


def test_an_overfull_prefix_is_named_with_its_items_and_places():
    codes, inputs, books = three_signals(6, 4)
    codes[0, 0] = 3
    message = r"5 items have the codes \[1, 2\] before their last signal, which has 4 places .*sid_levels and sid_code"
    with pytest.raises(InputError, match=message):
        resolve_chains(codes, inputs, books)
    codes[:, 1] = -1  # an item without the second signal is told apart by the third all the same
    with pytest.raises(InputError, match=r"5 items have the codes \[1, -1\]"):
        resolve_chains(codes, inputs, books)


def test_a_hundred_thousand_items_of_which_one_prefix_is_full():
    size, n_items = 128, 100_000
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(size, (n_items, 6), generator=generator)
    codes[: size**2, :4] = 7
    codes[: size**2, 4:] = torch.randint(4, (size**2, 2), generator=generator)
    inputs, books = torch.randn(3, n_items, 4, generator=generator), torch.randn(2, size, 4, generator=generator)
    unique, n_moved = resolve_chains(codes, inputs, books)
    assert len(torch.unique(unique, dim=0)) == n_items
    assert n_moved == (unique != codes).any(1).sum() == n_items - len(torch.unique(codes, dim=0))
    assert torch.equal(unique[:, :4], codes[:, :4]) and torch.equal(unique[size**2 :], codes[size**2 :])


def test_what_no_training_can_tell_apart_is_refused_by_the_signals_that_items_have():
    known = torch.tensor([[True] * 20, [True] * 3 + [False] * 17])
    check_capacity(known, ["text", "id"], levels=1, size=17)
    with pytest.raises(InputError, match="16 IDs for 17 items with codes of text; raise levels or codebook_size"):
        check_capacity(known, ["text", "id"], levels=1, size=16)
    check_capacity(torch.ones(2, 16, dtype=torch.bool), ["text", "id"], levels=2, size=2)
    with pytest.raises(InputError, match=r"16 IDs for 17 items with codes of text \+ id"):
        check_capacity(torch.ones(2, 17, dtype=torch.bool), ["text", "id"], levels=2, size=2)
    with pytest.raises(InputError, match="4 IDs for 5 items with codes of id"):  # three have no signal at all
        check_capacity(torch.tensor([[False] * 5, [True] * 2 + [False] * 3]), ["text", "id"], levels=2, size=2)
    check_capacity(torch.ones(20, 5, dtype=torch.bool), [""] * 20, levels=4, size=256)  # 2 ** 640 IDs


def test_each_chain_is_resolved_with_its_own_codebooks():
    books = torch.tensor([[[0.0], [1.0], [-9.0]], [[0.0], [9.0], [-1.0]]])
    codes = torch.tensor([[0, 0], [0, 0], [0, -1], [0, -1]])
    inputs = torch.tensor([[[0.0], [0.0], [0.1], [0.2]], [[-0.1], [-0.2], [0.0], [0.0]]])
    unique, n_moved = resolve_chains(codes, inputs, books)
    assert unique.tolist() == [[0, 0], [0, 2], [0, -1], [1, -1]] and n_moved == 2
