"""Every key is obeyed, or refused with its reason: RecBole's documented keys, ours, and what people type instead."""

import inspect
import re
from pathlib import Path
from typing import ClassVar

import pytest
import recbole
import torch
import yaml
from conftest import settings
from recbole.utils import argument_list

from recbole_bbqrec import quick_start, registry, schema
from recbole_bbqrec.config import Config, unused_settings
from recbole_bbqrec.data import feature_sources
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.keys import KEYS
from recbole_bbqrec.preparation import vectors
from recbole_bbqrec.recbole_keys import READ_WITHOUT_DEFAULT, RECBOLE
from recbole_bbqrec.tokenizer.registry import TOKENIZERS

RECBOLES = Path(recbole.__file__).parent
OTHERS = {"selected_features", "loss_type"}  # that we give a meaning to, of several models
TEXTS = {"text_fields": "title brand", "text_encoder": "tfidf"}


def config_of(folder, model="BBQRec", *arguments, **given):
    return Config(
        config_dict={"model": model, "dataset": "tiny", "data_path": str(folder), **given}, arguments=arguments
    )


def refusal(folder, model="BBQRec", *arguments, **given):
    with pytest.raises(InputError) as caught:
        config_of(folder, model, *arguments, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def documented():
    """The keys of RecBole's own lists and files, those of single models left out."""
    lists = [value for name, value in vars(argument_list).items() if name.endswith("_arguments")]
    files = [RECBOLES / "properties" / name for name in ("overall.yaml", "dataset/sample.yaml")]
    return {key for keys in lists for key in keys} | {key for file in files for key in yaml.safe_load(file.read_text())}


def test_the_table_has_every_key_that_recbole_documents():
    known = {*RECBOLE, *KEYS}
    assert documented() - known == set()
    assert not RECBOLE.keys() & KEYS.keys(), "a key with two meanings"
    single = {key for keys in READ_WITHOUT_DEFAULT.values() for key in keys}
    assert RECBOLE.keys() - documented() == single | OTHERS, "keys that nobody reads"


# Values other than the default, for keys that are refused in some kind of model.
OTHER = {
    "gpu_id": "1", "worker": 2, "config_file": "a.yaml", "wandb_project": "mine", "shuffle": False, "learner": "sgd",
    "train_neg_sample_args": {"distribution": "popularity"}, "clip_grad_norm": 5, "loss_decimal_place": 2,
    "require_pow": True, "enable_amp": True, "enable_scaler": True, "transform": "crop_itemseq",
    "valid_metric_bigger": False, "metric_decimal_place": 2, "RATING_FIELD": "stars", "LABEL_FIELD": "like",
    "threshold": {"rating": 3}, "NEG_PREFIX": "not_", "POSITION_FIELD": "place", "additional_feat_suffix": ["emb"],
    "preload_weight": {"iid": "vec"}, "alias_of_user_id": ["friend"], "alias_of_item_id": ["other"],
    "seq_len": {"title": 3}, "seq_separator": ",",
    "numerical_features": ["price"], "normalize_field": ["price"], "normalize_all": True,
    "discretization": {"price": {"method": "LD"}}, "selected_features": ["brand"],
    "filter_inter_by_user_or_item": False, "HEAD_ENTITY_ID_FIELD": "h", "TAIL_ENTITY_ID_FIELD": "t",
    "RELATION_ID_FIELD": "r", "ENTITY_ID_FIELD": "e", "alias_of_entity_id": ["x"], "alias_of_relation_id": ["x"],
    "kg_reverse_r": True, "entity_kg_num_interval": "[5,inf)", "relation_kg_num_interval": "[5,inf)",
    "epochs": 3, "eval_step": 2, "stopping_step": 3, "train_batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.5,
    "MAX_ITEM_LIST_LENGTH": 7,
}  # fmt: skip
COLUMNS = {
    *("alias_of_user_id", "alias_of_item_id", "seq_len", "numerical_features", "normalize_field", "normalize_all"),
    *("discretization", "selected_features"),
}
SEQUENCES = {"seq_separator", "filter_inter_by_user_or_item"}  # where columns of items are loaded
TRAINING = {
    *(
        "shuffle",
        "learner",
        "clip_grad_norm",
        "loss_decimal_place",
        "enable_amp",
        "epochs",
        "eval_step",
        "stopping_step",
    ),
    *("train_batch_size", "learning_rate", "weight_decay"),
}
KNOWLEDGE = {
    *("HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD"),
    *("alias_of_entity_id", "alias_of_relation_id", "kg_reverse_r", "entity_kg_num_interval"),
    "relation_kg_num_interval",
}
USED = {
    "BBQRec": TRAINING | {"MAX_ITEM_LIST_LENGTH", "seq_separator"},
    "TIGER": TRAINING | {"MAX_ITEM_LIST_LENGTH", "seq_separator"},
    "Pop": set(),
    "TransitionGraph": {"MAX_ITEM_LIST_LENGTH", "seq_separator"},
    "SASRec": TRAINING | {"MAX_ITEM_LIST_LENGTH", "worker"},
    "FPMC": TRAINING | {"MAX_ITEM_LIST_LENGTH", "worker", "train_neg_sample_args", "NEG_PREFIX"},
    "SASRecF": TRAINING | COLUMNS | SEQUENCES | {"MAX_ITEM_LIST_LENGTH", "worker"},
    "DIN": TRAINING
    | (COLUMNS - {"selected_features"})
    | {"MAX_ITEM_LIST_LENGTH", "worker", "train_neg_sample_args", "NEG_PREFIX", "LABEL_FIELD", "threshold"},
    "GRU4RecKG": TRAINING
    | KNOWLEDGE
    | {
        "MAX_ITEM_LIST_LENGTH",
        "worker",
        "preload_weight",
        "additional_feat_suffix",
        "alias_of_item_id",
        "seq_separator",
    },
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the table is that of a machine without a GPU")
@pytest.mark.parametrize("model", USED)
def test_which_of_recboles_keys_a_model_uses(tiny, model):
    conditional = {key for key in documented() | {"selected_features"} if {**RECBOLE, **KEYS}[key].used}
    pickles = {key for key in conditional if key.startswith(("save_", "dataset_save", "dataloaders_save"))}
    of_files = {"eval_args", "rm_dup_inter", "val_interval", "user_inter_num_interval", "item_inter_num_interval"}
    assert conditional == OTHER.keys() | pickles | of_files, "every key with a condition is tried"
    config = config_of(tiny, model, **({"selected_features": ["title"]} if model == "SASRecF" else {}))
    for key, value in OTHER.items():
        final = {**config.internal_config_dict, "model": model, key: value}
        error = unused_settings(final, [key], config.internal_config_dict).get(key)
        assert (error is None) == (key in USED[model]), (key, error)
        assert error is None or str(error).startswith(
            f"{key}: found {value!r}, which this run of {model} would not use ("
        )


class Recording(dict):
    """Settings that know which of their keys have been asked for, one by one."""

    read: ClassVar[set[str]] = set()

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


@pytest.fixture
def read_by(tiny, tmp_path, monkeypatch):
    """Run a model for an epoch and return the keys that somebody has asked its settings for."""
    made = Config._get_final_config_dict

    def run(model, **given):
        Recording.read = set()
        monkeypatch.setattr(Config, "_get_final_config_dict", lambda self: Recording(made(self)))
        small = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"), epochs=1, **given)
        quick_start.run(config_dict=small)
        return Recording.read

    return run


READ_ON_A_GPU = {"enable_scaler"}


@pytest.mark.parametrize("model", ["BBQRec", "TIGER", "TransitionGraph", "SASRec", "SASRecF"])
def test_what_counts_as_used_is_read_by_the_run(read_by, model):
    more = {"SASRecF": {"selected_features": ["title"]}, "TIGER": {"sid_steps": 20}}
    read = read_by(model, final=True, **more.get(model, {}))
    config = config_of(".", model, data_path=str(RECBOLES / "dataset_example"), dataset="ml-100k")
    final = {**config.final_config_dict, "model": model, "cache_dir": "cache"}
    unused = unused_settings(final, final, {key: object() for key in final})
    made = {"local_rank", "valid_neg_sample_args", "test_neg_sample_args"}  # by RecBole's Config, of other keys
    used = set(final) - unused.keys() - made
    assert used - read - READ_ON_A_GPU == set()


# Of our own keys: settings of a run, the key, and the condition that it does not meet; none where it is used.
OURS = {
    "codes are not learned": ("SASRecPlus", {"sid_levels": 4}, "only with semantic IDs"),
    "codes are none": ("BBQRec", {"codes": "none", "tokenizer": "kmeans"}, "only with semantic IDs"),
    "codes of a model without a place": ("SASRec", {"sid_epochs": 2}, "only with semantic IDs"),
    "levels of random codes": ("BBQRec", {"codes": "random", "sid_levels": 4}, None),
    "training of random codes": ("BBQRec", {"codes": "random", "sid_epochs": 2}, "without codes=random"),
    "another tokenizer": ("BBQRec", {**TEXTS, "tokenizer": "kmeans", "sid_epochs": 2}, "tokenizer=behavior_bind"),
    "its own tokenizer": ("BBQRec", {**TEXTS, "tokenizer": "kmeans", "sid_levels": 4}, None),
    "independence without features": ("BBQRec", {"sid_independence_weight": 0.0}, "where items have features"),
    "independence with features": ("BBQRec", {**TEXTS, "sid_independence_weight": 0.0}, None),
    "fused": ("BBQRec", {**TEXTS, "sid_mode": "fused", "sid_shared_codebook": False}, "without sid_mode=fused"),
    "codes of SASRec": ("SASRec", {"similarity_attention": "additive", "sid_levels": 4}, None),
    "a report of nothing": ("BBQRec", {"codes": "none", "report_card": False}, None),
    "texts nobody reads": ("SASRec", TEXTS, "in a model that reads features"),
    "no texts where nobody reads them": ("SASRec", {"text_encoder": None}, None),
    "texts of BBQRec": ("BBQRec", TEXTS, None),
    "texts beside vectors": ("BBQRec", {**TEXTS, "text_encoder": "a.npy"}, "where an encoder makes features of texts"),
    "columns of FDSA": ("FDSA", {"text_fields": "title"}, None),
    "images by codes": ("BBQRec", {"image_encoder": "codes", "image_folder": "images"}, "image_encoder names a model"),
    "width of a model's vectors": ("BBQRec", {"text_encoder": "a/model", "feature_dim": 8}, "with an encoder tfidf"),
    "batch of counting": ("BBQRec", {**TEXTS, "encode_batch_size": 8}, "where an encoder is a transformers model"),
    "features for nobody": ("SASRecPlus", {**TEXTS, "attach_item_features": True}, "something reads the features"),
    "features that come anyway": ("BBQRec", {"attach_item_features": False}, "empty text_encoder and those"),
    "features of a control": ("SASRecPlus", {**TEXTS, "attach_item_features": True, "use_features": True}, None),
    "a part without features": ("SASRecPlus", {"use_features": True}, "True only with item features"),
    "codes for nobody": ("SASRec", {"attach_semantic_ids": True}, "something reads the IDs"),
    "codes that come anyway": (
        "BBQRec",
        {"attach_semantic_ids": False, "similarity_attention": "additive"},
        "to go without codes set codes=none",
    ),
    "codes as a column": ("FDSA", {"attach_semantic_ids": True, "selected_features": ["semantic_id"]}, None),
    "attention of another model": ("TIGER", {"similarity_attention": "additive"}, "only in BBQRec, its controls"),
    "signals of no attention": ("SASRecPlus", {"similarity_signals": ["text"]}, "only with similarity_attention"),
    "beam": ("BBQRec", {"beam_size": 9}, "only with scoring=generate"),
    "beam of a decoder": ("BBQRec", {"scoring": "generate", "beam_size": 9}, None),
    "beam of TIGER": ("TIGER", {"beam_size": 9}, None),
    "temperature": ("BBQRec", {"score_function": "dot", "temperature": 0.5}, "only with score_function=cosine"),
    "negatives of a decoder": ("BBQRecGenerate", {"n_negatives": 9}, "only with scoring=joint or dense"),
    "weight of no codes": ("BBQRec", {"scoring": "dense", "code_weight": 0.5}, "only with scoring=joint"),
    "joint without codes": ("SASRecPlus", {"scoring": "joint"}, "joint, codes and generate only with semantic IDs"),
    "neighbours of nobody": ("SASRecPlus", {"n_candidate_neighbours": 9}, "only with second_stage=linear"),
    "neighbours of the seen": ("SASRecPlusSeen", {"n_candidate_last": 9}, "only with second_stage=linear"),
    "candidates of a decoder": ("BBQRecGenerate", {"candidate_similarity": ["behavior"]}, "only with a second_stage"),
    "candidates by nothing": ("BBQRec", {"candidate_similarity": ["image"]}, "only where it has an encoder"),
    "dropout of no ID": ("BBQRec", {**TEXTS, "use_item_id": False, "id_dropout_prob": 0.5}, "only with use_item_id"),
    "width of no ID": ("BBQRec", {**TEXTS, "use_item_id": False, "id_dim": 8}, "only with use_item_id"),
    "an ID wider than the item": ("BBQRec", {"id_dim": 65}, "only up to hidden_size"),
    "an ID as wide as the item": ("SASRecPlus", {"id_dim": 64}, None),
    "hops": ("TransitionGraph", {"graph_hops": [1], "graph_hop_decay": [0.5]}, "with more than one hop"),
    "cosine": ("TransitionGraph", {"graph_cosine_weight": [3.0]}, "only where items have features"),
    "groups": ("BBQRec", {"length_groups": False}, "only in RecBole's sequential models"),
}


@pytest.mark.parametrize(("model", "given", "message"), OURS.values(), ids=OURS.keys())
def test_a_key_of_ours_without_effect_is_refused(tiny, model, given, message):
    if message is None:
        config_of(tiny, model, **given)
    else:
        assert message in (said := refusal(tiny, model, **given)) and said.partition(": found ")[0] in given, said


def test_the_conditions_of_the_tokenizers_keys_are_what_the_tokenizers_take():
    for name, kind in TOKENIZERS.items():
        run = {"attach_semantic_ids": True, "codes": "learned", "tokenizer": name, "sid_mode": "chained", **TEXTS}
        used = {key for key in KEYS if key[:4] == "sid_" and all(use.holds(run, 1) for use in KEYS[key].used)}
        assert used == {f"sid_{key}" for key in inspect.signature(kind).parameters} & KEYS.keys(), name
    assert tuple(TOKENIZERS) == schema.TOKENIZERS


def test_the_conditions_know_the_encoders_and_models():
    assert set(schema.COUNTED) == feature_sources.COUNTED.keys() and set(schema.VECTORS) == set(vectors.SUFFIXES)
    stock = registry.recbole_models().items()
    sources = {name: inspect.getsource(inspect.getmodule(model)) for name, model in stock}
    reading = {"selected_features": schema.FEATURE_MODELS, "LABEL_FIELD": schema.CLICK_MODELS}
    for key, models in reading.items():
        found = {name for name, source in sources.items() if f'config["{key}"]' in source}
        assert found - registry.NOT_RUN.keys() == set(models)
    assert {name for name, source in sources.items() if "get_preload_weight" in source} == set(schema.GRAPH_MODELS)
    for name, keys in READ_WITHOUT_DEFAULT.items():
        assert all(f'config["{key}"]' in sources[name] for key in keys if name)


def test_every_key_that_a_stock_model_reads_is_known():
    derived = {"device", "MASK_INDEX", "MASK_ITEM_SEQ", "NEG_ITEMS", "POS_ITEMS", "INVERSE_ITEM_SEQ"}
    needless = {"reg_weight", "use_filter"}  # HRM reads one and does nothing with it; FEARec fails with the other
    for name, model in registry.recbole_models().items():
        read = set(re.findall(r'config\[\s*"(\w+)"\s*\]', inspect.getsource(inspect.getmodule(model))))
        file = RECBOLES / "properties" / "model" / f"{name}.yaml"
        known = {*documented(), *yaml.safe_load(file.read_text()), *READ_WITHOUT_DEFAULT.get(name, ())}
        assert read - known - derived - needless <= OTHERS, name
