"""One tiny multi-modal data set for all tests, and settings under which a run takes a second or two."""

import gc
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two threads on busy cores crawl

import numpy as np
import pytest
import torch

from recbole_bbqrec.config import parse_command_line, usable
from recbole_bbqrec.settings import MAY_BE_UNUSED

N_USERS, N_ITEMS = 60, 40
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

QUICK = {
    "show_progress": False,
    "epochs": 2,
    "hidden_size": 16,
    "inner_size": 32,
    "n_layers": 1,
    "train_batch_size": 128,
    "n_negatives": 16,
    "feature_dim": 16,
    "sid_codebook_size": 8,
    "sid_code_dim": 8,
    "sid_epochs": 1,
    "sid_min_steps": 30,
    "report_card": False,
    "second_stage": "linear",  # of the two forms the one that takes no second
}
"""Settings of a quick BBQRec run on the tiny data set."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where tests compute (default cpu)")


def pytest_configure(config: pytest.Config) -> None:
    """Runs take the GPU where they see one: on the CPU tests see none, on the GPU every run is on it."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("--device=cuda: torch finds no GPU here; drop it, the tests run on the CPU then")


LONGEST = ("test_quality.py", "test_other_models.py", "test_item_semantics.py", "test_stock_models.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: one begun last would keep a process busy when the others have nothing left to do."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def where() -> str:
    """Return the device of the tests, for what is no fixture."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def device() -> str:
    """The device of the tests, see `--device`."""
    return where()


def tiny_interactions(seed: int = 0) -> list[tuple[str, str, int]]:
    """Rows (user, item, time): users walk through the items in small steps, so there is something to learn."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        item, met = int(generator.integers(N_ITEMS)), set()
        for time in range(int(generator.integers(5, 16))):
            while item in met:
                item = (item + int(generator.integers(1, 4))) % N_ITEMS
            met.add(item)
            rows.append((f"u{user:02d}", f"i{item:02d}", 100 + time))
    return rows


def write_interactions(folder: Path, name: str, rows: list[tuple[str, str, int]]) -> None:
    """Write rows (user, item, time) as the .inter file of data set `name` below `folder`."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_items(folder: Path, name: str) -> None:
    """Write an .item file with titles, brands and two code columns; item i03 has no text, i04 no code."""
    colours, things = ["red", "green", "blue", "black"], ["lamp", "tent", "ball", "rope", "bike"]
    lines = ["item_id:token\ttitle:token_seq\tbrand:token\timage_codes:token_seq\ttext_codes:token_seq"]
    for item in range(N_ITEMS):
        title = "" if item == 3 else f"{colours[item % 4]} {things[item // 8]} number {item}"
        image = "" if item == 4 else f"A_{item // 8} B_{item % 4}"
        lines.append(f"i{item:02d}\t{title}\t{'Acme' if item % 3 == 1 else ''}\t{image}\ta_{item // 5} b_{item % 5}")
    (folder / name / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_dataset(folder: Path, name: str = "tiny", rows: list[tuple[str, str, int]] | None = None) -> Path:
    """Write the tiny data set below `folder` and return `folder`."""
    write_interactions(folder, name, tiny_interactions() if rows is None else rows)
    write_items(folder, name)
    return folder


def settings(folder: Path, model: str = "BBQRec", **changes: object) -> dict:
    """Settings of a quick run on the tiny data set below `folder`, everything it writes below `folder` too."""
    base = dict(QUICK) if model == "BBQRec" else {"show_progress": False, "epochs": 2, "train_batch_size": 128}
    texts = {"text_fields": "title brand", "text_encoder": "tfidf"}
    place = {"data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    given = {"model": model, "dataset": "tiny", **base, **texts, **place, **changes}
    return {**given, MAY_BE_UNUSED: True}  # texts for models that read none, sizes of parts that a test leaves out


def arguments(folder: Path, **changes: object) -> list[str]:
    """The same as arguments of a command that names model and data set itself."""
    given = as_arguments(settings(folder, **changes))
    return [argument for argument in given if not argument.startswith(("--model=", "--dataset="))]


def as_arguments(given: dict) -> list[str]:
    """Those of the settings that the run uses, as arguments."""
    written = {key: f"--{key}={value}" for key, value in given.items() if key != MAY_BE_UNUSED}
    refused = usable(parse_command_line(list(written.values())))[1]
    return [argument for key, argument in written.items() if key not in refused]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes log/ and log_tensorboard/ into the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.set_num_threads(1)
    os.chdir(tmp_path_factory.mktemp("session"))  # where fixtures that several tests share run


@pytest.fixture(autouse=True, scope="module")
def _what_is_loaded_stays() -> None:
    """A run collects garbage before it measures memory: half its time, were all imported packages looked at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder (`data_path`) with the data set `tiny`; not to be changed by a test."""
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets; tests that ask for it are skipped where it is not there."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data sets are not at {REAL_DATA}")
    return REAL_DATA


def epoch_losses(model: Any, batches: Any, epochs: int, learning_rate: float) -> list[float]:
    """Train with plain AdamW; the sum of the batches' losses in each epoch."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=learning_rate), []
    for _ in range(epochs):
        losses.append(0.0)
        for batch in batches:
            optimizer.zero_grad()
            loss = model.calculate_loss(batch)
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    return losses
