"""Encoding that goes on where it stopped: the same numbers, and no batch twice."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from recbole_bbqrec import storage
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import encoders
from recbole_bbqrec.preparation.encoders import encode_in_batches, read_parts

N_ROWS, BATCH = 11, 2
ORDER = [7, 3, 10, 1, 0, 4, 8, 2, 6]  # rows 5 and 9 have nothing
BAD = {1: "no picture: 1 x 1 pixels", 0: "OSError: cut"}  # half of batch 1 and of batch 2


class Encoder:
    """Rows become (row, 2 row); `BAD` ones have no features. It notes its batches and stops before number `stop`."""

    def __init__(self, stop: int = 99, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.batches: list[list[int]] = []
        self.stop, self.error = stop, error

    def __call__(self, rows: list[int]) -> tuple[list[int], torch.Tensor, dict[int, str]]:
        if len(self.batches) == self.stop:
            raise self.error
        self.batches.append(rows)
        good = [row for row in rows if row not in BAD]
        features = torch.tensor([[row, 2 * row] for row in good], dtype=torch.float32) if good else torch.zeros(0)
        return good, features, {row: BAD[row] for row in rows if row in BAD}


def encode(encoder: Callable, parts: Path | None) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    return encode_in_batches(ORDER, N_ROWS, encoder, Path("fake"), "cpu", BATCH, parts)


def is_whole(found: tuple[torch.Tensor, torch.Tensor, dict[int, str]]) -> bool:
    good = [row for row in ORDER if row not in BAD]
    expected = torch.zeros(N_ROWS, 2)
    expected[good] = torch.tensor([[row, 2 * row] for row in good], dtype=torch.float32)
    matrix, known, bad = found
    return torch.equal(matrix, expected) and known.nonzero()[:, 0].tolist() == sorted(good) and bad == BAD


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return tmp_path / "features-image-1234.parts"


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is kept as a part of its own."""
    monkeypatch.setattr(encoders, "SECONDS_PER_PART", -1.0)


def kept(parts: Path) -> list[list[int]]:
    """Rows of the pieces that are kept, each in the order of encoding."""
    pieces = [sorted([*rows, *bad], key=ORDER.index) for rows, _, bad in read_parts(parts)]
    return sorted(pieces, key=lambda rows: ORDER.index(rows[0]))


def part_of(parts: Path, row: int) -> Path:
    """The file that holds a row."""
    (path,) = (path for path in parts.iterdir() if row in storage.load(path, "encoding part")[0]["rows"])
    return path


def test_what_takes_a_moment_writes_no_part(parts: Path) -> None:
    encoder = Encoder()
    assert is_whole(encode(encoder, parts)) and not parts.exists()
    assert encoder.batches == [[7, 3], [10, 1], [0, 4], [8, 2], [6]]
    assert is_whole(encode(Encoder(), None))


def test_parts_are_written_as_time_passes(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(encoders.time, "monotonic", lambda: next(clock))  # a look at the clock takes a second
    monkeypatch.setattr(encoders, "SECONDS_PER_PART", 1.5)
    assert is_whole(encode(Encoder(), parts))
    assert kept(parts) == [[7, 3], [10, 1, 0, 4]]


@pytest.mark.parametrize("stop", range(5))
def test_a_stopped_encoding_goes_on(parts: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(Encoder(stop), parts)
    assert kept(parts) == ([ORDER[: stop * BATCH]] if stop else [])
    rest = Encoder()
    assert is_whole(encode(rest, parts))
    assert rest.batches == [ORDER[at : at + BATCH] for at in range(stop * BATCH, len(ORDER), BATCH)]


@pytest.mark.usefixtures("every_batch")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 3), max_size=4), lost=st.sets(st.integers(0, 4)))
def test_any_number_of_stops_and_lost_parts(parts: Path, stops: list[int], lost: set[int]) -> None:
    shutil.rmtree(parts, ignore_errors=True)
    for stop in stops:
        encoder = Encoder(stop)
        try:
            encode(encoder, parts)
        except KeyboardInterrupt:
            assert len(encoder.batches) == stop
    for at, path in enumerate(sorted(parts.glob("*"))):
        if at in lost:
            path.unlink()
    encoder, left = Encoder(), len(kept(parts))
    assert is_whole(encode(encoder, parts)) and len(encoder.batches) == 5 - left


