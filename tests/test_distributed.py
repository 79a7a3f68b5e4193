"""Real processes of `torchrun` over the tiny data set, beside the one process of these tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import as_arguments, settings

from recbole_bbqrec import distributed, quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "id_dropout_prob"), 0.0)

DRIVER = """
import os, signal, sys
import numpy as np, torch
from recbole_bbqrec import distributed
from recbole_bbqrec.cli import run
from recbole_bbqrec.training.trainer import ProtocolTrainer

distributed.start()
rank, world = distributed.rank(), distributed.world()

# Gradients of few rows, of all rows, and none at all.
sparse, dense, unused = (torch.nn.Parameter(torch.zeros(5, 2)) for _ in range(3))
shown = torch.nn.functional.embedding(torch.tensor([rank, 4][: 1 + rank % 2]), sparse, sparse=True)
(shown.sum() + dense[rank].sum()).backward()
distributed.add_gradients([sparse, dense, unused])
rows = torch.zeros(5, 2)
rows[:world] = 1
assert torch.equal(dense.grad, rows) and unused.grad is None
rows[4] += world // 2
assert torch.equal(sparse.grad.to_dense(), rows)

found = distributed.gather(np.full((rank, 2), rank))
assert [len(part) for part in found] == (list(range(world)) if rank == 0 else [])
assert distributed.told(f"I am {rank}") == "I am 0"
with distributed.main_first():
    assert torch.get_num_threads() == (world if rank == 0 else 1)
assert torch.get_num_threads() == 1
assert distributed.agreed(lambda: rank == 0) and distributed.total((1.0, 2.0)) == (world, 2.0 * world)

train, dies_at = ProtocolTrainer._train_epoch, int(os.environ.get("DIES_AT", -1))
def trained(self, data, epoch, *rest, **more):
    if epoch == dies_at and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return train(self, data, epoch, *rest, **more)
ProtocolTrainer._train_epoch = trained
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder of all runs here, whose features and tokenizer are made once."""
    return tmp_path_factory.mktemp("processes")


def given_of(tiny, place, name, **changes):
    given = {"cache_dir": str(place / "cache"), "checkpoint_dir": str(place / name), "epochs": 3, "eval_batch_size": 16}
    files = {"result_file": str(place / f"{name}.json"), "ranks_file": str(place / f"{name}.csv")}
    judged = {"metrics": ["Recall", "NDCG", "ItemCoverage", "TailPercentage"], "final": True}
    return settings(tiny, **{**NO_DROPOUT, **given, **files, **judged, **changes})


@pytest.fixture(scope="module")
def one(tiny, place):
    """The record of one process."""
    return quick_start.run(config_dict=given_of(tiny, place, "one", second_stage="gbdt"))


def torchrun(n, script, arguments, folder, **environment):
    """Run a script in n processes; returns the exit code, what was printed, and the seconds it took."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", str(script)]
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    started = time.monotonic()
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=folder, env=own, timeout=120)
    return done.returncode, done.stdout, done.stderr, time.monotonic() - started


def assert_same(place, name, one):
    """A run's files say what one process has found, and of each user once."""
    record = json.loads((place / f"{name}.json").read_text())
    for split, columns in one["metrics"].items():
        for column, values in columns.items():
            assert record["metrics"][split][column] == pytest.approx(values, abs=1e-4)
    assert record["users"] == record["rows"] == one["rows"] and record["epochs"] == one["epochs"]
    assert record["second_stage"] == one["second_stage"] == "gbdt"
    lines = [(place / f"{one_of}.csv").read_text().splitlines() for one_of in (name, "one")]
    keys = [sorted(tuple(line.split(",")[:2]) for line in part) for part in lines]
    assert keys[0] == keys[1] and len(set(keys[0])) == len(keys[0])
    return record


