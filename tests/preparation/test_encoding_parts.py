"""Encoding that goes on where it stopped: the same numbers, and no batch twice."""

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
from recbole_bbqrec.preparation import encoding_parts
from recbole_bbqrec.preparation.encoding_parts import Parts, assemble, count_batches, in_batches

N_ROWS, BATCH = 11, 2
ORDER = [7, 3, 10, 1, 0, 4, 8, 2, 6]  # rows 5 and 9 have nothing
BAD = {1: "no picture: 1 x 1 pixels", 0: "OSError: cut"}  # half of batch 1 and of batch 2


class Encoder:
    """Rows become (row, 2 row); `BAD` ones have no features. It notes its batches and stops before number `stop`."""

    def __init__(self, stop: int = 99, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.batches: list[list[int]] = []
        self.stop, self.error = stop, error

    def __call__(self, rows: list[int]) -> tuple[list[int], torch.Tensor | None, dict[int, str]]:
        if len(self.batches) == self.stop:
            raise self.error
        self.batches.append(rows)
        good = [row for row in rows if row not in BAD]
        features = torch.tensor([[row, 2 * row] for row in good], dtype=torch.float32) if good else None
        return good, features, {row: BAD[row] for row in rows if row in BAD}


def encode(encoder: Callable, parts: Parts | None) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    return assemble(in_batches(ORDER, BATCH, encoder, "fake", "cpu", parts), N_ROWS)


def is_whole(found: tuple[torch.Tensor, torch.Tensor, dict[int, str]]) -> bool:
    good = [row for row in ORDER if row not in BAD]
    expected = torch.zeros(N_ROWS, 2)
    expected[good] = torch.tensor([[row, 2 * row] for row in good], dtype=torch.float32)
    matrix, known, bad = found
    return torch.equal(matrix, expected) and known.nonzero()[:, 0].tolist() == sorted(good) and bad == BAD


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path / "features-image-1234.parts", "1234")


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is kept as a part of its own."""
    monkeypatch.setattr(encoding_parts, "SECONDS_PER_PART", -1.0)


def names(parts: Parts) -> list[str]:
    return sorted(path.name for path in parts.folder.iterdir()) if parts.folder.is_dir() else []


def test_what_takes_a_moment_writes_no_part(parts: Parts) -> None:
    encoder = Encoder()
    assert is_whole(encode(encoder, parts)) and names(parts) == []
    assert encoder.batches == [[7, 3], [10, 1], [0, 4], [8, 2], [6]]
    assert is_whole(encode(Encoder(), None))
    assert [count_batches(rows, 2) for rows in (0, 1, 2, 9)] == [0, 1, 1, 5]


def test_parts_are_written_as_time_passes(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(encoding_parts.time, "monotonic", lambda: next(clock))  # a look at the clock takes a second
    monkeypatch.setattr(encoding_parts, "SECONDS_PER_PART", 1.5)
    assert is_whole(encode(Encoder(), parts))
    assert names(parts) == ["000000.safetensors", "000002.safetensors"]  # the rest goes into the whole
    assert [(piece.start, piece.stop) for piece in parts.read(5)] == [(0, 2), (2, 4)]


@pytest.mark.parametrize("stop", range(5))
def test_a_stopped_encoding_goes_on(parts: Parts, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(Encoder(stop), parts)
    assert len(names(parts)) == (stop > 0)
    rest = Encoder()
    assert is_whole(encode(rest, parts))
    assert rest.batches == [ORDER[at : at + BATCH] for at in range(stop * BATCH, len(ORDER), BATCH)]
    parts.drop()
    assert not parts.folder.exists()
    parts.drop()


@pytest.mark.usefixtures("every_batch")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 3), max_size=4), lost=st.sets(st.integers(0, 4)))
def test_any_number_of_stops_and_lost_parts(parts: Parts, stops: list[int], lost: set[int]) -> None:
    parts.drop()
    for stop in stops:
        encoder = Encoder(stop)
        try:
            encode(encoder, parts)
        except KeyboardInterrupt:
            assert len(encoder.batches) == stop
    for at in lost:
        (parts.folder / f"{at:06d}.safetensors").unlink(missing_ok=True)
    kept = {at for piece in parts.read(5) for at in range(piece.start, piece.stop)}
    encoder = Encoder()
    assert is_whole(encode(encoder, parts)) and len(encoder.batches) == 5 - len(kept)


def damaged(path: Path, how: str) -> None:
    tensors, header = storage.load(path, "encoding part")
    changes: dict[str, Any] = {
        "inputs": {"inputs": "other"},
        "range": {"start": 0, "stop": 2},
        "reasons": {"bad": []},
        "no rows": {"stop": header["start"]},
        "text": {"start": "x"},
    }
    if how in changes:
        storage.save(path, "encoding part", tensors, {**header, **changes[how]})
    elif how == "kind":
        storage.save(path, "features", tensors, header)
    elif how == "values":
        storage.save(path, "encoding part", {**tensors, "features": tensors["features"] + 1}, header)
    elif how == "without":
        storage.save(path, "encoding part", {"rows": tensors["rows"]}, header)
    else:
        path.write_bytes(path.read_bytes()[:-7] if how == "cut" else b"")


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize(
    "how", ["inputs", "range", "reasons", "no rows", "text", "kind", "values", "without", "cut", "empty"]
)
def test_a_part_that_cannot_be_trusted_is_computed_again(
    parts: Parts, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(Encoder(4), parts)
    damaged(parts.folder / "000001.safetensors", how)
    encoder = Encoder()
    assert is_whole(encode(encoder, parts)) and encoder.batches == [[10, 1], [6]]
    assert "000001.safetensors: not a part of this encoding, or damaged" in caplog.text


@pytest.mark.usefixtures("every_batch")
def test_parts_beyond_the_end_or_over_another_are_not_taken(parts: Parts) -> None:
    encode(Encoder(), parts)
    assert [piece.start for piece in parts.read(5)] == [0, 1, 2, 3]
    assert [piece.start for piece in parts.read(3)] == [0, 1, 2]
    first = parts.read(5)[0]
    parts.keep(first._replace(stop=3))
    assert [(piece.start, piece.stop) for piece in parts.read(5)] == [(0, 3), (3, 4)]


@pytest.mark.usefixtures("every_batch")
def test_a_part_that_cannot_be_written_stops_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    assert is_whole(encode(Encoder(), parts)) and "I/O error: No space left on device" in caplog.text
    assert not list(parts.folder.iterdir())


def test_features_that_are_not_finite_are_never_kept(parts: Parts) -> None:
    def broken(rows: list[int]) -> tuple[list[int], torch.Tensor, dict[int, str]]:
        return rows, torch.full((len(rows), 2), float("inf") if 8 in rows else 0.0), {}

    with pytest.raises(InputError, match="fake: its features are not finite"):
        encode(broken, parts)
    assert [(piece.start, piece.stop) for piece in parts.read(5)] == [(0, 3)]


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

    monkeypatch.setattr(encoding_parts.torch, "autocast", Autocast)
    matrix, _, _ = assemble(in_batches(ORDER, BATCH, in_half, "fake", device), N_ROWS)
    assert asked == [(device.partition(":")[0], torch.float16, half), "on", "off"]
    assert matrix.dtype == torch.float32


def test_nothing_to_encode(parts: Parts) -> None:
    matrix, known, bad = assemble(in_batches([], BATCH, Encoder(), "fake", "cpu", parts), 3)
    assert matrix.shape == (3, 0) and not known.any() and bad == {}
