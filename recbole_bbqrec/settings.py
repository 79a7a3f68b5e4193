"""Our settings: what each key is and may be, where values come from, and settings as plain data.

`KEYS` is the one place that knows the type, the meaning and the bounds of a key; `properties/` has the defaults, and
docs/settings.md is made from both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from . import schema
from .errors import InputError
from .recbole_keys import CODE_FIELDS, FIELDS, GRAPH, METRICS, PREFIXES, RECBOLE, TAIL
from .schema import FACTOR, NOT_NEGATIVE, POSITIVE, PROBABILITY, SEED, Allowed, Key
from .schema import one_of as _one_of
from .schema import whole as _whole

_INSTALLED = Path(__file__).parent / "properties"
PROPERTIES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "properties"
"""Our YAML files: inside the installed package, or at the top of a source checkout."""


# fmt: off
KEYS: dict[str, Key] = {
    # Protocol
    "eval_args": Key(dict, "split, order and mode of the evaluation; leave-one-out, and all items are ranked unless mode is uni100 or pop100, see docs/metrics.md; order RO for models of users and items", used=schema.FILTERED, parts=("split", "group_by", "order", "mode")),
    "repeatable": Key(bool, "RecBole's flag for sequential models; seen items are masked by our ranker"),
    "metrics": Key(list, f"of {', '.join(METRICS)}, see docs/metrics.md, and AUC, LogLoss, see docs/context.md; a trained model is judged by others without training", form=schema.parts_of),
    "topk": Key(list, "cut-offs of the metrics; a trained model is judged at others without training", schema.CUT_OFFS, form=schema.whole_parts_of),
    "valid_metric": Key(str, "metric that stops training, in the masked column"),
    "tail_ratio": Key(float, "long tail of TailPercentage: this share of the items that training has, the least popular ones, or above 1 those of at most so many interactions", POSITIVE, used=TAIL),
    "group_metrics": Key(list, "metrics by groups of targets: by `popularity` in training, by `length` of the history, `cold` ones apart", _one_of("popularity", "length", "cold", words="some of {}, or [] for none"), form=schema.parts_of),
    "eval_batch_size": Key(int, "histories scored at once", POSITIVE),
    "valid_users": Key(int, "users of validation that its figures are of, the same ones for every seed; 0: all", NOT_NEGATIVE),
    "load_col": Key(dict, "columns RecBole loads; item texts are read by the item features alone"),
    "final": Key(bool, "also evaluate the test split; leave it off while developing"),
    "seed": Key(int, "every source of randomness starts here", SEED),
    "shuffle_ties": Key(int, "seed that shuffles a user's interactions of equal time; empty keeps the file's order", NOT_NEGATIVE, True, schema.FILTERED),
    "MAX_ITEM_LIST_LENGTH": Key(int, "last items of the history that are read", POSITIVE, used=schema.HISTORIES),
    # Training
    "epochs": Key(int, "cap; a run that reaches it is marked", POSITIVE, used=schema.TRAINED),
    "eval_step": Key(int, "epochs from one evaluation to the next", POSITIVE, used=schema.TRAINED),
    "stopping_step": Key(int, "evaluations in a row that may bring no improvement; the next such one ends training", NOT_NEGATIVE, used=schema.TRAINED),
    "train_batch_size": Key(int, "training targets a step", POSITIVE, used=schema.TRAINED),
    "learning_rate": Key(float, "of the optimiser", POSITIVE, used=schema.TRAINED),
    "cycle_epochs": Key(int, "epochs in which the learning rate rises and falls once, the last of training; 0: a constant rate, and validation or `epochs` ends training", NOT_NEGATIVE),
    "weight_decay": Key(float, "of the optimiser", NOT_NEGATIVE, used=schema.TRAINED),
    "average_weights": Key(bool, "evaluate and keep an average over the last steps of training, not the last step"),
    "length_groups": Key(bool, "run RecBole's own models on length groups where they do not depend on padding", used=schema.SEQUENTIAL),
    "resume": Key(bool, "go on with an interrupted run of the same settings, or one of fewer epochs; evaluate a finished one"),
    "cold_items": Key(float, "share of the items that training does not know, to judge how new items are ranked", PROBABILITY),
    "train_on": Key(str, "`train`, or `all`: validation decides, then all interactions are trained on, for use", _one_of("train", "all")),
    # Item features
    "attach_item_features": Key(bool, "build the item features and attach them to the data set", used=schema.ATTACH_FEATURES),
    "attach_semantic_ids": Key(bool, "learn semantic IDs on the training split and attach them as item feature `semantic_id`", used=schema.ATTACH_IDS),
    "text_fields": Key(str, "columns of the .item file joined to one text, `title brand`, or a template, `{title}[ by {brand}]`", used=schema.TEXTS),
    "text_encoder": Key(str, "`tfidf`, `codes`, a file of vectors (.npy, .safetensors) or a `transformers` model; empty: no texts", None, True, used=schema.FEATURES),
    "image_fields": Key(str, "code columns of the .item file, for image_encoder `codes`", used=schema.IMAGE_CODES),
    "image_folder": Key(str, "folder with <item token>.jpg or .png; relative paths start at the data set", None, True, used=schema.IMAGES),
    "image_encoder": Key(str, "`codes`, a file of vectors or a `transformers` vision model; empty: no images", None, True, used=schema.FEATURES),
    "feature_dim": Key(int, "width of `tfidf` and `codes` features", POSITIVE, used=schema.COUNTED_FEATURES),
    "encode_batch_size": Key(int, "texts or images that a `transformers` model encodes at once", POSITIVE, used=schema.MODEL_FEATURES),
    "max_text_tokens": Key(int, "tokens of a text that a `transformers` model reads", POSITIVE, used=schema.TEXT_MODEL),
    # Semantic IDs
    "codes": Key(str, "`learned`; `random` and `shuffled` are controls; `none`: raw features in every place of quantised vectors", _one_of("learned", "random", "shuffled", "none"), used=schema.COMPARES),
    "tokenizer": Key(str, "`behavior_bind`, `rqvae` (TIGER's, features alone), `aligned` (an RQ-VAE aligned with co-occurrence) or `kmeans` (residual k-means)", _one_of(*schema.TOKENIZERS), used=schema.CODES),
    "report_card": Key(bool, "measure new codes and write the ID report card beside the tokenizer's file", used=schema.REPORT),
    "sid_mode": Key(str, "how the signals share an ID", _one_of("chained", "concat", "fused"), used=schema.BOUND_SHAPE),
    "sid_levels": Key(int, "codes per signal", POSITIVE, used=schema.SHAPE),
    "sid_codebook_size": Key(int, "codes per codebook", POSITIVE, used=schema.SHAPE),
    "sid_code_dim": Key(int, "width of the codebook vectors", POSITIVE, used=schema.NETWORK),
    "sid_epochs": Key(int, "passes over the training sequences", POSITIVE, used=schema.BOUND),
    "sid_min_steps": Key(int, "at least this many steps, for small data", NOT_NEGATIVE, used=schema.BOUND),
    "sid_steps": Key(int, "batches an RQ-VAE is trained on", POSITIVE, used=schema.RQVAE),
    "sid_alignment_weight": Key(float, "weight of the contrast between quantised and collaborative vectors", NOT_NEGATIVE, used=schema.ALIGNED),
    "sid_learning_rate": Key(float, "of the tokenizer's AdamW", POSITIVE, used=schema.LEARNED_NETWORK),
    "sid_independence_weight": Key(float, "weight of the share of the behaviour part that a probe predicts from the specific part", NOT_NEGATIVE, used=schema.BOUND_FEATURES),
    "sid_sequence_contrast_weight": Key(float, "weight of the contrast of histories with their next item", NOT_NEGATIVE, used=schema.BOUND),
    "sid_cross_contrast_weight": Key(float, "weight of the contrast between the signals of an item", NOT_NEGATIVE, used=schema.BOUND_FEATURES),
    "sid_shared_codebook": Key(bool, "one set of codebooks for all signals", used=schema.SHARED),
    "sid_use_id": Key(bool, "the learned item representation z_ID is a signal of its own", used=schema.BOUND_SHAPE),
    "count_collisions": Key(bool, "last code: a number among the items of equal earlier codes, as in TIGER's paper; else one more level of the RQ-VAE"),
    # Codes for RecBole's other models
    "code_fields": Key(list, "columns of items that context-aware models read: `prefixes` of an ID's codes as tokens, quantised `vectors` as numbers", _one_of(*CODE_FIELDS, words="some of {}, or [] for none"), used=FIELDS, form=schema.parts_of),
    "kg": Key(str, "knowledge graph of knowledge-aware models: `files`, RecBole's .kg and .link; `codes`, triples of an item, a level and the prefix of codes it has there", _one_of("files", "codes"), used=GRAPH),
    "code_levels": Key(int, "most codes in a prefix, for code_fields and kg=codes; empty: as many as bring two items or more together", POSITIVE, True, used=PREFIXES),
    # Attention
    "similarity_attention": Key(str, "how the similarity of items enters attention; also for RecBole's SASRec, SASRecF, BERT4Rec and CORE", _one_of("additive", "multiplicative", "undiscretised", "off"), used=schema.ATTENTION),
    "similarity_signals": Key(list, "signals that attention compares, such as [text, id]; empty: all", None, True, used=schema.SIMILARITY),
    "similarity_shared_layers": Key(bool, "one set of weights for all layers", used=schema.SIMILARITY),
    # Network
    "n_layers": Key(int, "transformer layers", POSITIVE),
    "n_heads": Key(int, "attention heads", POSITIVE),
    "heads": Key(int, "attention heads of TIGER, each `head_size` wide", POSITIVE),
    "head_size": Key(int, "width of an attention head of TIGER", POSITIVE),
    "hidden_size": Key(int, "width of items and hidden states", POSITIVE),
    "inner_size": Key(int, "width of the feed-forward layers", POSITIVE),
    "hidden_dropout_prob": Key(float, "dropout of embeddings and layer outputs", PROBABILITY),
    "attn_dropout_prob": Key(float, "dropout of attention weights", PROBABILITY),
    "causal_encoder": Key(bool, "codes read no later items, so that one pass trains all targets of a sequence; False: TIGER's paper, a pass for every target"),
    "n_experts": Key(int, "whitening experts of UniSRec's adaptor", POSITIVE, used=schema.EXPERTS),
    # Item representation
    "use_item_id": Key(bool, "ID embedding in the item representation"),
    "id_dim": Key(int, "width of the ID embedding, mapped linearly to hidden_size; empty: hidden_size, without a map", POSITIVE, True, used=schema.ID_DIM),
    "use_code_embedding": Key(bool, "embeddings of the item's codes in the item representation", used=schema.CODE_EMBEDDING),
    "use_features": Key(bool, "projected item features in the item representation", used=schema.PROJECTED),
    "n_identity_codes": Key(int, "codes behind those of the tokenizer that are a hash of the item, by which items of similar codes are told apart", NOT_NEGATIVE, used=schema.IDENTITY),
    "id_dropout_prob": Key(float, "how often an item goes without its ID part in training, as new items will", PROBABILITY, used=schema.ID_PART),
    # Scoring and loss
    "scoring": Key(str, "`joint`: dense + code_weight * codes; `generate`: decode the ID code by code", _one_of("joint", "dense", "codes", "generate"), used=schema.SCORING),
    "code_weight": Key(float, "weight of the code heads in loss and score of `joint`", NOT_NEGATIVE, used=schema.JOINT),
    "beam_size": Key(int, "prefixes kept in decoding; 0: exact likelihood of every item, for small catalogues", NOT_NEGATIVE, used=schema.GENERATE),
    "n_decoder_layers": Key(int, "layers of the decoder of IDs", POSITIVE, used=schema.GENERATE),
    "score_function": Key(str, "how a hidden state meets an item", _one_of("cosine", "dot"), used=schema.DENSE),
    "temperature": Key(float, "divides the cosine", POSITIVE, used=schema.COSINE),
    "n_negatives": Key(int, "uniform negatives a step, all different, shared by its targets; 0: all items", NOT_NEGATIVE, used=schema.DENSE),
    # Second stage
    "second_stage": Key(str, "fitted on validation over the scores of the trained model: `gbdt`, trees that rank its best candidates; `linear`, a weight for each bucket of candidate similarity", _one_of("gbdt", "linear", "off"), used=schema.SECOND_STAGE),
    "candidate_similarity": Key(list, "signals that a second stage knows of candidates and the last items; linear also `seen`: a weight for seen items; gbdt also `popularity`", _one_of("behavior", "text", "image", "codes", "seen", "popularity", words="some of {}, or [] for none"), used=schema.CANDIDATES),
    "n_candidate_last": Key(int, "last items of the history that candidates are compared with", POSITIVE, used=schema.NEIGHBOURS),
    "n_candidate_neighbours": Key(int, "nearest neighbours kept per item and signal", POSITIVE, used=schema.NEIGHBOURS),
    # Transition graph: validation chooses among the values of a list; one value fixes it
    "graph_hops": Key(list, "longest path; a step back in the history counts as a hop", _whole(1, 3)),
    "graph_last_items": Key(list, "last items of the history that paths start from", _whole(1, 50)),
    "graph_hop_decay": Key(list, "factor for every further hop", FACTOR, used=schema.HOPS),
    "graph_position_decay": Key(list, "factor for every step back from the last item", FACTOR, used=schema.STEPS),
    "graph_cosine_weight": Key(list, "weight of the features' cosine", Allowed("numbers of at least 0", lambda value: 0 <= value < float("inf")), used=schema.HAS_FEATURES),
    "content_last_items": Key(list, "last items of the history that ContentNeighbors compares with", _whole(1, 50)),
    "content_position_decay": Key(list, "factor for every step back from the last item", FACTOR, used=schema.CONTENT_STEPS),
    # Files
    "cache_dir": Key(str, "item features and tokenizers, kept by fingerprint; empty: <checkpoint_dir>/cache", None, True, schema.FEATURES),
    "results": Key(str, "folder of records, pages, and of the counts of how often a configuration was judged on test"),
    "result_file": Key(str, "write the run's record as JSON to this file", None, True),
    "ranks_file": Key(str, "write each judged target's rank to this file, .csv or .parquet", None, True),
}
# fmt: on
"""All keys of `properties/`: types, meanings and bounds. Of RecBole's own, those that we bound or give a default."""


