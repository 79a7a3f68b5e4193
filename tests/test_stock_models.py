"""Every sequential model, RecBole's and ours: one epoch, the way back to its data, its bundle, its row in the docs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import N_ITEMS, QUICK, settings, write_dataset

from recbole_bbqrec import load_bundle, load_data_and_model, quick_start, registry, storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.presplit import READ_USERS
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.protocol import NeedsDataError

STOCK = sorted(registry.recbole_models())
NAMES = [*registry.MODELS, *(name for name in STOCK if name not in registry.NOT_RUN)]
DOCS = Path(__file__).parents[1] / "docs" / "baselines.md"
GRAPH = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
        "ent": ["ent_id", "ent_emb"],
        "rel": ["rel_id", "rel_emb"],
    },
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "embedding_size": 8,
}
SMALL_IDS = {key: value for key, value in QUICK.items() if key.startswith("sid_")} | {"report_card": False}
FEATURES = {"selected_features": ["brand", "title", "price", "semantic_id"], "numerical_features": ["price"]}
TIGER = {"hidden_size": 16, "n_layers": 1, "n_decoder_layers": 1, "sid_steps": 40, "report_card": False}
OWN = {
    "GRU4RecKG": GRAPH,
    "KSR": {**GRAPH, "kg_embedding_size": 8},
    "SASRecCPR": {"reranker_CAN_NUM": 20},
    "GRU4RecCPR": {"reranker_CAN_NUM": 20},
    "FDSA": {**FEATURES, **SMALL_IDS, "attach_semantic_ids": True},
    "UniSRec": {"feature_dim": 16},
    "TIGER": TIGER,
    "TIGERPaper": TIGER,
    "BBQRecCodes": SMALL_IDS,
    "BBQRecCodesDense": SMALL_IDS,
    "BBQRecGenerate": SMALL_IDS,
    "BBQRecWithoutCandidates": SMALL_IDS,
}
"""What a model needs beside the settings of all."""


def write_graph(folder):
    """A graph over the items of the tiny set, with a vector for each of its entities and relations."""
    generator = np.random.default_rng(0)
    vectors = [" ".join(map(str, generator.normal(size=8).round(3))) for _ in range(N_ITEMS + 3)]
    files = {
        "kg": ["head_id:token\trelation_id:token\ttail_id:token"],
        "link": ["item_id:token\tentity_id:token"],
        "ent": ["ent_id:token\tent_emb:float_seq"],
        "rel": ["rel_id:token\trel_emb:float_seq"],
    }
    for item in range(N_ITEMS):
        files["kg"].append(f"m{item}\tr{item % 2}\tm{(item + 1) % N_ITEMS}")
        files["link"].append(f"i{item:02d}\tm{item}")
        files["ent"].append(f"m{item}\t{vectors[item]}")
    files["rel"] += [f"r{relation}\t{vectors[-relation - 1]}" for relation in range(2)]
    for kind, lines in files.items():
        (folder / "tiny" / f"tiny.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def add_prices(folder):
    """A column of numbers to the items of the tiny set."""
    path = folder / "tiny" / "tiny.item"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    priced = [f"{row}\t{at * 1.5}" for at, row in enumerate(rows)]
    path.write_text("\n".join([head + "\tprice:float", *priced]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By model: what one epoch of it has left; made once."""
    place, known = write_dataset(tmp_path_factory.mktemp("stock")), {}
    write_graph(place)
    add_prices(place)

    def train(model):
        if model not in known:
            given = settings(place, model, **{"epochs": 1, "final": True, **OWN.get(model, {})})
            record, ranks = quick_start.execute(config_dict=given)
            known[model] = SimpleNamespace(record=record, ranks=ranks, folder=Path(record["run_dir"]))
        return known[model]

    return train


