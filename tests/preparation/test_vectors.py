"""Vectors computed elsewhere: both forms are read, and every mismatch between tokens and rows is an error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recbole_bbqrec import storage
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
    write_vectors(tmp_path / "half.safetensors", TOKENS, MATRIX.to(torch.bfloat16))
    for path in (tmp_path / "v.safetensors", tmp_path / "half.safetensors"):
        tokens, matrix = read_vectors(path)
        assert tokens == TOKENS and torch.equal(matrix, MATRIX) and matrix.dtype == torch.float32
    for end in ("", "\n", "\r\n"):
        path = npy(tmp_path, MATRIX.numpy().astype(">f8"), "\ufeff" + (end or "\n").join(TOKENS) + end)
        tokens, matrix = read_vectors(path)
        assert tokens == TOKENS and torch.equal(matrix, MATRIX)
    assert torch.equal(read_vectors(npy(tmp_path, MATRIX.int().numpy(), "b\nc\na"))[1], MATRIX)


@pytest.mark.parametrize(
    ("array", "tokens", "message"),
    {
        "count": (MATRIX.numpy(), "a\nb\n", "found 2 item tokens for 3 vectors"),
        "duplicate": (MATRIX.numpy(), "a\nb\na", "item 'a' of row 1 comes more than once"),
        "blank": (MATRIX.numpy(), "a\n\nb", "item '' of row 2 is no token"),
        "bytes": (MATRIX.numpy(), b"a\n\xff\nb", "can't decode byte 0xff.*tokens.txt"),
        "one dimension": (np.ones(3), "a\nb\nc", "expected numbers"),
        "no dimension": (np.ones((3, 0)), "a\nb\nc", "expected numbers"),
        "nan": (np.array([[0.0], [np.nan]]), "a\nb", "'b'.*not finite"),
        "overflow": (np.array([[0.0], [1e300]]), "a\nb", "'b'.*not finite"),
        "text": (np.array([["x"]]), "a", "found <U1"),
        "truth": (np.array([[True]]), "a", "found bool"),
        "pickle": (np.array([[{}]], dtype=object), "a", "no vectors that can be read"),
    }.values(),
)
def test_faults_of_npy(tmp_path: Path, array: np.ndarray, tokens: str | bytes, message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(InputError, match=message) as caught:
        read_vectors(npy(tmp_path, array, tokens))
    assert "\n" not in str(caught.value)


def test_faults_of_files(tmp_path: Path) -> None:
    path = npy(tmp_path, MATRIX.numpy(), "a\nb\nc")
    (tmp_path / "v.tokens.txt").unlink()
    with pytest.raises(InputError, match=r"No such file.*v\.tokens\.txt"):
        read_vectors(path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="no vectors that can be read"):
        read_vectors(path)
    np.savez(tmp_path / "z.npz", MATRIX.numpy())
    (tmp_path / "z.npz").replace(path)
    with pytest.raises(InputError, match="no vectors that can be read"):
        read_vectors(path)
    for name in ("none.npy", "none.safetensors"):
        with pytest.raises(InputError, match=r"[Nn]o such file"):
            read_vectors(tmp_path / name)
    for path in ("v.bin", "v"):
        with pytest.raises(InputError, match=r"expected \.npy or \.safetensors"):
            read_vectors(tmp_path / path)
    with pytest.raises(InputError, match=r"expected \.safetensors"):
        write_vectors(tmp_path / "v.npy", TOKENS, MATRIX)
    with pytest.raises(InputError, match="found 1 item tokens for 3"):
        write_vectors(tmp_path / "v.safetensors", ["a"], MATRIX)


def test_faults_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"

    def broken(message: str) -> None:
        with pytest.raises(InputError, match=f"no vectors that can be read .*{message}.*write_vectors"):
            read_vectors(path)

    path.write_bytes(b"junk")
    broken("not a readable safetensors file")
    save_file({"vectors": MATRIX}, path)
    broken("found a unknown file")
    storage.save(path, "vectors", {"matrix": MATRIX}, {})
    broken("vectors")
    storage.save(path, "vectors", {"vectors": MATRIX}, {})
    broken("item_tokens")
    storage.save(path, "vectors", {"vectors": MATRIX, "item_tokens": torch.tensor([255, 10], dtype=torch.uint8)}, {})
    broken("can't decode byte 0xff")
