import pytest
import torch
from conftest import settings

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.semantic_ids import CONTROLS
from recbole_bbqrec.model.catalogue import SemanticIds
from recbole_bbqrec.tokenizer.registry import TOKENIZERS, load


def ids_of(folder, **changes):
    config = Config(config_dict=settings(folder, **changes))
    dataset = registry.get_dataset("BBQRec")(config)
    split_loaders(config, dataset)
    return dataset


@pytest.fixture(scope="module")
def learned(tiny):
    return ids_of(tiny).catalogue.semantic_ids


def rows_of(codes):
    return sorted(map(tuple, codes[1:].tolist()))


def test_shuffled_codes_are_the_learned_ones_on_other_items_with_their_vectors(tiny, learned):
    shuffled = ids_of(tiny, codes="shuffled").catalogue.semantic_ids
    assert rows_of(shuffled.codes) == rows_of(learned.codes)
    assert (shuffled.codes != learned.codes).any(1).float().mean() > 0.8
    owner = {tuple(row): item for item, row in enumerate(learned.codes.tolist())}
    was = torch.tensor([owner[tuple(row)] for row in shuffled.codes.tolist()])
    assert torch.equal(shuffled.vectors, learned.vectors[:, was])
    assert torch.equal(shuffled.present, learned.present[:, was])
    assert was[0] == 0


def test_random_codes_are_unique_and_stand_for_random_vectors(tiny, learned):
    random = ids_of(tiny, codes="random").catalogue.semantic_ids
    assert random.codes.shape == learned.codes.shape and random.vectors.shape == learned.vectors.shape
    assert len(torch.unique(random.codes[1:], dim=0)) == len(random.codes) - 1
    assert ((random.codes[1:] >= 0) & (random.codes[1:] < random.codebook_size)).all()
    first = random.codes[1:, :2]
    for row in torch.unique(first, dim=0):  # equal codes stand for equal vectors
        same = random.vectors[0, 1:][(first == row).all(1)]
        assert (same == same[0]).all()
    assert not torch.allclose(random.vectors, learned.vectors)


def test_random_codes_are_unique_where_the_last_signal_alone_has_too_few():
    n_items, size = 40, 4
    codes = torch.zeros(n_items, 3, dtype=torch.long)
    vectors, present = torch.zeros(3, n_items, 2), torch.ones(3, n_items, dtype=torch.bool)
    random = CONTROLS["random"](SemanticIds(codes, vectors, present, ["text", "image", "id"], size), 0)
    assert random.codes.shape == codes.shape and len(torch.unique(random.codes, dim=0)) == n_items
    assert random.codes.min() >= 0 and random.codes.max() < size


def test_controls_depend_on_the_seed_and_on_nothing_else(tiny):
    one, again, other = (ids_of(tiny, codes="random", seed=seed).catalogue.semantic_ids for seed in (1, 1, 2))
    assert torch.equal(one.codes, again.codes) and not torch.equal(one.codes, other.codes)


def test_without_codes_no_tokenizer_is_learned(tiny, tmp_path):
    dataset = ids_of(tiny, codes="none", cache_dir=str(tmp_path))
    assert dataset.catalogue.semantic_ids is None and dataset.catalogue.features is not None
    assert not list(tmp_path.rglob("tokenizer-*"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_is_a_setting(tiny, tmp_path, name):
    dataset = ids_of(tiny, tokenizer=name, cache_dir=str(tmp_path))
    assert load(dataset.tokenizer_file).name == name
    assert len(torch.unique(dataset.catalogue.semantic_ids.codes[1:], dim=0)) == dataset.item_num - 1


def test_new_codes_come_with_a_report_card(tiny, tmp_path, caplog):
    dataset = ids_of(tiny, report_card=True, cache_dir=str(tmp_path))
    stem = dataset.tokenizer_file.with_suffix("")
    written = {path: path.stat().st_mtime_ns for path in (stem.with_suffix(".json"), stem.with_suffix(".png"))}
    assert all(written.values())
    ids_of(tiny, report_card=True, cache_dir=str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in written} == written, "measured once"
