import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import N_ITEMS, QUICK, settings, tiny_interactions

import recbole_bbqrec
from recbole_bbqrec import quick_start, registry, storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model import protocol
from recbole_bbqrec.model.catalogue import ItemFeatures
from recbole_bbqrec.serving.saving import try_bundle, write_bundle
from recbole_bbqrec.tokenizer.fit import Encoded
from recbole_bbqrec.training import checkpoint

N_THREADS = 8
SMALL_IDS = {key: value for key, value in QUICK.items() if key.startswith("sid_")} | {"attach_semantic_ids": True}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    place, changes = tmp_path_factory.mktemp("runs"), {"BBQRec": {"similarity_attention": "additive"}, "SASRec": {}}
    return {
        model: quick_start.run(config_dict=settings(tiny, model, checkpoint_dir=str(place), final=True, **more))
        for model, more in changes.items()
    }


@pytest.fixture
def bundle(runs):
    return recbole_bbqrec.load_bundle(runs["BBQRec"]["run_dir"])


@pytest.mark.parametrize("model", ["BBQRec", "SASRec"])
def test_a_bundle_ranks_as_the_run_did(runs, model, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs[model]["run_dir"], moved)
    loaded = recbole_bbqrec.load_bundle(moved)
    assert repr(loaded) == f"<Bundle of {model} on tiny: {N_ITEMS} items, {moved}>"
    users = {}
    for user, item, _ in sorted(tiny_interactions(), key=lambda row: (row[0], row[2])):
        users.setdefault(user, []).append(item)
    found = loaded.recommend([items[:-1] for items in users.values()], k=5)
    hits = [items[-1] in result.items for items, result in zip(users.values(), found, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(runs[model]["metrics"]["test"]["masked"]["recall@5"])


def test_seen_items_leave_or_stay(bundle):
    history = bundle.item_tokens[1:30]
    without = bundle.recommend([history], k=1000)[0]
    assert not set(without.items) & set(history) and len(without.items) == len(bundle.item_tokens) - 1 - len(history)
    everything = bundle.recommend([history], k=1000, exclude_seen=False)[0]
    assert sorted(everything.items) == sorted(bundle.item_tokens[1:])
    assert everything.scores == sorted(everything.scores, reverse=True)


def test_unknown_tokens_are_reported_and_not_fatal(bundle, caplog):
    known = bundle.item_tokens[1]
    mixed, only_unknown, empty = bundle.recommend([["nope", known, "never"], ["nope"], []], k=3)
    assert mixed.unknown == ["nope", "never"] and mixed.items == bundle.recommend([[known]], k=3)[0].items
    assert only_unknown == ([], [], ["nope"]) and empty == ([], [], [])
    assert "2 unknown item tokens" in caplog.text and "; known ones are like i" in caplog.text


def test_a_history_does_not_depend_on_its_neighbours(bundle):
    histories = [bundle.item_tokens[1:n] for n in (2, 5, 20)]
    together = bundle.recommend(histories, k=5)
    for history, result in zip(histories, together, strict=True):
        alone = bundle.recommend([history], k=5)[0]
        assert alone.items == result.items
        assert alone.scores == pytest.approx(result.scores, abs=1e-4)


def test_wrong_calls(bundle, tmp_path):
    with pytest.raises(InputError, match="expected a list of lists"):
        bundle.recommend(["B0048KGFHU"])
    with pytest.raises(InputError, match="k: found 0"):
        bundle.recommend([["i01"]], k=0)
    with pytest.raises(InputError, match=r"bundle\.json.*give the folder of a finished run"):
        recbole_bbqrec.load_bundle(tmp_path)


def test_a_bundle_is_complete_and_holds_no_pickle(runs, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(runs["BBQRec"]["run_dir"], folder)
    names = {path.name for path in folder.iterdir()}
    files = {"weights", "features", "semantic_ids", "tokenizer", "encoders", "items"}
    assert names == {f"{name}.safetensors" for name in files} | {"bundle.json"}
    content = json.loads((folder / "bundle.json").read_text())
    assert {"version", "format", "settings", "item_tokens"} <= set(content)
    content["format"] = 99
    (folder / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="format 99"):
        recbole_bbqrec.load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [content],
        lambda content: {**content, "settings": ["BBQRec"]},
        lambda content: {**content, "settings": {**content["settings"], "model": None}},
        lambda content: {**content, "item_tokens": "i01"},
        lambda content: {**content, "item_tokens": content["item_tokens"][1:]},
        lambda content: {"format": content["format"]},
    ],
    ids=["a list", "settings as a list", "no model", "tokens as a text", "no padding", "nothing else"],
)
def test_what_no_run_has_written_is_refused_in_one_line(small, change):
    place = small.folder / "bundle.json"
    place.write_text(json.dumps(change(json.loads(place.read_text()))))
    with pytest.raises(InputError) as error:
        recbole_bbqrec.load_bundle(small.folder)
    assert str(error.value).startswith(f"{place}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", -1, None])
