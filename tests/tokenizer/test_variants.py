"""The promises of every tokenizer and of every variant, on every subset of signals."""

import copy
from itertools import product

import numpy as np
import pytest
import torch

from recbole_bbqrec import storage
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.tokenizer import registry, training
from recbole_bbqrec.tokenizer.fit import BehaviorBindTokenizer

from .conftest import World, make_world, vectors_of

SMALL = {"codebook_size": 16, "seed": 3, "progress": False}
QUICK = {**SMALL, "code_dim": 8, "min_steps": 1, "epochs": 1}
SUBSETS = ("text", "image", "text image", "")
MODES = ("chained", "concat", "fused")
CASES = {
    f"{mode}, {subset or 'no modality'}, {'ID' if use_id else 'no ID'}": ({"mode": mode, "use_id": use_id}, subset)
    for mode, subset, use_id in product(MODES, SUBSETS, (True, False))
    if subset or use_id
}
CASES |= {
    f"{mode}, {name}": ({"mode": mode, **settings}, "text image")
    for mode in MODES
    for name, settings in {
        "own codebooks": {"shared_codebook": False},
        "own codebooks, no ID": {"shared_codebook": False, "use_id": False},
    }.items()
}


def with_gaps() -> World:
    """Items without image, items without text, and some without either."""
    world = make_world()
    present = {"text": torch.arange(60) % 7 != 0, "image": torch.arange(60) % 5 != 0}
    present["text"][[0, 5, 10]] = present["image"][[0, 5, 10]] = False
    return world._replace(present=present)


def subset_of(world: World, names: str) -> World:
    kept = names.split()
    features = {name: world.features[name] for name in kept}
    return world._replace(features=features, present={name: world.present[name] for name in kept})


def check_promises(tokenizer, world: World, path) -> None:
    codes, present, vectors = tokenizer.codes_, tokenizer.present_, tokenizer.vectors_
    n_signals, levels = len(tokenizer.signals_), tokenizer.levels
    assert codes.shape == (60, n_signals * levels) and vectors.shape[:2] == present.shape == (n_signals, 60)
    assert len(torch.unique(codes, dim=0)) == 60, "unique"
    has_codes = torch.stack([(chain >= 0).all(1) for chain in codes.split(levels, dim=1)])
    missing = torch.stack([(chain == -1).all(1) for chain in codes.split(levels, dim=1)])
    bare = ~present.any(0)
    assert torch.equal(has_codes[:, ~bare], present[:, ~bare]) and torch.equal(missing, ~has_codes), "missing is -1"
    assert has_codes[-1, bare].all() and missing[:-1, bare].all(), "a number in the last chain"
    assert (vectors[~present] == 0).all()
    torch.testing.assert_close(vectors_of(tokenizer, codes)[~bare], vectors.sum(0)[~bare])
    assert tokenizer.collisions_before_["distinct"] == 60 - tokenizer.n_moved_
    assert len(tokenizer.utilisation_) == len(tokenizer.perplexity_) == codes.shape[1]
    assert len(tokenizer.quantisation_error_) == n_signals

    again = type(tokenizer)(**tokenizer.get_params()).fit(*world)
    tokenizer.save(path)
    loaded = registry.load(path)
    assert type(loaded) is type(tokenizer) and loaded.get_params() == tokenizer.get_params()
    for other in (again, loaded):
        for name in ("codes_", "codebooks_", "vectors_", "present_"):
            assert torch.equal(getattr(other, name), getattr(tokenizer, name)), name
        for name in ("signals_", "losses_", "n_moved_", "utilisation_", "quantisation_error_"):
            assert getattr(other, name) == getattr(tokenizer, name), name

    if not world.features:
        with pytest.raises(InputError, match="fitted without features"):
            tokenizer.encode({}, {})
        return
    encoded, by_loaded = (one.encode(world.features, world.present) for one in (tokenizer, loaded))
    assert all(torch.equal(left, right) for left, right in zip(encoded, by_loaded, strict=True))
    assert torch.equal(encoded.present, present) and torch.equal(encoded.codes < 0, codes < 0)
    torch.testing.assert_close(vectors_of(tokenizer, encoded.codes)[~bare], encoded.vectors.sum(0)[~bare])
    alone = tokenizer.encode(
        {name: matrix[9:10] for name, matrix in world.features.items()},
        {name: mask[9:10] for name, mask in world.present.items()},
    )
    assert torch.equal(alone.codes, encoded.codes[9:10])


@pytest.mark.parametrize("case", CASES)
def test_every_variant_on_every_subset_of_signals(case, tmp_path):
    settings, subset = CASES[case]
    world = subset_of(with_gaps(), subset)
    tokenizer = BehaviorBindTokenizer(**QUICK, **settings).fit(*world)
    signals = subset.split() + ["id"] * settings.get("use_id", True)
    assert tokenizer.signals_ == (["fused"] if settings["mode"] == "fused" else signals)
    own = settings.get("shared_codebook", True) is False
    assert len(tokenizer.codebooks_) == (2 * len(tokenizer.signals_) if own else 2)
    assert tokenizer.present_.any(0).all() or not settings.get("use_id", True)
    check_promises(tokenizer, world, tmp_path / "t")


