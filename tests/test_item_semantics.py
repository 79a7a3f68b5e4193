"""Every model of RecBole with codes and features in its item tables: one epoch, or why not; and its row in the docs."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import settings, write_dataset
from test_stock_models import OWN, SMALL_IDS, add_prices, write_graph
from torch.nn.utils import parametrize

from recbole_bbqrec import load_data_and_model, quick_start, registry, schema
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.item_semantics import ItemParts

DOCS = Path(__file__).parents[1] / "docs" / "item-semantics.md"
NAMES = sorted(set(registry.recbole_models(*registry.PACKAGES)) - set(registry.MODELS) - set(registry.NOT_RUN))
KINDS = {schema.STOCK: "sequential", schema.CONTEXT: "context-aware", schema.KNOWLEDGE: "knowledge-aware"}
GRAPH = {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
SMALL = {**SMALL_IDS, "feature_dim": 8, "epochs": 1, "eval_args": {"split": {"LS": "test_only"}}, "num_clusters": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The tiny data set with a graph and prices."""
    place = write_dataset(tmp_path_factory.mktemp("semantics"))
    write_graph(place)
    add_prices(place)
    return place


def given(place, model):
    graph = {"load_col": GRAPH} if registry.kind_of(model) == schema.KNOWLEDGE else {}
    wanted = {key: value for key, value in SMALL.items() if key != "num_clusters" or model == "NCL"}
    return settings(place, model, item_semantics=["codes", "features"], **{**wanted, **graph, **OWN.get(model, {})})


def learned_tables(model):
    """Item tables that an epoch has taught something, by their names in the docs; in each all parts have, or none."""
    found = []
    for path, module in model.named_modules():
        parts = module.parametrizations.weight if parametrize.is_parametrized(module) else []
        for part in (part for part in parts if isinstance(part, ItemParts)):
            learned = {bool(each.any()) for each in part.parameters()}
            assert len(learned) == 1, f"gradients have reached a part of {path} alone"
            found += [path] * learned.pop()
    return found


def test_the_docs_name_every_model_once():
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    rows = [line.split("`")[1] for line in lines if re.match(r"\| `\w+` \| (general|sequential|.*-aware) \| ", line)]
    assert sorted(rows) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_its_row_says_what_learns_or_why_it_cannot(name, place):
    kind = KINDS.get(registry.kind_of(name), "general")
    try:
        trained = quick_start.train(Config(config_dict=given(place, name)))
    except InputError as error:
        assert re.fullmatch(
            rf"item_semantics: no embedding or layer of {name} has a row for each item; drop it", str(error)
        )
        row = "no item table"
    else:
        tables = learned_tables(trained.trainer.model)
        assert tables, "something has learned"
        row = ", ".join(f"`{table}`" for table in tables)
    assert f"| `{name}` | {kind} | {row} |" in DOCS.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["CKE", "DeepFM", "MultiVAE", "NeuMF"])
def test_it_is_read_back_to_the_same_ranks(name, place):
    """A table of its own, one that columns share, layers, two tables."""
    record, ranks = quick_start.execute(
        config_dict={**given(place, name), "eval_args": {"split": {"LS": "valid_only"}}}
    )
    config, net, _, train, valid, _ = load_data_and_model(record["run_dir"])
    assert learned_tables(net)
    again = registry.get_trainer(config)(config, net).rank(valid, [train._dataset])
    assert np.array_equal(again.masked, ranks["valid"].masked)
