import numpy as np
import pytest
import torch

from recbole_bbqrec import storage
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.tokenizer import registry
from recbole_bbqrec.tokenizer.fit import BehaviorBindTokenizer
from recbole_bbqrec.tokenizer.training import Trainer

from .conftest import make_world, vectors_of


def same(one: BehaviorBindTokenizer, two: BehaviorBindTokenizer) -> bool:
    names = ("codes_", "vectors_", "codebooks_", "present_")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def test_shapes_and_promises(world, fitted):
    assert fitted.signals_ == ["text", "image", "id"]
    assert fitted.codes_.shape == (60, 6) and fitted.codes_.dtype == torch.int64
    assert fitted.codebooks_.shape == (2, 16, 16)
    assert fitted.vectors_.shape == (3, 60, 16) and fitted.present_.shape == (3, 60)
    assert len(torch.unique(fitted.codes_, dim=0)) == 60
    assert len(fitted.utilisation_) == len(fitted.perplexity_) == 6
    assert fitted.collisions_before_["distinct"] == 60 - fitted.n_moved_
    assert set(fitted.losses_) == {
        "commitment",
        "sequence_contrast",
        "cross_contrast",
        "reconstruction",
        "independence",
    }


def test_training_lowers_the_losses(fitted):
    for name in ("sequence_contrast", "cross_contrast", "reconstruction"):
        values = fitted.losses_[name]
        assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5]), name


def test_a_missing_modality_drops_out(world, fitted):
    missing = ~world.present["image"]
    assert torch.equal(fitted.present_[1], world.present["image"])
    assert (fitted.codes_[missing, 2:4] == -1).all() and (fitted.codes_[~missing] >= 0).all()
    assert (fitted.vectors_[1, missing] == 0).all() and (fitted.vectors_[1, ~missing] != 0).any(1).all()
    rest = fitted.codes_[missing][:, [0, 1, 4, 5]]
    assert (rest >= 0).all()


def test_what_stands_in_the_row_of_a_missing_item_does_not_matter(world, fitted):
    features = {name: matrix.clone() for name, matrix in world.features.items()}
    features["image"][~world.present["image"]] = torch.nan
    assert same(fitted, world._replace(features=features).fit())


def test_vectors_are_the_sum_of_what_the_codes_stand_for(fitted):
    torch.testing.assert_close(vectors_of(fitted, fitted.codes_), fitted.vectors_.sum(0))


def test_same_seed_same_codes_whatever_the_global_generator_and_without_disturbing_it(world, fitted):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = world.fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(fitted, again) and fitted.losses_ == again.losses_
    assert not torch.equal(fitted.codes_, world.fit(seed=1).codes_)


def test_sequences_as_list_or_flat_arrays(world, fitted):
    offsets = np.r_[0, np.cumsum([len(part) for part in world.sequences])]
    assert same(fitted, world._replace(sequences=(offsets, np.concatenate(world.sequences))).fit())


def test_one_changed_training_interaction_changes_the_codes(world, fitted):
    sequences = [part.copy() for part in world.sequences]
    longest = max(range(len(sequences)), key=lambda index: len(sequences[index]))
    sequences[longest][-1] = (sequences[longest][-1] + 1) % world.n_items
    assert not torch.equal(fitted.codes_, world._replace(sequences=sequences).fit().codes_)


def test_behaviour_binds_items_whose_features_say_nothing():
    """Items of one group follow each other; features are noise; the codes must show the groups all the same."""
    world = make_world(n_groups=6)
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(5))
    world = world._replace(features={"text": noise}, present={"text": torch.ones(60, dtype=torch.bool)})
    vectors = torch.nn.functional.normalize(world.fit(min_steps=200).vectors_, dim=-1)
    group = torch.arange(60) % 6
    inside = (group.unsqueeze(0) == group.unsqueeze(1)) & ~torch.eye(60, dtype=torch.bool)
    outside = group.unsqueeze(0) != group.unsqueeze(1)
    for signal in vectors:
        cosine = signal @ signal.T
        assert cosine[inside].mean() > cosine[outside].mean() + 0.2