def test_two_processes_are_as_one_and_write_once(tiny, place, one):
    given = given_of(tiny, place, "two", second_stage="gbdt")
    code, out, err, _ = torchrun(2, ROOT / "run_recbole_bbqrec.py", as_arguments(given), place / "two-work")
    assert code == 0, err
    record = assert_same(place, "two", one)
    assert record["processes"] == 2 and "processes" not in one
    assert out.count("BBQRec* on tiny") == 1
    logs, events = ([*(place / "two-work").rglob(pattern)] for pattern in ("*.log", "events.out.tfevents.*"))
    assert len(logs) == 1 and len({path.parent for path in events if "1" not in path.parent.name[:1]}) == 1
    assert Path(record["run_dir"]).name != Path(one["run_dir"]).name, "dropout of several processes is another one"
    assert not list((place / "two").rglob("*.tmp"))


def test_a_process_that_dies_ends_all_and_the_same_command_goes_on(tiny, place, one):
    driver = place / "driver.py"
    driver.write_text(DRIVER)
    arguments = as_arguments(given_of(tiny, place, "three", second_stage="gbdt"))
    code, _, err, seconds = torchrun(3, driver, arguments, place / "three-work", DIES_AT="2")
    assert code and seconds < 60
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith("error: process 1 of 3 (numbered from 0; pid "), err
    assert told[0].endswith("has died; the same command goes on from the last epoch")
    assert not (place / "three.json").exists()
    code, _, err, _ = torchrun(3, driver, arguments, place / "three-work")
    assert code == 0 and "going on at epoch 2" in err
    assert_same(place, "three", one)


def test_errors_of_input_are_told_once(tiny, place):
    arguments = as_arguments(settings(tiny, "SASRec", checkpoint_dir=str(place / "none")))
    code, _, err, _ = torchrun(2, ROOT / "run_recbole_bbqrec.py", arguments, place / "error-work")
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code and len(told) == 1 and "RecBole's own models are trained by one process" in told[0], err


def test_more_processes_than_gpus_are_refused_before_they_meet(monkeypatch):
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**place, "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="found 2 processes and 1 GPUs on this machine; give --nproc_per_node=1"):
        distributed.start()
    assert not distributed.is_first_to_say("that"), "the first process of the machine says it"
    assert distributed.world() == 1 and distributed.is_main()


def test_shares_of_batches(tiny, tmp_path, monkeypatch):
    config = Config(config_dict=settings(tiny, checkpoint_dir=str(tmp_path), train_batch_size=4))
    train, *_ = split_loaders(config, registry.get_dataset("BBQRec")(config))

    def batches(rank, size):
        monkeypatch.setattr(distributed, "_watch", SimpleNamespace(rank=rank, size=size) if size > 1 else None)
        return [*WindowDataLoader(config, train._dataset, train._dataset.train_sequences)]

    whole, shares, n_empty = batches(0, 1), [batches(rank, 3) for rank in range(3)], 0
    for batch, *parts in zip(whole, *shares, strict=True):
        targets = [int((part["target_list"] > 0).sum()) for part in parts]
        told = [float(part[WindowDataLoader.SHARE][0]) for part in parts]
        n_all = int((batch["target_list"] > 0).sum())
        assert sum(told) == pytest.approx(1)
        assert all(share in (0, pytest.approx(n / n_all)) for share, n in zip(told, targets, strict=True))
        n_empty += told.count(0)
        counted = [part["target_list"] for part, share in zip(parts, told, strict=True) if share]
        found = np.sort(torch.cat([part[part > 0] for part in counted]).numpy())
        assert np.array_equal(found, np.sort(batch["target_list"][batch["target_list"] > 0].numpy()))
    assert n_empty, "small batches leave a process without a window of its own"


def test_joint_draws_are_those_of_one_process(monkeypatch):
    distributed.part_draws(7)
    alone = [torch.randperm(9), torch.randperm(9)]
    own = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "_watch", SimpleNamespace(rank=rank, size=2))
        distributed.part_draws(7)
        found = []
        for _ in alone:
            with distributed.joint_draws():
                found.append(torch.randperm(9))
            own.append(torch.rand(3))
        assert all(torch.equal(one, other) for one, other in zip(alone, found, strict=True))
    assert len({tuple(part.tolist()) for part in own}) == 4