@pytest.mark.parametrize("model", NAMES)
def test_it_is_read_back_to_the_same_scores(trained, model):
    case = trained(model)
    config, net, _, train, valid, test = quick_start.load_data_and_model(case.folder)
    trainer = registry.get_trainer(config)(config, net)
    for split, data, earlier in (("valid", valid, [train]), ("test", test, [train, valid])):
        again = trainer.rank(data, [one._dataset for one in earlier])
        assert np.array_equal(again.masked, case.ranks[split].masked)
        assert np.array_equal(again.unmasked, case.ranks[split].unmasked)
    if model in ("Pop", "ContentNeighbors"):
        return  # equal scores are ranked in another order there
    trainer.eval_collector.data_collect(train)
    theirs = trainer.evaluate(test, load_best_model=False)
    ours = case.record["metrics"]["test"]["unmasked"]
    assert {name: pytest.approx(value, abs=6e-5) for name, value in ours.items()} == dict(theirs)


@pytest.mark.parametrize("model", ["BERT4Rec", "SHAN"])
def test_what_models_note_is_no_setting_and_earlier_runs_that_kept_it_are_read(trained, model, tmp_path):
    case, noted = trained(model), {"BERT4Rec": "MASK_INDEX", "SHAN": "INVERSE_ITEM_SEQ"}[model]
    tensors, header = storage.load(case.folder / "weights.safetensors", "weights")
    assert noted not in header["settings"] and noted not in case.record["settings"]
    earlier = {**header, "settings": {**header["settings"], noted: noted}}
    storage.save(tmp_path / "weights.safetensors", "weights", tensors, earlier)
    config = load_data_and_model(tmp_path, {"eval_batch_size": 7})[0]
    assert isinstance(config[noted], str) and config["eval_batch_size"] == 7


def rows_of_histories(split):
    """The rows that are judged, and their histories as tokens."""
    rows, data = split.collate_fn(range(20))[0], split._dataset
    tokens = data.field2id_token[data.iid_field]
    return rows, [[str(tokens[item]) for item in row if item] for row in rows[data.iid_field + "_list"].tolist()]


@pytest.mark.parametrize("model", NAMES)
def test_its_bundle_gives_the_scores_that_it_has_with_its_data(trained, model):
    case, from_data = trained(model), "yes"
    _, net, _, _, _, test = quick_start.load_data_and_model(case.folder)
    try:
        bundle = load_bundle(case.folder)
    except NeedsDataError as error:
        assert str(error).startswith(f"{case.folder}: {model} needs its data set (")
        from_data = f"no, it reads the {str(error).partition('(')[2].partition(')')[0]}"
    else:
        rows, histories = rows_of_histories(test)
        with torch.no_grad():
            expected = net.full_sort_predict(rows).view(len(rows), -1)[:, 1:].tolist()
        found = bundle.recommend(histories, k=N_ITEMS, exclude_seen=False)
        for scores, result in zip(expected, found, strict=True):
            by_item = dict(zip(result.items, result.scores, strict=True))
            given = [by_item.get(token, -np.inf) for token in bundle.item_tokens[1:]]
            assert given == pytest.approx(scores, rel=1e-4, abs=1e-5)
    row = f"| `{model}` | {'here' if model in registry.MODELS else 'RecBole'} | yes | {from_data} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_table_names_every_sequential_model_and_why_one_does_not_run():
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ")[0] for line in lines if " | here | " in line or " | RecBole | " in line]
    assert sorted(rows) == sorted(f"| `{name}`" for name in {*NAMES, *STOCK})
    reading = {line.split("`")[1] for line in lines if "| no, it reads " in line}
    assert reading == READ_USERS, "these refuse files without users"
    for name in registry.NOT_RUN.keys() & {*STOCK}:
        assert f"| `{name}` | RecBole | no: {registry.NOT_RUN[name]} | no |" in lines


def test_more_candidates_of_a_reranker_than_items_are_one_line(tiny, tmp_path):
    config = Config(config_dict=settings(tiny, "SASRecCPR", checkpoint_dir=str(tmp_path)))
    train, _, _ = split_loaders(config, registry.get_dataset("SASRecCPR")(config))
    with pytest.raises(InputError, match=r"reranker_CAN_NUM: found 100, expected at most 40, the number of items"):
        registry.build_model(config, train._dataset)
