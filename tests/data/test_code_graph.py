import numpy as np
import pytest
import torch
from conftest import settings

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.code_fields import prefixes
from recbole_bbqrec.data.dataloader import split_loaders

QUICK = {"kg": "codes", "sid_codebook_size": 8, "sid_code_dim": 8, "sid_epochs": 1, "sid_min_steps": 20}
QUICK |= {"feature_dim": 8, "report_card": False, "embedding_size": 8}


@pytest.fixture(scope="module")
def built(tiny):
    config = Config(config_dict=settings(tiny, "CKE", **QUICK))
    dataset = registry.get_dataset("CKE", "codes")(config)
    return config, dataset, split_loaders(config, dataset)


def triples(data):
    heads, tails = (data.field2id_token[data.entity_field][ids] for ids in (data.head_entities, data.tail_entities))
    return {*zip(heads, data.field2id_token[data.relation_field][data.relations], tails, strict=True)}


def test_an_item_stands_in_a_triple_for_each_of_its_prefixes(built):
    _, dataset, (train, *_) = built
    data, tokens = train._dataset, train._dataset.catalogue.tokens
    found = prefixes(data.catalogue.semantic_ids)
    wanted = {
        (tokens[item], prefix.name, f"{prefix.name}:{prefix.tokens[number]}")
        for prefix in found
        for item, number in enumerate(prefix.ids.tolist())
        if number
    }
    assert triples(data) == triples(dataset) == wanted and len(data.kg_feat) == len(wanted)
    assert data.relation_num == len(found) + 2 and data.field2id_token[data.relation_field][-1] == "[UI-Relation]"
    assert data.entity_num == data.item_num + sum(len(prefix.tokens) - 1 for prefix in found)
    assert "The number of triples" in str(data)


def test_it_is_the_graph_that_recbole_reads_from_files(built, tiny, tmp_path):
    _, _, (train, *_) = built
    for name in ("tiny.inter", "tiny.item"):
        (tmp_path / "tiny").mkdir(exist_ok=True)
        (tmp_path / "tiny" / name).write_bytes((tiny / "tiny" / name).read_bytes())
    lines = [
        "head_id:token\trelation_id:token\ttail_id:token",
        *("\t".join(one) for one in sorted(triples(train._dataset))),
    ]
    (tmp_path / "tiny" / "tiny.kg").write_text("\n".join(lines) + "\n", encoding="utf-8")
    links = [f"{token}\t{token}" for token in train._dataset.catalogue.tokens[1:]]
    (tmp_path / "tiny" / "tiny.link").write_text("\n".join(["item_id:token\tentity_id:token", *links]) + "\n")
    config = Config(config_dict={**settings(tmp_path, "CKE", **QUICK), "kg": "files"})
    read = registry.get_dataset("CKE")(config).build()[0]
    made = train._dataset
    assert triples(read) == triples(made)
    assert (read.entity_num, read.relation_num, read.item_num) == (made.entity_num, made.relation_num, made.item_num)
    graphs = [data.ckg_graph("coo", "relation_id") for data in (read, made)]
    assert graphs[0].shape == graphs[1].shape and sorted(np.bincount(graphs[0].data)) == sorted(
        np.bincount(graphs[1].data)
    )


def test_reversed_relations_stand_behind_the_others(tiny):
    config = Config(config_dict=settings(tiny, "CKE", **QUICK, kg_reverse_r=True))
    data = registry.get_dataset("CKE", "codes")(config).build()[0]
    names = data.field2id_token[data.relation_field].tolist()
    half = (len(names) - 2) // 2
    assert names[1 + half : -1] == [f"{name}_r" for name in names[1 : 1 + half]]
    forward = {one for one in triples(data) if not one[1].endswith("_r")}
    assert triples(data) - forward == {(tail, f"{name}_r", head) for head, name, tail in forward}


def test_kgat_goes_by_its_weights_and_needs_no_dgl(tiny):
    config = Config(config_dict=settings(tiny, "KGAT", **QUICK))
    train, *_ = split_loaders(config, registry.get_dataset("KGAT", "codes")(config))
    model, other = (registry.build_model(config, train._dataset) for _ in range(2))
    begin = model.A_in.to_dense()
    graph = train._dataset.ckg_graph("coo", "relation_id")
    head = graph.row[np.flatnonzero(graph.data == 1)[0]]
    n_relations = len(np.unique(graph.data[graph.row == head]))
    assert begin[head].sum().item() == pytest.approx(n_relations), "each relation of a node has a weight of 1"
    torch.nn.init.normal_(model.entity_embedding.weight)
    model.update_attentive_A()
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other.A_in.to_dense(), model.A_in.to_dense()) and not torch.allclose(
        begin, model.A_in.to_dense()
    )


@pytest.mark.parametrize("model", ["CFKG", "KGAT", "RippleNet"])
def test_models_train_without_files_of_a_graph(tiny, model):
    record = quick_start.run(config_dict=settings(tiny, model, **{**QUICK, "epochs": 1}))
    assert record["metrics"]["valid"]["masked"]["recall@20"] > 0