def checked(key: str, value: Any, default: Any) -> Any:
    """Return `value` in the type of its key, or raise `InputError`; `default` gives the type of keys of single models."""
    known = _known(key) or Key(type(None) if default is None else type(default), "", None, default is None)
    expected, names = known.type, known.allowed.names if known.allowed else ()
    value = known.form(value) if known.form else value
    # What YAML and the command line make of the words none and off.
    if expected is list and names and value in (None, False, "off", "none"):
        value = []
    elif expected is list and known.allowed and not names and value in (None, []):
        value = [None]  # nothing to choose from
    elif value is None and "none" in names:
        value = "none"
    elif value is False and "off" in names:
        value = "off"
    if value is None and (known.may_be_empty or default is None or expected in (str, dict, list)):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if expected is int:
            value = int(value) if float(value).is_integer() else value
        elif expected in (float, str):
            value = expected(value)
    if expected is list and isinstance(value, (str, int, float, tuple)):
        value = list(value) if isinstance(value, tuple) else [value]
    wrong_bool = isinstance(value, bool) and expected in (int, float)
    if expected in (bool, int, float, str, list, dict) and (wrong_bool or not isinstance(value, expected)):
        raise InputError(f"{key}: found {value!r} ({type(value).__name__}), expected {expected.__name__}")
    if known.parts and isinstance(value, dict) and (other := [part for part in value if part not in known.parts]):
        raise InputError(f"{key}: found the key {other[0]!r}, expected some of {', '.join(known.parts)}")
    if known.allowed is not None:
        for part in value if isinstance(value, list) else [value]:
            numbers = expected in (int, float, list) and not names
            comparable = not numbers or (isinstance(part, (int, float)) and not isinstance(part, bool))
            if not comparable or not known.allowed.holds(part):
                raise InputError(f"{key}: found {part!r}, expected {known.allowed.words}")
    return value