@pytest.mark.parametrize("subset", ["text", "text image"])
@pytest.mark.parametrize("settings", [{}, {"levels": 2}], ids=str)
@pytest.mark.parametrize("name", ["rqvae", "aligned", "kmeans"])
def test_tokenizers_of_one_signal(name, settings, subset, tmp_path):
    world = subset_of(with_gaps(), subset)
    quick = {"steps": 40, "code_dim": 8} if name != "kmeans" else {}
    tokenizer = registry.TOKENIZERS[name](**SMALL, **quick, **settings).fit(*world)
    assert tokenizer.signals_ == ["features"]
    assert torch.equal(tokenizer.present_[0], torch.stack(list(world.present.values())).any(0))
    check_promises(tokenizer, world, tmp_path / "t")


@pytest.mark.parametrize("case", ["chained, text image, no ID", "concat, own codebooks, no ID", "fused, text, ID"])
def test_random_numbers_outside_are_neither_read_nor_moved(case):
    settings, subset = CASES[case]
    world = subset_of(with_gaps(), subset)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    one = BehaviorBindTokenizer(**QUICK, **settings).fit(*world)
    assert torch.equal(torch.get_rng_state(), before)
    other = BehaviorBindTokenizer(**{**QUICK, **settings, "seed": 4}).fit(*world)
    assert not torch.equal(one.codes_, other.codes_)


@pytest.mark.parametrize("name", ["rqvae", "kmeans"])
def test_plain_tokenizers_do_not_look_at_behaviour(world, name):
    tokenizer = registry.TOKENIZERS[name](**SMALL)
    if name == "rqvae":
        tokenizer.steps = 20
    codes = tokenizer.fit(*world).codes_
    assert torch.equal(codes, tokenizer.fit(*world._replace(sequences=[])).codes_)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_id", [True, False])
def test_permuting_items_with_their_table_rows_permutes_ids_and_nothing_else(mode, use_id):
    """What a trained network makes of items does not depend on their numbers, down to the resolved IDs."""
    world = with_gaps()
    world.present["text"][[0, 5, 10]] = True  # items alike in every respect are told apart by their order alone
    one = BehaviorBindTokenizer(**QUICK, mode=mode, use_id=use_id).fit(*world)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(one)
    if use_id:
        other.network_.item_table.copy_(one.network_.item_table[order])
    features = {name: matrix[order] for name, matrix in world.features.items()}
    present = {name: mask[order] for name, mask in world.present.items()}
    other._learn_codes(other.standardise(features, present, 60))
    assert torch.equal(other.codes_, one.codes_[order]) and torch.equal(other.present_, one.present_[:, order])
    torch.testing.assert_close(other.vectors_, one.vectors_[:, order])
    for name in ("n_moved_", "collisions_before_", "utilisation_", "perplexity_"):
        assert getattr(other, name) == getattr(one, name)


def test_items_without_any_signal_are_told_apart_and_say_nothing():
    world = subset_of(with_gaps(), "image")
    bare = ~world.present["image"]
    tokenizer = BehaviorBindTokenizer(**QUICK, use_id=False).fit(*world)
    assert not tokenizer.present_[0, bare].any() and (tokenizer.vectors_[0, bare] == 0).all()
    codes = tokenizer.codes_[bare]
    assert (codes >= 0).all() and len(torch.unique(codes, dim=0)) == bare.sum()


def test_an_item_without_signals_has_no_part_in_training():
    world = subset_of(with_gaps(), "image")
    changed = world._replace(
        features={"image": torch.where(world.present["image"][:, None], world.features["image"], 9.0)}
    )
    one, two = (BehaviorBindTokenizer(**QUICK, use_id=False).fit(*each) for each in (world, changed))
    assert one.losses_ == two.losses_ and torch.equal(one.codes_, two.codes_)


def test_the_id_signal_is_what_tells_items_of_equal_features_apart(monkeypatch):
    """With it, behaviour gives them different codes; without it, all of them collide and are moved."""
    features = {"text": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).repeat(15, 1)}
    world = make_world()._replace(features=features, present={"text": torch.ones(60, dtype=torch.bool)})
    monkeypatch.setattr(training, "WARMUP", 0.3)
    settings = {**QUICK, "min_steps": 60}
    with_id, without = (BehaviorBindTokenizer(**settings, use_id=use_id).fit(*world) for use_id in (True, False))
    assert without.n_moved_ >= 56 and without.collisions_before_["distinct"] <= 4
    assert with_id.n_moved_ < 30


@pytest.mark.parametrize("mode", ["chained", "concat"])
def test_more_items_than_one_signal_has_ids(world, mode, tmp_path):
    tokenizer = BehaviorBindTokenizer(**QUICK, mode=mode, levels=1).fit(*world)  # 16 codes a signal
    check_promises(tokenizer, world, tmp_path / "tokenizer.safetensors")


