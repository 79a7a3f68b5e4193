from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings, write_dataset

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.sample import sampled_rows
from recbole_bbqrec.training import checkpoint, validation
from recbole_bbqrec.training.trainer import ProtocolTrainer


def made(folder, model="BBQRec", **changes):
    config = Config(config_dict=settings(folder, model, **changes))
    dataset = registry.get_dataset(model)(config)
    loaders = split_loaders(config, dataset)
    torch.manual_seed(0)
    net = registry.get_model(model)(config, loaders[0]._dataset)
    return config, net, registry.get_trainer(config)(config, net), loaders


@pytest.mark.parametrize("grouped", [True, False])
def test_recboles_models_run_on_length_groups_unless_told_otherwise(tiny, grouped):
    _, net, _, (train, *_) = made(tiny, "SASRec", length_groups=grouped)
    assert ("forward" in vars(net)) is grouped
    assert torch.isfinite(net.calculate_loss(next(iter(train))))


def test_models_that_depend_on_padding_run_as_recbole_runs_them(tiny):
    _, net, _, _ = made(tiny, "LightSANs")
    assert "forward" not in vars(net)


def test_bbqrec_trains_on_windows_and_recboles_models_on_recboles_batches(tiny, tmp_path):
    *_, trainer, (train, *_) = made(tiny, checkpoint_dir=str(tmp_path))
    assert isinstance(trainer._training_batches(train), WindowDataLoader)
    *_, trainer, (train, *_) = made(tiny, "SASRec", checkpoint_dir=str(tmp_path))
    assert trainer._training_batches(train) is train


def test_training_stops_by_the_masked_score_and_keeps_the_best_weights(tiny, tmp_path, monkeypatch):
    given = {"checkpoint_dir": str(tmp_path), "epochs": 9, "stopping_step": 1, "resume": False}
    _, net, trainer, (train, valid, _) = made(tiny, **given)
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    weights = []

    def rank(*_):
        weights.append({name: value.clone() for name, value in net.state_dict().items()})
        masked = {"ndcg@10": next(scores)}
        ranks = SimpleNamespace(metrics=lambda *_: {"masked": masked, "unmasked": {"ndcg@10": 0.5}})
        return SimpleNamespace(groups=lambda: {"all": ranks})

    monkeypatch.setattr(trainer, "rank", rank)
    best, result = trainer.fit(train, valid)
    assert best == 0.3 and trainer.state.best_epoch == 1 and trainer.state.epochs_done == 4
    assert result == {"masked_ndcg@10": 0.3, "ndcg@10": 0.5}
    trainer.load_best()
    assert all(torch.equal(value, weights[1][name]) for name, value in net.state_dict().items())


def test_a_sample_of_many_validation_rows_stops_training_and_the_table_has_all(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "STOPS_ON", 7)
    given, ranked = settings(tiny, checkpoint_dir=str(tmp_path), epochs=2, second_stage="off"), []
    plain = ProtocolTrainer.rank

    def rank(self, *arguments):
        ranked.append(plain(self, *arguments))
        return ranked[-1]

    monkeypatch.setattr(ProtocolTrainer, "rank", rank)
    record, ranks = quick_start.execute(config_dict=given)
    n_rows = record["rows"]["valid"]
    assert [len(found.users) for found in ranked] == [7, 7, n_rows] and n_rows > 7
    chosen = sampled_rows(n_rows, 7, given.get("seed", 2020))
    for name in ("users", "masked", "unmasked"):
        whole, part = (getattr(found, name) for found in (ranks["valid"], ranked[record["epochs"]["best"] - 1]))
        assert np.array_equal(whole[chosen], part)


def test_a_loss_that_is_not_finite_says_what_to_do(tiny, tmp_path, monkeypatch):
    _, net, trainer, (train, valid, _) = made(tiny, checkpoint_dir=str(tmp_path))
    real = net.calculate_loss
    monkeypatch.setattr(net, "calculate_loss", lambda batch: real(batch) * float("nan"))
    with pytest.raises(InputError, match="loss is not finite; lower learning_rate"):
        trainer.fit(train, valid)


def test_tensorboard_gets_what_recbole_writes(tiny, tmp_path):
    quick_start.run(config_dict=settings(tiny, checkpoint_dir=str(tmp_path / "saved")))
    assert list((tmp_path / "log_tensorboard").rglob("events.out.tfevents.*"))


def test_training_state_round_trip(tiny, tmp_path):
    _, net, trainer, (train, *_) = made(tiny, checkpoint_dir=str(tmp_path))
    batch = next(iter(trainer._training_batches(train)))
    for _ in range(2):
        trainer.optimizer.zero_grad()
        net.calculate_loss(batch).backward()
        trainer.optimizer.step()
    checkpoint.save_training(tmp_path / "x", net, [trainer.optimizer], {"epoch": 3})
    _, other, fresh, _ = made(tiny, checkpoint_dir=str(tmp_path))
    assert checkpoint.load_training(tmp_path / "x", other, [fresh.optimizer])["epoch"] == 3
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())
    for (_, one), (_, two) in zip(
        sorted(trainer.optimizer.state_dict()["state"].items()),
        sorted(fresh.optimizer.state_dict()["state"].items()),
        strict=True,
    ):
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(two[name])) for name in one)


def test_weights_of_other_settings_are_refused(tiny, tmp_path):
    _, net, _, _ = made(tiny, checkpoint_dir=str(tmp_path))
    checkpoint.save_weights(tmp_path / "x", net, {})
    _, wider, _, _ = made(tiny, checkpoint_dir=str(tmp_path), hidden_size=32)
    with pytest.raises(InputError, match="weights of other settings"):
        checkpoint.load_weights(tmp_path / "x", wider)


def other_first_item(folder):
    """Change one user's first item, which is a target of no row."""
    path = folder / "tiny" / "tiny.inter"
    lines = path.read_text().splitlines()
    user, _, time = lines[1].split("\t")
    met = {line.split("\t")[1] for line in lines[1:] if line.startswith(user)}
    new = next(name for name in (f"i{n:02d}" for n in range(40)) if name not in met)
    path.write_text("\n".join([lines[0], f"{user}\t{new}\t{time}", *lines[2:]]) + "\n")


def other_brand(folder):
    path = folder / "tiny" / "tiny.item"
    path.write_text(path.read_text().replace("Acme", "Bolt", 1))


@pytest.mark.parametrize("change", [other_first_item, other_brand])
def test_a_run_over_changed_data_never_takes_up_the_old_one(tmp_path, change):
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}
    given = {"load_col": columns, "selected_features": ["brand"], "epochs": 1, "hidden_size": 16}
    write_dataset(tmp_path)

    def folder():
        *_, trainer, (train, valid, _) = made(tmp_path, "SASRecF", **given)
        trainer._open_run(train, valid)
        return trainer.folder.path

    before = folder()
    assert folder() == before
    change(tmp_path)
    assert folder() != before