def _known(key: str) -> Key | None:
    return KEYS.get(key) or RECBOLE.get(key)


def unused(key: str, value: Any, run: Mapping[str, Any]) -> schema.Use | None:
    """Return the first condition of a key that a run with these settings, `schema.KIND` among them, does not meet."""
    known = _known(key)
    return next((use for use in known.used if not use.holds(run, value)), None) if known else None


def reference() -> str:
    """Return docs/settings.md: every key with its default in each of our YAML files, its meaning and its bounds."""
    lines = [
        "# Settings\n\n"
        "Every key, made by `python -m recbole_bbqrec.settings`. The command line (`--key=value` or `--key value`) wins over\n"
        "`--config_files`, those over `properties/dataset/`, then `properties/model/`, `properties/overall.yaml`, RecBole.\n\n"
        "A key that a run would not use is an error that says why, unless it has its default. Of `eval_args` and `load_col`,\n"
        "what is not given keeps its default."
    ]
    for path in [PROPERTIES / "overall.yaml", *sorted((PROPERTIES / "model").glob("*.yaml"))]:
        content = _content(path)
        above = f": `{content.pop(EXTENDS)}` with" if EXTENDS in content else ""
        title = "Every model" if path.stem == "overall" else f"{path.stem}{above}"
        lines += ["", f"## {title}", "", "| key | default | type | meaning |", "| --- | --- | --- | --- |"]
        for name, value in content.items():
            shown = "~" if value is None else value
            lines.append(f"| `{name}` | `{shown}` | {_row(name)} |")
    lines += ["", "## RecBole's own keys", "", "| key | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {_row(name)} |" for name in RECBOLE]
    return "\n".join(lines) + "\n"