def test_a_device_that_is_not_there_is_one_line(small, device):
    with pytest.raises(InputError, match=f"^device: {device!r} cannot be used here .*; take cpu") as error:
        recbole_bbqrec.load_bundle(small.folder, device)
    assert "\n" not in str(error.value)


def test_files_that_a_bundle_names_are_not_unpickled(small, monkeypatch):
    """RecBole's NeuMF reads weights from any file: no run leaves a bundle of it, but a stranger may."""
    sizes = {"user_id": 5, "item_id": len(small.item_tokens)}
    storage.save(
        small.folder / "stand_in.safetensors",
        "stand_in",
        {},
        {"uid_field": "user_id", "types": {}, "sizes": sizes, "lengths": {}},
    )
    content = json.loads((small.folder / "bundle.json").read_text())
    widths = {"mf_embedding_size": 2, "mlp_embedding_size": 2, "mlp_hidden_size": [2], "dropout_prob": 0.0}
    content["settings"] |= {"model": "NeuMF", "NEG_PREFIX": "neg_", "mf_train": True, "mlp_train": True, **widths}
    content["settings"] |= {"use_pretrain": True, "mf_pretrain_path": str(small.folder / "theirs.pth")}
    (small.folder / "bundle.json").write_text(json.dumps(content))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a file is unpickled"))
    with pytest.raises(InputError, match=r"NeuMF needs its data set; use load_data_and_model$"):
        recbole_bbqrec.load_bundle(small.folder)


def test_loading_a_bundle_draws_no_global_randomness_into_scores(runs):
    torch.manual_seed(1)
    one = recbole_bbqrec.load_bundle(runs["BBQRec"]["run_dir"]).recommend([["i01", "i05"]])
    torch.manual_seed(2)
    assert recbole_bbqrec.load_bundle(runs["BBQRec"]["run_dir"]).recommend([["i01", "i05"]]) == one


def test_new_items_are_ranked_and_read(bundle):
    ids, width = bundle.catalogue.semantic_ids, bundle.catalogue.features.matrices["text"].shape[1]
    torch.nn.init.normal_(bundle.model.similarity.weight)  # of the loaded model alone; the grown one reads the file
    vectors = torch.randn(len(ids.signals), 2, ids.vectors.shape[2], generator=torch.Generator().manual_seed(0))
    encoded = Encoded(ids.codes[[1, 1]], vectors, torch.ones(len(ids.signals), 2, dtype=torch.bool))
    text = ItemFeatures(["new", "newer"], {"text": torch.randn(2, width)}, {"text": torch.tensor([True, False])})
    bundle, grown = recbole_bbqrec.load_bundle(bundle.folder), bundle.grown(text, encoded)
    known = bundle.item_tokens[1:9]
    before, after = (one.recommend([known], k=1000, exclude_seen=False)[0] for one in (bundle, grown))
    assert set(after.items) == {*before.items, "new", "newer"}
    scores = dict(zip(after.items, after.scores, strict=True))
    assert [scores[item] for item in before.items] == pytest.approx(before.scores, abs=1e-5)
    one, other = grown.recommend([[*known, "new"], [*known, "newer"]])
    assert one.scores != other.scores and not one.unknown


def test_recboles_models_take_no_new_items(runs):
    with pytest.raises(InputError, match="new items: SASRec scores the items that it was trained with, no others"):
        recbole_bbqrec.load_bundle(runs["SASRec"]["run_dir"]).grown(ItemFeatures(["new"]))


