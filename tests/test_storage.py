import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recbole_bbqrec import storage
from recbole_bbqrec.errors import InputError


def test_round_trip(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(1.5), "c": torch.ones(2, dtype=torch.bool)}
    storage.save(tmp_path / "new" / "x.safetensors", "thing", tensors, {"names": ["ü", "b"], "n": 1})
    loaded, header = storage.load(tmp_path / "new" / "x.safetensors", "thing")
    assert header == {"names": ["ü", "b"], "n": 1}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert os.listdir(tmp_path / "new") == ["x.safetensors"]


def test_tensors_may_share_their_memory(tmp_path):
    whole = torch.arange(6.0)
    tensors = {"a": whole, "b": whole[2:5], "c": whole.view(2, 3), "d": whole[:0], "e": torch.zeros(0)}
    storage.save(tmp_path / "x", "thing", tensors, {})
    loaded, _ = storage.load(tmp_path / "x", "thing")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_equal_content_gives_equal_files(tmp_path):
    tensors = {name: torch.arange(3) for name in "abcdef"}
    for name in ("x", "y"):
        storage.save(tmp_path / name, "thing", tensors, {"one": 1, "two": [2], "three": {"b": 1, "a": 2}})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle"])
def test_damaged_files_are_refused_with_what_to_do(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    storage.save(path, "thing", {"a": torch.ones(100)}, {})
    content = {"cut": path.read_bytes()[:-50], "empty": b"", "text": b"not a tensor file at all"}
    if damage == "pickle":
        torch.save({"a": torch.ones(2)}, path)
    else:
        path.write_bytes(content[damage])
    with pytest.raises(InputError, match=r"x\.safetensors: not a readable .* delete it and run again"):
        storage.load(path, "thing")


def test_another_kind_or_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    storage.save(path, "thing", {"a": torch.ones(1)}, {})
    with pytest.raises(InputError, match="found a thing file of format 2, expected a weights file"):
        storage.load(path, "weights")
    monkeypatch.setattr(storage, "FORMAT", 3)
    with pytest.raises(InputError, match="found a thing file of format 2, expected a thing file of format 3"):
        storage.load(path, "thing")
    with pytest.raises(InputError, match="no such file"):
        storage.load(tmp_path / "none", "thing")


@pytest.mark.parametrize("entry", ["[]", '"text"', '{"kind": "weights", "format": 2}', "{}"])
def test_files_of_others_are_refused(tmp_path, entry):
    save_file({"a": torch.ones(1)}, tmp_path / "a", metadata={"recbole_bbqrec": entry})
    with pytest.raises(InputError, match="expected a weights file of format 2; delete it"):
        storage.load(tmp_path / "a", "weights")


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    storage.save(path, "thing", {"a": torch.zeros(3)}, {"version": "old"})
    script = f"""
        import os, torch
        from recbole_bbqrec import storage
        write = storage.save_file
        def half(tensors, name, **rest):
            write(tensors, name, **rest)
            with open(name, "r+b") as file:
                file.truncate(10)
            os._exit(9)  # as abrupt as a kill
        storage.save_file = half
        storage.save({str(path)!r}, "thing", {{"a": torch.ones(3)}}, {{"version": "new"}})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == 9
    tensors, header = storage.load(path, "thing")
    assert header == {"version": "old"} and torch.equal(tensors["a"], torch.zeros(3))


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        storage.write_json(tmp_path / "x.json", {"bad": object()})
    assert os.listdir(tmp_path) == []
    storage.write_json(tmp_path / "x.json", {"good": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"good": 1}


def test_fingerprint_changes_with_content_and_with_nothing_else(tmp_path):
    one = {"b": torch.ones(2), "a": np.arange(3)}
    assert storage.fingerprint(one) == storage.fingerprint(dict(reversed(one.items())))
    different = [
        {"a": 1},
        {"a": 1.5},
        {"a": "1"},
        {"b": 1},
        [1, 2],
        [2, 1],
        torch.ones(2),
        torch.ones(1, 2),
        torch.ones(2).double(),
        np.zeros(2),
        b"a",
        None,
    ]
    assert len({storage.fingerprint(part) for part in different}) == len(different)
    for unknown in (object(), np.array([{}])):
        with pytest.raises(TypeError):
            storage.fingerprint(unknown)
    (tmp_path / "f").write_text("x")
    before = storage.fingerprint(tmp_path / "f")
    (tmp_path / "f").write_text("y")
    assert storage.fingerprint(tmp_path / "f") != before


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two rooms in which `rooms.top` imports `below`, and `aside` is imported by nobody."""
    monkeypatch.setattr(storage, "__file__", str(tmp_path / "storage.py"))
    storage.source_fingerprint.cache_clear()
    for name, text in {"rooms/top.py": "from ..below import x", "below.py": "x = 1", "aside.py": "y = 1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    storage.source_fingerprint.cache_clear()


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("below.py", '"""What it is."""\n\nx = (\n    1  # one\n)\n', False),
        ("aside.py", "y = 2", False),
        ("below.py", "x = 2", True),
        ("rooms/top.py", "def late():\n    from ..below import x", True),
    ],
)
def test_source_fingerprint_follows_imports_and_knows_code_from_words(package, file, text, changes):
    before = storage.source_fingerprint("recbole_bbqrec.rooms.top")
    (package / file).write_text(text)
    storage.source_fingerprint.cache_clear()
    assert (storage.source_fingerprint("recbole_bbqrec.rooms.top") != before) == changes


def test_source_fingerprint_of_a_tokenizer_leaves_its_figures_out():
    def modules(name):
        seen, waiting = set(), {f"recbole_bbqrec.{name}"}
        while waiting:
            seen.add(module := waiting.pop())
            tree = storage.ast.parse(storage._file_of(module).read_bytes())
            waiting |= storage._imported(tree, module) - seen
        return {module.removeprefix("recbole_bbqrec.") for module in seen}

    codes = modules("tokenizer.fit")
    assert {"tokenizer.residual_quantizer", "tokenizer.losses", "storage"} <= codes
    assert not any("report" in name for name in codes)
    deciding = modules("registry")
    assert {"model.bbqrec", "training.sequence_trainer", "data.features"} <= deciding
    assert not {"cli", "preparation.tables", "preparation.download", "serving.bundle"} & deciding
    assert not any(name.startswith("experiments") for name in deciding)