def _row(name: str) -> str:
    key = {**RECBOLE, **KEYS}[name]
    bounds = [key.allowed.words] if key.allowed else []
    return f"{key.type.__name__} | {'; '.join([key.meaning, *bounds, *(_when(use) for use in key.used)])}"


def _when(use: schema.Use) -> str:
    return use.words if use.words.startswith("only ") else f"**refused**: {use.words}"


# Keys that change where a run computes and writes or what it prints, never what it learns.
NOT_LEARNED_FROM = {
    *("final", "resume", "result_file", "ranks_file", "train_on"),  # what is trained on counts by its content
    *("cache_dir", "checkpoint_dir", "show_progress", "state", "data_path"),
    *(
        "report_card",
        "log_wandb",
        "wandb_project",
        "gpu_id",
        "device",
        "config_files",
        "save_dataset",
        "save_dataloaders",
    ),
    *("dataset_save_path", "dataloaders_save_path", "metric_decimal_place", "loss_decimal_place", "eval_batch_size"),
    *("topk", "metrics", "tail_ratio", "group_metrics"),  # which follow from ranks and lists
    *("use_gpu", "results"),  # `use_gpu` decides the device alone
}

ADDED_LATER = {
    **{"cold_items": 0.0, "cycle_epochs": 0, "id_dim": None, "n_identity_codes": 0, "sid_alignment_weight": 1000.0},
    "valid_users": 0,
    **{"code_fields": [], "kg": "files", "code_levels": None},
}
"""Keys that came after the first records, by the value with which a run is what it was without the key."""