def test_new_items_need_codes_of_their_own_where_codes_are_decoded(tiny, tmp_path):
    given = settings(tiny, "BBQRecGenerate", **{**QUICK, "epochs": 1}, checkpoint_dir=str(tmp_path), beam_size=0)
    bundle = recbole_bbqrec.load_bundle(quick_start.run(config_dict=given)["run_dir"])
    ids, new = bundle.catalogue.semantic_ids, ItemFeatures(["new"])
    vectors, present = torch.ones(len(ids.signals), 1, ids.vectors.shape[2]), torch.ones(len(ids.signals), 1) > 0
    with pytest.raises(InputError, match="share the ID of another one"):
        bundle.grown(new, Encoded(ids.codes[[1]], vectors, present))
    taken = set(map(tuple, ids.codes.tolist()))
    free = next(code for code in np.ndindex(*[ids.codebook_size] * ids.codes.shape[1]) if code not in taken)
    grown = bundle.grown(new, Encoded(torch.tensor([free]), vectors, present))
    assert "new" in grown.recommend([bundle.item_tokens[1:4]], k=1000)[0].items
    with pytest.raises(InputError, match="new items: found no codes"):
        bundle.grown(
            ItemFeatures(["new"], {"text": torch.ones(1, bundle.catalogue.features.matrices["text"].shape[1])})
        )


def test_a_model_that_needs_its_data_leaves_no_bundle_and_says_so(tiny, tmp_path, capsys):
    run = quick_start.run(config_dict=settings(tiny, "FPMC", checkpoint_dir=str(tmp_path), epochs=1))
    why = f"{run['run_dir']}: FPMC needs its data set (column user_id); use load_data_and_model"
    assert f"load_data_and_model({run['run_dir']!r})" in capsys.readouterr().out
    with pytest.raises(InputError) as error:
        recbole_bbqrec.load_bundle(run["run_dir"])
    assert str(error.value) == why


@pytest.mark.parametrize("kind", [AttributeError, KeyError])
@pytest.mark.parametrize("place", [(registry, "add_similarity"), (protocol.RecBoleRanker, "score")])
def test_a_mistake_of_ours_is_not_taken_for_a_model_that_needs_its_data(
    tiny, tmp_path, monkeypatch, caplog, kind, place
):
    def fail(*_, **__):
        raise kind("a mistake of ours")

    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path), similarity_attention="additive", **SMALL_IDS)
    config = Config(config_dict=given)
    data = registry.get_dataset("SASRec")(config)
    train, _, _ = split_loaders(config, data)
    checkpoint.save_weights(tmp_path / "weights.safetensors", registry.build_model(config, train._dataset), {})
    monkeypatch.setattr(*place, fail)
    write_bundle(tmp_path, config, data)
    try_bundle(tmp_path, config)  # the run it belongs to is finished and has its record
    (entry,) = [entry for entry in caplog.records if entry.levelname == "ERROR"]
    assert isinstance(entry.exc_info[1], kind) and not isinstance(entry.exc_info[1], InputError)
    assert not (tmp_path / "bundle.json").exists()


SHARED_BY_THREADS = {
    "dense": ("BBQRec", {"scoring": "dense"}),
    "joint": ("BBQRec", {"scoring": "joint"}),
    "codes": ("BBQRec", {"scoring": "codes"}),
    "beam": ("BBQRecGenerate", {**QUICK, "beam_size": 10}),
    "exact": ("BBQRecGenerate", {**QUICK, "beam_size": 0}),
    "TIGER": ("TIGER", {"n_layers": 1, "n_decoder_layers": 1, "sid_steps": 40, "report_card": False}),
    "TransitionGraph": ("TransitionGraph", {}),
    "SASRec": ("SASRec", {}),
    "SASRec with similarity": ("SASRec", {"similarity_attention": "additive", **SMALL_IDS}),
    "RepeatNet": ("RepeatNet", {}),  # keeps a part of every call in itself
}


@pytest.mark.parametrize(("model", "changes"), SHARED_BY_THREADS.values(), ids=SHARED_BY_THREADS)
def test_threads_share_a_bundle(tiny, untrained, model, changes):
    bundle = untrained(tiny, model, **changes)
    tokens = bundle.item_tokens[1:]
    calls = [([tokens[at : at + length] for length in range(1, 2 + at % 4)], 3 + at) for at in range(N_THREADS)]
    expected = [bundle.recommend(*call) for call in calls]
    started, before = threading.Barrier(N_THREADS), sys.getswitchinterval()

    def ask(call):
        started.wait()
        return [shared.recommend(*call) for _ in range(20)]

    shared = recbole_bbqrec.load_bundle(bundle.folder)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(N_THREADS) as pool:
            found = list(pool.map(ask, calls))
    finally:
        sys.setswitchinterval(before)
    assert len({tuple(answer[0].items) for answer in expected}) > 1
    assert found == [[answer] * 20 for answer in expected]