@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
def test_every_mode_survives_saving(world, tmp_path, mode):
    fitted = world.fit(mode=mode, min_steps=20)
    assert fitted.codes_.shape[1] == (2 if mode == "fused" else 6)
    assert len(torch.unique(fitted.codes_, dim=0)) == 60
    fitted.save(tmp_path / "tokenizer.safetensors")
    loaded = registry.load(tmp_path / "tokenizer.safetensors")
    assert same(fitted, loaded)
    assert loaded.get_params() == fitted.get_params() and loaded.signals_ == fitted.signals_
    for name in ("losses_", "n_moved_", "utilisation_", "perplexity_", "collisions_before_", "quantisation_error_"):
        assert getattr(loaded, name) == getattr(fitted, name)
    one, two = (tokenizer.encode(world.features, world.present) for tokenizer in (fitted, loaded))
    assert all(torch.equal(left, right) for left, right in zip(one, two, strict=True))


def test_a_file_of_other_arguments_is_read(fitted, tmp_path):
    """An earlier version had more arguments, and before that fewer, and one kind of tokenizer."""
    fitted.save(tmp_path / "t")
    tensors, state = storage.load(tmp_path / "t", "tokenizer")
    parameters = {name: value for name, value in state["parameters"].items() if name != "use_id"}
    old = {"parameters": {**parameters, "sinkhorn": True}, "learned": state["learned"], "widths": state["widths"]}
    storage.save(tmp_path / "old", "tokenizer", tensors, old)
    assert same(registry.load(tmp_path / "old"), fitted)


def test_the_cost_of_fitting_is_recorded_and_saved(fitted, tmp_path):
    assert fitted.seconds_ > 0 and fitted.peak_memory_mib_ >= 0
    fitted.save(tmp_path / "t")
    loaded = registry.load(tmp_path / "t")
    assert (loaded.seconds_, loaded.peak_memory_mib_) == (fitted.seconds_, fitted.peak_memory_mib_)


def test_the_initial_network_is_where_training_started(world, fitted, monkeypatch):
    started = {}

    def run(trainer, progress):
        started.update({name: value.clone() for name, value in trainer.network.state_dict().items()})
        trainer.network.eval()
        return {}

    monkeypatch.setattr(Trainer, "run", run)
    world.fit()
    initial = fitted.initial_network().state_dict()
    assert initial.keys() == started.keys()
    assert all(torch.equal(initial[name], value) for name, value in started.items())
    assert not torch.equal(initial["item_table"], fitted.network_.item_table)


def test_the_order_of_the_modalities_survives_saving(world, tmp_path):
    world = world._replace(features=dict(reversed(world.features.items())))
    world.fit(min_steps=2).save(tmp_path / "t")
    assert registry.load(tmp_path / "t").signals_ == ["image", "text", "id"]


def test_encode_gives_known_features_the_codes_they_had(world, fitted):
    """Only the ID signal is predicted; in a chain nothing before it changes."""
    encoded = fitted.encode(world.features, world.present)
    assert torch.equal(encoded.codes[:, :4], fitted.codes_[:, :4])
    assert torch.equal(encoded.present, fitted.present_)
    torch.testing.assert_close(vectors_of(fitted, encoded.codes), encoded.vectors.sum(0))


def test_encode_predicts_the_id_signal_better_than_chance(world, fitted):
    encoded = fitted.encode(world.features, world.present)
    agreement = torch.nn.functional.cosine_similarity(encoded.vectors[2], fitted.vectors_[2], dim=-1).mean()
    shuffled = torch.nn.functional.cosine_similarity(encoded.vectors[2], fitted.vectors_[2].roll(1, 0), dim=-1).mean()
    assert agreement > shuffled + 0.2


def test_encode_of_an_item_without_any_modality(world, fitted):
    features = {name: torch.zeros(2, matrix.shape[1]) for name, matrix in world.features.items()}
    encoded = fitted.encode(features, {name: torch.zeros(2, dtype=torch.bool) for name in features})
    assert (encoded.codes[:, :4] == -1).all() and (encoded.codes[:, 4:] >= 0).all()


