"""Bundles whose model carries a second stage by trees: the same lists from everything that asks, and their reasons."""

import copy
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
import torch

import recbole_bbqrec
from recbole_bbqrec import cli, quick_start, storage
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import ItemFeatures
from recbole_bbqrec.model.protocol import RecBoleRanker, ranker_of
from recbole_bbqrec.second_stage import ranker as ranker_module
from recbole_bbqrec.second_stage import socket, trees
from recbole_bbqrec.second_stage.boosted_fit import collect, fit_trees
from recbole_bbqrec.second_stage.ranker import FOLDS
from recbole_bbqrec.second_stage.reasons import OWN_SCORE, words_of
from recbole_bbqrec.serving.lists import known_histories, write_lists
from recbole_bbqrec.settings import plain_settings
from recbole_bbqrec.training import checkpoint

MODELS = ("SASRecPlusFT", "SASRec", "TransitionGraph")
SIZES = {"SASRecPlusFT": {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "feature_dim": 16}}
WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer candidates than the tiny catalogue has items, and trees that learn from a few dozen histories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker_module, "BEST", 12)
        patch.setattr(ranker_module, "COUNTED", 6)
        patch.setattr(trees, "LEAST_IN_LEAF", 5)
        yield


@pytest.fixture(scope="module")
def folders(tiny, untrained):
    """Folders of bundles by model, a second stage in each."""
    return {model: boosted(untrained(tiny, model, **SIZES.get(model, {}))) for model in MODELS}


def boosted(bundle):
    """Fit trees to the model of an untrained bundle, worth having or not, and write them into its weights."""
    changes = {"second_stage": "gbdt", "candidate_similarity": ["behavior", "text"]}
    if bundle.settings["model"] == "SASRec":
        changes["candidate_similarity"] = ["behavior"]
    settings = {**bundle.settings, **changes}
    config, _, _, train, valid, _ = quick_start.load_data_and_model(bundle.folder, {"second_stage": "off"})
    stage, model = socket.build(settings, train._dataset), bundle.model
    histories, targets = valid._dataset.lists(), valid._dataset.inter_feat[model.ITEM_ID]
    with torch.no_grad():
        examples = collect(stage, socket._first_stage(model, config), histories, targets)
    of_all = np.ones(len(examples.fold), bool)
    stage.trees = torch.nn.ModuleList(
        fit_trees(examples, of_all if fold == FOLDS else examples.fold != fold, stage.features, 10, 1)
        for fold in range(FOLDS + 1)
    )
    stage.folds.fitted = stage.folds.hashes(histories).unique()
    socket.attach(model, stage)
    checkpoint.save_weights(bundle.folder / WEIGHTS, model, {"settings": plain_settings(config)})
    return bundle.folder


@pytest.fixture(params=MODELS)
def bundle(folders, request):
    return recbole_bbqrec.load_bundle(folders[request.param])


@pytest.fixture
def features(folders):
    """The bundle of the model that reads texts."""
    return recbole_bbqrec.load_bundle(folders["SASRecPlusFT"])


def histories_of(bundle):
    tokens = bundle.item_tokens
    return [tokens[1:2], [tokens[5], tokens[2], tokens[5]], tokens[3:9], tokens[1:] * 2, tokens[10:7:-1]]


def test_all_that_asks_gets_the_same_numbers(bundle, tmp_path):
    histories = histories_of(bundle)
    lists, scores = bundle.recommend(histories, k=1000, exclude_seen=False), bundle.scores(histories)
    place = {token: at for at, token in enumerate(bundle.item_tokens[1:])}
    for found, row in zip(lists, scores, strict=True):
        assert sorted(found.items) == sorted(bundle.item_tokens[1:]), "all items, though few are candidates"
        assert found.scores == [row[place[item]] for item in found.items] and np.isfinite(row).all()
    allowed = bundle.item_tokens[4:20]
    for found, chosen in zip(lists, bundle.recommend(histories, None, False, allowed), strict=True):
        assert chosen.items == [item for item in found.items if item in allowed]
    for history, unseen, found in zip(histories, bundle.recommend(histories, k=1000), lists, strict=True):
        assert unseen.items == [item for item in found.items if item not in history]
    some = bundle.scores(histories, bundle.item_tokens[7:3:-1])
    np.testing.assert_array_equal(some, scores[:, [place[item] for item in bundle.item_tokens[7:3:-1]]])
    users = known_histories(bundle)
    write_lists(tmp_path / "lists.csv", bundle, users, k=4)
    of_users = bundle.recommend(users.values(), k=4)
    table = pl.read_csv(tmp_path / "lists.csv")
    assert table["item"].to_list() == [item for found in of_users for item in found.items]


def test_a_copy_loses_its_own_stage_alone(bundle):
    histories, twin = torch.tensor([[3, 4, 5, 0], [9, 2, 9, 7]]), copy.deepcopy(bundle.model)

    def scores(model):
        with torch.no_grad():
            return ranker_of(model, bundle.settings).score(histories)

    before = scores(bundle.model)
    assert torch.equal(scores(twin), before)
    socket.attach(twin, None)
    assert not torch.equal(scores(twin).argsort(1), before.argsort(1)) and torch.equal(scores(bundle.model), before)
    header = storage.load(bundle.folder / WEIGHTS, checkpoint.WEIGHTS)[1]
    assert header["second_stage"] == "gbdt" and not list(bundle.folder.glob("*.pkl"))