# Keys of what is fitted after training, with the trained weights held fixed.
FITTED_AFTER_TRAINING = ("second_stage", "candidate_similarity", "n_candidate_neighbours", "n_candidate_last")


def second_stage_settings(config: Any) -> dict[str, Any]:
    """Return the settings that the second stage of a run reads, as plain data, none where there is none.

    Training does not depend on them.
    """
    form = schema.second_stage(config.final_config_dict)
    read = {"off": (), "gbdt": FITTED_AFTER_TRAINING[:2], "linear": FITTED_AFTER_TRAINING}[form]
    return {key: _plain(config[key]) for key in read}


SOURCE, EXTENDS = NO_SETTINGS = ("source", "extends")
"""Keys of our YAML files that are no settings of a run: where a data set comes from, and whose file comes first."""


def property_files(model: str, dataset: str) -> list[Path]:
    """Return our YAML files for a run, those that win later in the list: a model's after those that it extends."""
    files = [PROPERTIES / f"model/{model}.yaml"]
    while (base := _content(files[0]).get(EXTENDS)) is not None:
        path = files[0].with_name(f"{base}.yaml")
        if not path.is_file():
            raise InputError(f"{files[0]}: {EXTENDS} {base!r}, but there is no {path}; name a model of that folder")
        if path in files:
            raise InputError(f"{files[0]}: {EXTENDS} {base!r}, which extends this file itself; take one of them out")
        files.insert(0, path)
    return [path for path in (PROPERTIES / "overall.yaml", *files, _dataset_file(dataset)) if path.is_file()]