TOO_FEW = {
    "rqvae": ("rqvae", {}, "text image", "features"),
    "aligned": ("aligned", {}, "text image", "features"),
    "kmeans": ("kmeans", {}, "text image", "features"),
    "fused": ("behavior_bind", {"mode": "fused"}, "text image", "fused"),
    "one signal": ("behavior_bind", {}, "", "id"),
    "nothing but the ID": ("behavior_bind", {"codebook_size": 2}, "text image", "id"),
}


@pytest.mark.parametrize("case", TOO_FEW)
def test_what_cannot_be_told_apart_is_refused_before_training(monkeypatch, case):
    name, given, subset, chain = TOO_FEW[case]
    kind = registry.TOKENIZERS[name]
    monkeypatch.setattr(kind, "_train", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match=rf"IDs for \d+ items with codes of {chain};"):
        kind(**{**SMALL, "levels": 1, **given}).fit(*subset_of(with_gaps(), subset))


def test_items_that_share_all_codes_but_the_last_signals_are_refused_where_these_run_out():
    features = {"text": torch.ones(60, 6), "image": torch.ones(60, 4)}
    world = make_world()._replace(features=features, present=dict.fromkeys(features, torch.ones(60, dtype=torch.bool)))
    with pytest.raises(
        InputError, match=r"60 items have the codes \[\d+, \d+\] before their last signal, which has 16"
    ):
        BehaviorBindTokenizer(**QUICK, levels=1).fit(*world)


def test_an_rqvae_learns_to_rebuild_and_uses_its_codes(world):
    tokenizer = registry.TOKENIZERS["rqvae"](levels=2, codebook_size=16, steps=300, progress=False).fit(*world)
    rebuilt = tokenizer.losses_["reconstruction"]
    assert len(rebuilt) == 100 and np.mean(rebuilt[-5:]) < 0.5 * np.mean(rebuilt[:5])
    assert min(tokenizer.utilisation_) > 0.5 and tokenizer.quantisation_error_[0] < 0.5


def test_an_rqvae_of_sentence_like_vectors_does_not_collapse():
    """Unit length and a large common part, as sentence encoders give them: without standardising one code is left."""
    vectors = torch.nn.functional.normalize(
        5 + torch.randn(200, 32, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    tokenizer = registry.TOKENIZERS["rqvae"](levels=2, codebook_size=16, steps=200, progress=False)
    tokenizer.fit({"text": vectors}, {"text": torch.ones(200, dtype=torch.bool)}, [], 200)
    assert min(tokenizer.utilisation_) > 0.8 and min(tokenizer.perplexity_) > 8


def test_residual_kmeans_quantises_what_is_left_over(world):
    one, two = (registry.TOKENIZERS["kmeans"](levels=n, codebook_size=60, progress=False).fit(*world) for n in (1, 2))
    assert one.losses_ == {} and one.quantisation_error_[0] < 1e-6  # a centre for every item
    coarse = registry.TOKENIZERS["kmeans"](levels=3, codebook_size=8, progress=False).fit(*world)
    standard = torch.cat(coarse.standardise(world.features, world.present, 60).features, dim=1)
    error = (vectors_of(coarse, coarse.encode(world.features, world.present).codes) - standard).square().sum()
    assert coarse.quantisation_error_[0] == pytest.approx(float(error / standard.square().sum()), rel=1e-4)
    assert 0 < coarse.quantisation_error_[0] < 0.4 and two.codebooks_.shape == (2, 60, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BehaviorBindTokenizer(use_id=False, progress=False), "use_id: found False and no modality"),
        (lambda: registry.TOKENIZERS["rqvae"](progress=False), "rqvae tokenizer: found no modality"),
        (lambda: registry.TOKENIZERS["aligned"](progress=False), "aligned tokenizer: found no modality"),
        (lambda: registry.TOKENIZERS["kmeans"](progress=False), "kmeans tokenizer: found no modality"),
        (lambda: registry.TOKENIZERS["rqvae"](steps=0, progress=False), "steps: found 0"),
    ],
)
def test_tokenizers_without_anything_to_go_by(world, make, message):
    with pytest.raises(InputError, match=message):
        make().fit({}, {}, world.sequences, 60)


def test_files_of_another_tokenizer_and_of_none(world, tmp_path):
    registry.TOKENIZERS["kmeans"](**SMALL).fit(*world).save(tmp_path / "k")
    tensors, state = storage.load(tmp_path / "k", "tokenizer")
    storage.save(tmp_path / "unknown", "tokenizer", tensors, {**state, "tokenizer": "later"})
    with pytest.raises(InputError, match="found a later tokenizer, expected one of behavior_bind, rqvae, ali"):
        registry.load(tmp_path / "unknown")
    storage.save(tmp_path / "part", "tokenizer", {"codes": tensors["codes"]}, state)
    with pytest.raises(InputError, match="not a whole tokenizer"):
        registry.load(tmp_path / "part")
    with pytest.raises(InputError, match="no such file"):
        registry.load(tmp_path / "nothing")