def test_odd_histories(bundle, caplog):
    known = bundle.item_tokens[3:9]
    length = bundle.settings["MAX_ITEM_LIST_LENGTH"]
    long = (known * (length + 1))[: length + 3]
    read = long[-length:]
    one, other, unknown, empty = bundle.recommend([long, read, ["nope"], []], k=1000, explain=True)
    assert one == other and one.reasons == other.reasons and len(one.items) == len(bundle.item_tokens) - 1 - len(known)
    assert unknown == ([], [], ["nope"]) and empty == ([], [], []) and unknown.reasons == empty.reasons == []
    assert "1 unknown item tokens" in caplog.text


def test_threads_get_what_one_gets(bundle):
    histories = histories_of(bundle) * 4
    alone = [bundle.recommend([history], k=5, explain=True)[0] for history in histories]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda history: bundle.recommend([history], k=5, explain=True)[0], histories))
    assert [found.items for found in together] == [found.items for found in alone]
    assert [found.reasons for found in together] == [found.reasons for found in alone]


def test_reasons_name_what_is_in_the_history(bundle):
    histories = histories_of(bundle)
    plain, explained = (bundle.recommend(histories, 1000, False, explain=explain) for explain in (False, True))
    assert explained == plain and not hasattr(plain[0], "reasons")
    signals = set()
    for history, found in zip(histories, explained, strict=True):
        assert len(found.reasons) == len(found.items)
        assert all(reason.item is None or reason.item in history for reason in found.reasons)
        assert all(0 <= reason.share <= 1 for reason in found.reasons)
        silent = {reason.signal for reason in found.reasons if reason.item is None}
        assert silent <= {OWN_SCORE, "length of the history"}
        signals |= {reason.signal for reason in found.reasons}
    last = explained[2]
    assert last.reasons[-1][1:] == (OWN_SCORE, 1.0), "the last one is no candidate"
    whose = [reason.item for found in explained for reason in found.reasons if reason.signal == OWN_SCORE]
    assert set(whose) - {None}, "items of the history make the model's own score"
    assert len(signals) > 1


def test_the_models_own_score_is_by_the_item_that_it_needs_most(bundle):
    """Where trees say that it spoke most: leaving that item out of the history takes most from the first stage."""
    tokens, ids = bundle.item_tokens, {token: at for at, token in enumerate(bundle.item_tokens)}

    def first(history):
        with torch.no_grad():
            return bundle.ranker.first_stage(torch.tensor([[ids[token] for token in history]])).scores[0]

    named = 0
    for history in ([tokens[3], tokens[9], tokens[4]], [tokens[7], tokens[2]]):
        (found,) = bundle.recommend([history], 1000, explain=True)
        without = {one: first([other for other in history if other != one]) for one in history}
        for item, reason in zip(found.items, found.reasons, strict=True):
            if reason.signal == OWN_SCORE and reason.share:
                losses = {one: float(first(history)[ids[item]] - scores[ids[item]]) for one, scores in without.items()}
                most = max(losses, key=lambda one: losses[one])
                assert reason.item == (most if losses[most] > 0 else None)
                named += reason.item is not None
    assert named


def test_a_reason_is_what_pushes_most_among_what_is_said(features):
    """Found once more, item by item and feature by feature."""
    bundle, history = features, features.item_tokens[3:9]
    stage, found = bundle.model.second_stage, bundle.recommend([history], k=5, explain=True)[0]
    given = bundle._scorer._padded([[bundle._ids[item] for item in history]])
    with torch.no_grad():
        first = bundle.ranker.first_stage(given)
        batch = stage.batch(first.scores, given)
        values = stage.features_of(first, batch)
        said = {name: signal(batch)[0] for name, signal in stage.signals.items()}
    for item, reason in zip(found.items, found.reasons, strict=True):
        slot = int(batch.slots[0, bundle._ids[item]])
        shares = stage.contributions(values[0, slot : slot + 1], stage.folds(given))[0]
        totals, quiet = {}, set()
        for feature, share in zip(stage.features, shares, strict=True):
            word = words_of(feature.signal)
            totals[word] = totals.get(word, 0.0) + share
            if feature.signal in said and said[feature.signal][slot].max() <= 0:
                quiet.add(word)
        best = max((word for word in totals if word not in quiet), key=lambda word: totals[word])
        assert reason.signal == best
        assert reason.share == pytest.approx(totals[best] / sum(max(total, 0.0) for total in totals.values()))
        if best == "came next after":
            assert stage.signals["next_1"](batch)[0, slot, history[::-1].index(reason.item)] > 0