def trained_as(model: str) -> str:
    """Return the model whose training serves `model`: what it extends, where nothing that training reads differs."""
    own = _content(PROPERTIES / f"model/{model}.yaml")
    shared = EXTENDS in own and own.keys() <= {EXTENDS, *FITTED_AFTER_TRAINING}
    return trained_as(own[EXTENDS]) if shared else model


def _dataset_file(dataset: str) -> Path:
    """Return the YAML file of a data set: its own, or that of its family, as of `Amazon2018-Video_Games`."""
    own, family = (PROPERTIES / "dataset" / f"{name}.yaml" for name in (dataset, dataset.partition("-")[0]))
    return family if not own.is_file() and "categories" in _content(family).get(SOURCE, {}) else own


def public_source(dataset: str) -> dict[str, Any] | None:
    """Return the description of where a public data set comes from, see `preparation.public`; none where none is known.

    What a description says goes over what that of its `family` says.
    """
    path = _dataset_file(dataset)
    found = _content(path).get(SOURCE)
    if found is None:
        return None
    if path.stem != dataset:
        return {**found, "category": dataset.partition("-")[2]}
    family = found.get("family")
    return {**_content(path.with_name(f"{family}.yaml"))[SOURCE], **found} if family else found


def public_sets() -> list[str]:
    """Return the names of the YAML files that describe where their data comes from."""
    return sorted(path.stem for path in (PROPERTIES / "dataset").glob("*.yaml") if SOURCE in _content(path))


def _content(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def learning_settings(config: Any) -> dict[str, Any]:
    """Return the settings that can change what training learns, as plain data: what its fingerprint is made of."""
    left_out = NOT_LEARNED_FROM.union(FITTED_AFTER_TRAINING)
    plain = plain_settings(config)
    left_out |= {key for key, value in ADDED_LATER.items() if plain.get(key) == value}
    return {key: value for key, value in plain.items() if key not in left_out}


def plain_settings(config: Any) -> dict[str, Any]:
    """Return all settings as JSON data; values of other types (device, enums) by their text."""
    return {key: _plain(value) for key, value in sorted(config.final_config_dict.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


# What RecBole's Config derives; setting it again would be refused or would go twice through the same step.
_DERIVED = {
    *("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_metric_bigger", "device", "single_spec", "local_rank"),
    *("valid_neg_sample_args", "test_neg_sample_args", "config_files"),
    # Names of columns that RecBole's models note; settings of earlier versions hold them.
    *("MASK_INDEX", "MASK_ITEM_SEQ", "POS_ITEMS", "NEG_ITEMS", "INVERSE_ITEM_SEQ"),
    *("CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "REORDER_ITEM_SEQ"),
}


MAY_BE_UNUSED = "may_be_unused"
"""Marks a `config_dict` that the program has put together, as all settings of a run or a study's changes of them: it may
hold keys that the run does not use. `Config` takes the mark away."""


def settings_to_load(plain: dict[str, Any]) -> dict[str, Any]:
    """Turn `plain_settings` back into what may be given to `Config` as `config_dict`."""
    given: dict[str, Any] = {key: value for key, value in plain.items() if key not in _DERIVED}
    given[MAY_BE_UNUSED] = True
    if (given.get("train_neg_sample_args") or {}).get("distribution") == "none":
        given["train_neg_sample_args"] = None
    given["data_path"] = str(Path(given["data_path"]).parent)
    if "scoring" in given:  # what runs of before the key had; the files of some models say otherwise now
        given.setdefault("n_identity_codes", ADDED_LATER["n_identity_codes"])
    return given


if __name__ == "__main__":
    print(reference(), end="")