def damaged(path: Path, how: str) -> None:
    tensors, header = storage.load(path, "encoding part")
    changes: dict[str, Any] = {"other reasons": {"bad": {}}, "no reasons": {}, "a list": {"bad": []}}
    if how in changes:
        storage.save(path, "encoding part", tensors, changes[how])
    elif how == "kind":
        storage.save(path, "features", tensors, header)
    elif how == "values":
        storage.save(path, "encoding part", {**tensors, "features": tensors["features"] + 1}, header)
    elif how == "rows":
        storage.save(path, "encoding part", {**tensors, "rows": tensors["rows"] + 1}, header)
    elif how == "without":
        storage.save(path, "encoding part", {"rows": tensors["rows"]}, header)
    else:
        path.write_bytes(path.read_bytes()[:-7] if how == "cut" else b"")


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize(
    "how", ["other reasons", "no reasons", "a list", "kind", "values", "rows", "without", "cut", "empty"]
)
def test_a_part_that_cannot_be_trusted_is_computed_again(
    parts: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(Encoder(4), parts)
    path = part_of(parts, 10)
    damaged(path, how)
    encoder = Encoder()
    assert is_whole(encode(encoder, parts)) and encoder.batches == [[10, 1], [6]]
    assert f"{path.name}: not a part of this encoding, or damaged" in caplog.text


@pytest.mark.usefixtures("every_batch")
def test_parts_of_other_inputs_are_not_taken(parts: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(Encoder(4), parts)
    other = shutil.copytree(parts, parts.with_name("features-image-5678.parts"))
    encoder = Encoder()
    assert read_parts(other) == [] and is_whole(encode(encoder, other)) and len(encoder.batches) == 5


@pytest.mark.usefixtures("every_batch")
def test_a_part_that_cannot_be_written_stops_nothing(
    parts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    assert is_whole(encode(Encoder(), parts)) and "I/O error: No space left on device" in caplog.text
    assert not list(parts.iterdir())


def test_features_that_are_not_finite_are_never_kept(parts: Path) -> None:
    def broken(rows: list[int]) -> tuple[list[int], torch.Tensor, dict[int, str]]:
        return rows, torch.full((len(rows), 2), float("inf") if 8 in rows else 0.0), {}

    with pytest.raises(InputError, match="fake: its features are not finite"):
        encode(broken, parts)
    assert kept(parts) == [[7, 3, 10, 1, 0, 4]]


@pytest.mark.parametrize(("device", "half"), [("cuda:0", True), ("cpu", False)])
def test_half_precision_is_for_gpus(monkeypatch: pytest.MonkeyPatch, device: str, half: bool) -> None:
    asked = []

    class Autocast:
        def __init__(self, kind: str, dtype: torch.dtype, enabled: bool) -> None:
            asked.append((kind, dtype, enabled))

        def __enter__(self) -> None:
            asked.append("on")

        def __exit__(self, *_: object) -> None:
            asked.append("off")

    def in_half(rows: list[int]) -> tuple[list[int], torch.Tensor, dict[int, str]]:
        assert asked[-1] == "on"
        return rows, torch.ones(len(rows), 2, dtype=torch.float16), {}

    monkeypatch.setattr(encoders.torch, "autocast", Autocast)
    matrix, _, _ = encode_in_batches(ORDER, N_ROWS, in_half, Path("fake"), device, BATCH)
    assert asked == [(device.partition(":")[0], torch.float16, half), "on", "off"]
    assert matrix.dtype == torch.float32


def test_nothing_to_encode(parts: Path) -> None:
    matrix, known, bad = encode_in_batches([], 3, Encoder(), Path("fake"), "cpu", BATCH, parts)
    assert matrix.shape == (3, 0) and not known.any() and bad == {}