def test_new_items_are_ranked_by_what_they_are(features):
    width = features.catalogue.features.matrices["text"].shape[1]
    text = features.catalogue.features.matrices["text"][[7, 7]]
    new = ItemFeatures(["new", "newer"], {"text": text}, {"text": torch.tensor([True, False])})
    assert width == text.shape[1]
    grown, known = features.grown(new), features.item_tokens[5:9]
    found = grown.recommend([known, [*known, "new"], ["newer"]], k=1000, exclude_seen=False, explain=True)
    assert {"new", "newer"} < set(found[0].items) and np.isfinite(found[0].scores).all()
    assert all(len(each.reasons) == len(grown.item_tokens) - 1 and not each.unknown for each in found)
    stage, scores = grown.model.second_stage, torch.zeros(1, len(grown.item_tokens))
    scores[0, 7] = 1.0
    batch = stage.batch(scores, torch.tensor([[grown._ids["new"]]]))
    said = stage.signals["cosine_text"](batch)[0, int(batch.slots[0, 7]), 0]
    assert said == pytest.approx(1), "a new item speaks for others, most for one of the same text"
    assert stage.signals["cosine_text"].documents[-2:].norm(dim=1).tolist() == pytest.approx([1, 0])
    assert batch.items.max() < len(grown.item_tokens)


def test_a_catalogue_smaller_than_the_number_of_candidates(bundle, monkeypatch):
    monkeypatch.setattr(ranker_module, "BEST", 120)
    monkeypatch.setattr(ranker_module, "COUNTED", 60)
    for found in bundle.recommend(histories_of(bundle), k=1000, exclude_seen=False, explain=True):
        assert sorted(found.items) == sorted(bundle.item_tokens[1:]) and np.isfinite(found.scores).all()


def changed(folder, target, change):
    """A copy of a bundle whose trees, as bytes, went through `change`."""
    tensors, header = storage.load(folder / WEIGHTS, checkpoint.WEIGHTS)
    for name in [name for name in tensors if name.endswith(".content")]:
        tensors[name] = torch.frombuffer(bytearray(change(bytes(tensors[name].numpy()))), dtype=torch.uint8)
    target.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != WEIGHTS:
            (target / path.name).write_bytes(path.read_bytes())
    storage.save(target / WEIGHTS, checkpoint.WEIGHTS, tensors, header)
    return recbole_bbqrec.load_bundle(target)


def flipped(content):
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def again(content, old, new):
    """The text of trees with the first `old` changed to `new`, and the sizes that it tells made right."""
    text = content[trees.DIGEST :].decode().replace(old, new, 1)
    body = text.partition("end of trees")[0]
    sizes = " ".join(str(len(f"Tree={block}")) for block in body.split("Tree=")[1:])
    return re.sub("tree_sizes=.*", f"tree_sizes={sizes}", text)


def signed(text):
    return trees.Trees._of_text(text).content.numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (flipped, "its trees are damaged"),
        (lambda content: content[:40], "its trees are damaged"),
        (lambda _: signed("nothing that LightGBM wrote"), "its trees cannot be read"),
        (lambda content: signed(content[32:1200].decode()), "its trees cannot be read"),
        (lambda _: signed(""), "its trees cannot be read"),
        (lambda content: signed(again(content, "left_child=", "left_child=-1 ")), "its trees cannot be read"),
        (lambda content: signed(again(content, "split_feature=", "split_feature=9")), "its trees cannot be read"),
        (lambda content: signed(again(content, "num_leaves=", "num_leaves=1")), "its trees cannot be read"),
    ],
)
def test_damaged_trees_are_one_line(folders, tmp_path, change, why):
    bundle = changed(folders["SASRec"], tmp_path / "changed", change)
    with pytest.raises(InputError, match=f"^second stage: {why}.*; delete the run's folder and run again$"):
        bundle.recommend([bundle.item_tokens[1:4]])


def test_without_lightgbm_one_line_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    bundle = recbole_bbqrec.load_bundle(folders["SASRec"])
    with pytest.raises(InputError, match=r"LightGBM cannot be loaded .*; pip install lightgbm; .*libgomp1"):
        bundle.recommend([bundle.item_tokens[1:4]])


def test_the_first_stage_of_a_recbole_model_is_its_own_score(folders):
    bundle = recbole_bbqrec.load_bundle(folders["SASRec"])
    histories = torch.tensor([[3, 4, 5]])
    assert isinstance(bundle.ranker, RecBoleRanker)
    with torch.no_grad():
        first, whole = bundle.ranker.first_stage(histories).scores, bundle.ranker.score(histories)
        socket.attach(bundle.model, None)
        torch.testing.assert_close(first, bundle.ranker.score(histories), rtol=0, atol=0)
    assert not torch.equal(first, whole)


def test_the_command_line_shows_reasons(folders, capsys, tmp_path):
    folder = str(folders["SASRecPlusFT"])
    assert cli.main(["recommend", folder, "--history=i01,i02,i03", "-k", "3", "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "because of" in shown and "%)" in shown
    assert cli.main(["recommend", folder, "--users=all", "--explain", f"--out={tmp_path / 'x.csv'}"]) == 2
    assert capsys.readouterr().err.startswith("error: --explain: goes with lists on the screen, not with --out")
    assert json.loads((folders["SASRecPlusFT"] / "bundle.json").read_text())["format"] == storage.FORMAT