def test_new_items_get_free_ids_where_they_are_to_be_unique(world, fitted):
    twice = [{name: torch.cat([rows, rows]) for name, rows in part.items()} for part in (world.features, world.present)]
    plain = fitted.encode(*twice)
    unique = fitted.encode(*twice, unique=True)
    taken = torch.cat([fitted.codes_, unique.codes])
    assert len(torch.unique(torch.cat([fitted.codes_, plain.codes]), dim=0)) < len(taken), "there is something to do"
    assert len(torch.unique(taken, dim=0)) == len(taken)
    assert torch.equal(unique.present, plain.present)
    torch.testing.assert_close(vectors_of(fitted, unique.codes), unique.vectors.sum(0))
    moved = (unique.codes != plain.codes).any(1)
    assert torch.equal(unique.codes[:, :-2], plain.codes[:, :-2]) and not moved.all()


def test_encode_does_not_depend_on_the_company(world, fitted):
    whole = fitted.encode(world.features, world.present).codes
    for row in (0, 7, 59):
        alone = fitted.encode(
            {name: matrix[row : row + 1] for name, matrix in world.features.items()},
            {name: mask[row : row + 1] for name, mask in world.present.items()},
        )
        assert torch.equal(alone.codes[0], whole[row])


ODD = {
    "ID only": lambda world: world._replace(features={}, present={}),
    "no sequences": lambda world: world._replace(sequences=[]),
    "sequences of one item": lambda world: world._replace(sequences=[np.array([3]), np.array([5])]),
    "a repeated item": lambda world: world._replace(sequences=[np.array([3, 3, 3, 3])]),
    "a long sequence": lambda world: world._replace(sequences=[np.arange(60)]),
    "constant dimensions": lambda world: world._replace(
        features={name: torch.full_like(matrix, 7.0) for name, matrix in world.features.items()}
    ),
    "nothing present": lambda world: world._replace(
        present={name: torch.zeros_like(mask) for name, mask in world.present.items()}
    ),
    "nothing at all": lambda world: world._replace(features={}, present={}, sequences=[]),
}


@pytest.mark.parametrize("mode", ["chained", "fused"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_worlds(world, kind, mode):
    odd = ODD[kind](world)
    fitted = odd.fit(min_steps=10, epochs=1, mode=mode)
    assert len(torch.unique(fitted.codes_, dim=0)) == 60
    assert torch.isfinite(fitted.vectors_).all()
    assert all(np.isfinite(values).all() for values in fitted.losses_.values())


@pytest.mark.parametrize("n_items", [1, 2, 5])
def test_few_items_shrink_the_codebooks_with_a_line_in_the_log(n_items, caplog):
    caplog.set_level("INFO")
    features, present = {"text": torch.randn(n_items, 3)}, {"text": torch.ones(n_items, dtype=torch.bool)}
    tokenizer = BehaviorBindTokenizer(min_steps=10, progress=False)
    tokenizer.fit(features, present, [np.arange(n_items)], n_items)
    assert tokenizer.codebook_size == 256 and tokenizer.codebooks_.shape[1] < 5
    assert len(torch.unique(tokenizer.codes_, dim=0)) == n_items
    assert f"{n_items} items, so" in caplog.text


def test_three_levels(world):
    fitted = world.fit(levels=3, codebook_size=8, min_steps=20)
    assert fitted.codes_.shape == (60, 9) and len(torch.unique(fitted.codes_, dim=0)) == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "chain"}, "mode: found 'chain', expected one of chained"),
        ({"levels": 0}, "levels: found 0"),
        ({"levels": 2.0}, "levels: found 2.0, expected a whole number"),
        ({"levels": 1, "mode": "fused"}, "16 IDs for 60 items with codes of fused"),
        ({"code_dim": 5}, "code_dim: found 5"),
    ],
)
def test_parameters_that_cannot_work(world, settings, message):
    with pytest.raises(InputError, match=message):
        world.fit(**settings)


def test_inputs_that_do_not_fit(world, fitted):
    short = {**world.features, "text": world.features["text"][:-1]}
    with pytest.raises(InputError, match=r"features text: found shape \[59, 12\], expected \[60, width\]"):
        world._replace(features=short).fit()
    with pytest.raises(InputError, match="present: found modalities"):
        world._replace(present={}).fit()
    broken = {**world.features, "text": world.features["text"] * torch.inf}
    with pytest.raises(InputError, match="found NaN or infinity"):
        world._replace(features=broken).fit()
    with pytest.raises(InputError, match="features: found modalities"):
        fitted.encode({"text": world.features["text"]}, {"text": world.present["text"]})
    with pytest.raises(InputError, match="not fitted"):
        BehaviorBindTokenizer().encode(world.features, world.present)
