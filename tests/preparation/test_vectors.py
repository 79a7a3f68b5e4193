"""Vectors computed elsewhere: both forms are read, and every mismatch between tokens and rows is an error."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation.vectors import read_vectors, write_vectors

TOKENS = ["b", "é x", "a"]
MATRIX = torch.arange(6, dtype=torch.float32).reshape(3, 2)


def npy(folder: Path, array: np.ndarray, tokens: str | bytes) -> Path:
    np.save(folder / "v.npy", array)
    (folder / "v.tokens.txt").write_bytes(tokens if isinstance(tokens, bytes) else tokens.encode())
    return folder / "v.npy"


def test_both_forms_come_back(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.safetensors", TOKENS, MATRIX.numpy().astype(np.float64))
    metadata = {"item_tokens": json.dumps(TOKENS)}
    save_file({"vectors": MATRIX.to(torch.bfloat16)}, tmp_path / "m.safetensors", metadata=metadata)
    paths = [tmp_path / "v.safetensors", tmp_path / "m.safetensors"]
    for end in ("", "\n", "\r\n"):
        paths.append(npy(tmp_path, MATRIX.numpy().astype(">f8"), "\ufeff" + (end or "\n").join(TOKENS) + end))
        tokens, matrix = read_vectors(paths[-1])
        assert tokens == TOKENS and torch.equal(matrix, MATRIX)
    for path in paths[:2]:
        tokens, matrix = read_vectors(path)
        assert tokens == TOKENS and torch.equal(matrix, MATRIX) and matrix.dtype == torch.float32
    assert torch.equal(read_vectors(npy(tmp_path, MATRIX.int().numpy(), "b\nc\na"))[1], MATRIX)


@pytest.mark.parametrize(
    ("array", "tokens", "message"),
    {
        "count": (MATRIX.numpy(), "a\nb\n", "found 2 item tokens for 3 vectors"),
        "duplicate": (MATRIX.numpy(), "a\nb\na", "item token 'a' is both row 1 and 3"),
        "blank": (MATRIX.numpy(), "a\n\nb", "item token 2 is ''"),
        "bytes": (MATRIX.numpy(), b"a\n\xff\nb", "byte 0xff, expected UTF-8"),
        "one dimension": (np.ones(3), "a\nb\nc", "expected numbers"),
        "no dimension": (np.ones((3, 0)), "a\nb\nc", "expected numbers"),
        "nan": (np.array([[0.0], [np.nan]]), "a\nb", "'b'.*not finite"),
        "overflow": (np.array([[0.0], [1e300]]), "a\nb", "'b'.*not finite"),
        "text": (np.array([["x"]]), "a", "found <U1"),
        "pickle": (np.array([[{}]], dtype=object), "a", "not an array of numbers"),
    }.values(),
)
def test_faults_of_npy(tmp_path: Path, array: np.ndarray, tokens: str | bytes, message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(InputError, match=message) as caught:
        read_vectors(npy(tmp_path, array, tokens))
    assert "\n" not in str(caught.value)


def test_faults_of_files(tmp_path: Path) -> None:
    path = npy(tmp_path, MATRIX.numpy(), "a\nb\nc")
    (tmp_path / "v.tokens.txt").unlink()
    with pytest.raises(InputError, match=r"v\.tokens\.txt: no such file"):
        read_vectors(path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="not an array of numbers"):
        read_vectors(path)
    with pytest.raises(InputError, match="no such file"):
        read_vectors(tmp_path / "none.npy")
    for path in ("v.bin", "v"):
        with pytest.raises(InputError, match=r"expected \.npy or \.safetensors"):
            read_vectors(tmp_path / path)
    with pytest.raises(InputError, match=r"expected \.safetensors"):
        write_vectors(tmp_path / "v.npy", TOKENS, MATRIX)
    with pytest.raises(InputError, match="found 1 item tokens for 3"):
        write_vectors(tmp_path / "v.safetensors", ["a"], MATRIX)


def test_faults_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_vectors(path)
    save_file({"matrix": MATRIX}, path)
    with pytest.raises(InputError, match="found the tensors matrix, expected `vectors`"):
        read_vectors(path)
    for metadata in (None, {"item_tokens": "no json"}, {"item_tokens": '{"a": 1}'}, {"item_tokens": "[1, 2, 3]"}):
        save_file({"vectors": MATRIX}, path, metadata=metadata)
        with pytest.raises(InputError, match="tokens"):
            read_vectors(path)
    save_file({"vectors": MATRIX, "item_tokens": torch.tensor([255, 10], dtype=torch.uint8)}, path)
    with pytest.raises(InputError, match="unreadable"):
        read_vectors(path)
