"""What an exported model gives in onnxruntime and numpy, against the bundle it came from."""

import json
import sys

import numpy as np
import pytest
from conftest import QUICK
from safetensors.numpy import load_file

from recbole_bbqrec import cli
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.second_stage.hashing import hashes_of
from recbole_bbqrec.second_stage.ranker import BoostedRanker
from recbole_bbqrec.second_stage.trees import Trees
from recbole_bbqrec.serving import export as export_module
from recbole_bbqrec.serving.export import ENCODER, export

onnxruntime = pytest.importorskip("onnxruntime")
SMALL = {"hidden_size": 16, "inner_size": 32, "n_layers": 1}
EXPORTED = {
    "joint": ("BBQRec", {"scoring": "joint", "similarity_attention": "additive", "second_stage": "off"}),
    "dense": ("BBQRec", {"scoring": "dense", "score_function": "dot", "similarity_attention": "undiscretised"}),
    "SASRecPlus": ("SASRecPlus", SMALL),
    "UniSRec": ("UniSRec", {**SMALL, "feature_dim": 16}),
    "SASRec": ("SASRec", {}),
}


class Exported:
    """An exported folder as a program without torch uses it."""

    def __init__(self, folder):
        self.about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        items = load_file(folder / "item_vectors.safetensors")
        self.vectors, self.ties, self.tokens = items["vectors"], items["tie_order"], self.about["item_tokens"]
        self.encoder = onnxruntime.InferenceSession(folder / ENCODER, providers=["CPUExecutionProvider"])

    def rank(self, histories):
        """All items after histories of item tokens, best first."""
        number = {token: at for at, token in enumerate(self.tokens)}
        recent = [[number[token] for token in history][-self.about["max_length"] :] for history in histories]
        padded = np.zeros((len(recent), max(map(len, recent))), np.int64)
        for row, history in zip(padded, recent, strict=True):
            row[: len(history)] = history
        scores = self.encoder.run(None, {"histories": padded})[0] @ self.vectors.T
        scores[:, 0] = -np.inf
        for row, history in zip(scores, histories, strict=True):
            row[[number[token] for token in history]] = -np.inf
        return [[self.tokens[item] for item in np.lexsort((self.ties, -row)) if row[item] > -np.inf] for row in scores]


@pytest.mark.parametrize(("model", "changes"), EXPORTED.values(), ids=EXPORTED)
def test_onnxruntime_ranks_as_the_bundle_does(tiny, untrained, tmp_path, model, changes):
    bundle = untrained(tiny, model, **{"MAX_ITEM_LIST_LENGTH": 12, **changes})
    export(bundle, tmp_path / "out")
    exported, tokens = Exported(tmp_path / "out"), bundle.item_tokens
    histories = [[tokens[1 + (5 * at + step) % 39] for step in range(at)] for at in range(1, 16)]
    expected = [found.items for found in bundle.recommend(histories, k=len(tokens))]
    assert exported.rank(histories) == expected
    assert [exported.rank([history])[0] for history in histories] == expected


@pytest.fixture
def no_encoder(monkeypatch):
    """All but the encoder is written, which takes seconds."""
    monkeypatch.setattr(export_module, "_write_encoder", lambda *_: None)


def test_the_numbers_of_a_second_stage_come_as_they_are(tiny, untrained, tmp_path, no_encoder):
    bundle, text = untrained(tiny, "SASRec"), "tree\nversion=v4\n"
    stage = BoostedRanker({}, (), hashes_of(bundle.item_tokens))
    stage.trees.append(Trees._of_text(text))
    bundle.model.second_stage = stage
    export(bundle, tmp_path / "out")
    about = json.loads((tmp_path / "out/export.json").read_text(encoding="utf-8"))["second_stage"]
    assert (about["form"], about["trees"]) == ("gbdt", ["trees.0.txt"])
    assert (tmp_path / "out/trees.0.txt").read_text(encoding="utf-8") == text
    numbers = load_file(tmp_path / "out" / about["tensors"])
    assert {*numbers} == {*stage.state_dict()} - {"trees.0.content"}
    assert np.array_equal(numbers["folds.item_hashes"], stage.folds.item_hashes)


def test_the_command_writes_a_new_folder_and_no_other(tiny, untrained, tmp_path, no_encoder, capsys):
    folder, out = untrained(tiny, "SASRec").folder, tmp_path / "out"
    assert cli.main(["export", str(folder), "--format=onnx", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}: export.json, item_vectors.safetensors\n"
    assert cli.main(["export", str(folder), f"--out={out}"]) == 2
    assert f"{out}: exists already" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "changes"), [("BBQRecGenerate", QUICK), ("Pop", {}), ("RepeatNet", {})])
def test_a_model_without_vectors_is_refused_and_leaves_nothing(tiny, untrained, tmp_path, model, changes):
    bundle = untrained(tiny, model, **changes)
    with pytest.raises(InputError, match="export: found a model whose scores are no products"):
        export(bundle, tmp_path / "out")
    assert not any(tmp_path.glob("*out*"))


def test_without_onnx_there_is_one_line_and_no_folder(tiny, untrained, tmp_path, monkeypatch):
    bundle = untrained(tiny, "SASRec")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"export: found no onnxscript; pip install 'recbole-bbqrec\[export\]'"):
        export(bundle, tmp_path / "out")
    assert not any(tmp_path.glob("*out*"))
