"""RecBole's own keys: what they mean here, what they may be, and when a run uses them.

A key that stands in `keys.KEYS` too has its meaning there. Where RecBole documents a key and no sequential model
reads it, the key is refused with the reason, unless it is given its default.
"""

import re
from typing import Any

from .conditions import (
    COLUMNS,
    FILTERED,
    ITEM_COLUMNS,
    LABELS,
    NEGATIVES,
    ON_A_GPU,
    PRELOADED,
    RECBOLES,
    ROWS,
    SELECTED,
    SEQUENCES,
    TRAINED,
)
from .key_types import NOT_NEGATIVE, POSITIVE, Allowed, Key, Use, never, one_of, only, parts_of
from .schema import GRAPH_MODELS, INTERACTIONS, KIND, reads_graph

METRICS = (
    *("Recall", "NDCG", "MRR", "Hit", "Precision", "MAP"),
    *("ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"),
)
"""Metrics by the names that RecBole gives them: of the ranks of targets, then of what is shown."""

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")
STATES = ("debug", "info", "warning", "error", "critical")
_INTERVAL = re.compile(r"[\[(]\s*\d+(\.\d+)?\s*,\s*(\d+(\.\d+)?|inf)\s*[\])]")


def _interval(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"[{value},inf)" if is_number or (isinstance(value, str) and value.isdigit()) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _clip(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"max_norm": value} if is_number else value


def _clips(value: Any) -> bool:
    norm = value.get("max_norm")
    return isinstance(norm, (int, float)) and not isinstance(norm, bool) and norm > 0


def _gpu(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value


TAIL = only(
    "with TailPercentage among the metrics",
    lambda run: "tailpercentage" in [str(name).lower() for name in parts_of(run.get("metrics")) or ()],
)
INTERVAL = Allowed(
    'a number of interactions at least, such as 5, or an interval, such as "[5,100]" or "[5,inf)"',
    lambda value: all(_INTERVAL.fullmatch(part.strip()) for part in value.split(";")),
)
FEAREC = only("with contrast", lambda run: bool(run.get("contrast")))
KNOWLEDGE = only(f"in {', '.join(GRAPH_MODELS)} and knowledge-aware models, which read a graph", reads_graph)
TEMPERED = only("with contrast, and in MacridVAE", lambda run: bool(run.get("contrast")) or run["model"] == "MacridVAE")
LOSSES = (
    *only("in other models than RepeatNet, which has one loss", lambda run: run["model"] != "RepeatNet"),
    Use("BCE and MSE only in CDAE", lambda run, value: value not in ("BCE", "MSE") or run["model"] == "CDAE"),
)
CHECKED_BELOW = never("RecBole's pickled data is not used", "drop it: features and codes are cached by themselves")

# fmt: off
RECBOLE: dict[str, Key] = {
    # Environment
    "gpu_id": Key(str, "the GPU of the run, by its number; '' for none", Allowed("one GPU; torchrun uses several, see docs/scale.md", lambda value: "," not in value), used=ON_A_GPU, form=_gpu),
    "use_gpu": Key(bool, "False computes on the CPU"),
    "worker": Key(int, "processes that load training batches", NOT_NEGATIVE, used=RECBOLES),
    "state": Key(str, "level of the log", Allowed(f"one of {', '.join(STATES)}", lambda value: value.lower() in STATES)),
    "reproducibility": Key(bool, "the same numbers run after run, on a GPU too"),
    "data_path": Key(str, "folder that holds the folders of data sets"),
    "checkpoint_dir": Key(str, "folder of runs, features and tokenizers"),
    "show_progress": Key(bool, "show progress bars"),
    "config_file": Key(str, "a file of settings", used=never("no code of RecBole reads it", "give --config_files=file.yaml")),
    "save_dataset": Key(bool, "RecBole's pickled data set", used=CHECKED_BELOW),
    "dataset_save_path": Key(str, "RecBole's pickled data set", None, True, CHECKED_BELOW),
    "save_dataloaders": Key(bool, "RecBole's pickled loaders", used=CHECKED_BELOW),
    "dataloaders_save_path": Key(str, "RecBole's pickled loaders", None, True, CHECKED_BELOW),
    "log_wandb": Key(bool, "log to Weights & Biases, which has to be installed"),
    "wandb_project": Key(str, "project of Weights & Biases", used=only("with log_wandb=True", lambda run: bool(run["log_wandb"]))),
    "encoding": Key(str, "encoding of the data set's files", None, True),
    # Training
    "shuffle": Key(bool, "another order of the training batches in every epoch", used=TRAINED),
    "learner": Key(str, "the optimiser; average_weights needs adamw", one_of(*LEARNERS), used=TRAINED, form=_lower),
    "train_neg_sample_args": Key(dict, "sampled negatives of a model's training", None, True, NEGATIVES, parts=("distribution", "sample_num", "alpha", "dynamic", "candidate_num")),
    "clip_grad_norm": Key(dict, "largest norm of the gradient", Allowed("a number above 0, or {'max_norm': 5, 'norm_type': 2}", _clips), True, TRAINED, _clip, ("max_norm", "norm_type", "error_if_nonfinite", "foreach")),
    "loss_decimal_place": Key(int, "digits of the loss in the log", NOT_NEGATIVE, used=TRAINED),
    "require_pow": Key(bool, "form of a regularisation", used=only("in models of users and items, such as LightGCN", lambda run: run[KIND] in INTERACTIONS)),
    "enable_amp": Key(bool, "train in mixed precision", used=TRAINED),
    "enable_scaler": Key(bool, "scale the loss of mixed precision", used=(*TRAINED, *ON_A_GPU)),
    "transform": Key(str, "RecBole's changed copies of the history, mask_itemseq of BERT4Rec and inverse_itemseq of SHAN", None, True, never("it adds changed histories beside the true ones, and a model reads its own alone: BERT4Rec mask_itemseq, SHAN inverse_itemseq, all others none")),
    # Evaluation
    "valid_metric_bigger": Key(bool, "whether a larger valid_metric is better", used=never("every metric says that by itself")),
    "metric_decimal_place": Key(int, "digits of the metrics", used=never("tables show four digits, records keep all of them", "read more digits in the record of --result_file=run.json")),
    # Data: names
    "field_separator": Key(str, "between the columns of atomic files"),
    "seq_separator": Key(str, "between the parts of a sequence in a cell", used=SEQUENCES),
    "USER_ID_FIELD": Key(str, "column of users; name it in load_col too"),
    "ITEM_ID_FIELD": Key(str, "column of items; name it in load_col too"),
    "TIME_FIELD": Key(str, "column of times; name it in load_col too"),
    "RATING_FIELD": Key(str, "column of ratings", used=never("no sequential model reads ratings", "filter by them with load_col and val_interval={'rating': '[4,inf)'}")),
    "LABEL_FIELD": Key(str, "name of the labels that are made", used=LABELS),
    "threshold": Key(dict, "values of a column from which the label is 1", None, True, LABELS),
    "NEG_PREFIX": Key(str, "prefix of the columns of sampled negatives", used=NEGATIVES),
    "ITEM_LIST_LENGTH_FIELD": Key(str, "name of the histories' lengths"),
    "LIST_SUFFIX": Key(str, "what histories add to a column's name"),
    "POSITION_FIELD": Key(str, "name of positions", used=never("no code of RecBole reads it")),
    # Data: columns
    "unload_col": Key(dict, "columns not to load, where load_col takes all", None, True),
    "unused_col": Key(dict, "columns for filtering alone, gone afterwards", None, True),
    "additional_feat_suffix": Key(list, "further files to load", None, True, PRELOADED),
    "preload_weight": Key(dict, "pretrained vectors of what the further files list", None, True, PRELOADED),
    "alias_of_user_id": Key(list, "further columns of users", None, True, COLUMNS),
    "alias_of_item_id": Key(list, "further columns of items", None, True, ITEM_COLUMNS),
    "seq_len": Key(dict, "how much of a column of sequences is read", None, True, COLUMNS),
    "numerical_features": Key(list, "columns of numbers that are embedded", used=COLUMNS),
    "normalize_field": Key(list, "columns of numbers that are scaled to 0 to 1", None, True, COLUMNS),
    "normalize_all": Key(bool, "scale all columns of numbers", None, True, COLUMNS),
    "discretization": Key(dict, "columns of numbers that are cut into steps", None, True, COLUMNS),
    "selected_features": Key(list, "item columns that the model reads; unless given, those of texts and image codes", None, True, SELECTED),
    # Data: filters
    "rm_dup_inter": Key(str, "which of several interactions of a user with an item stays", one_of("first", "last"), True, FILTERED),
    "val_interval": Key(dict, "interactions to keep, by a column of any of the files: {'rating': '[4,inf)'}", None, True, FILTERED),
    "filter_inter_by_user_or_item": Key(bool, "drop interactions without a row in the files of users and items", used=(*FILTERED, *ROWS)),
    "user_inter_num_interval": Key(str, "how many interactions a user must have", INTERVAL, True, FILTERED, _interval),
    "item_inter_num_interval": Key(str, "how many interactions an item must have", INTERVAL, True, FILTERED, _interval),
    "benchmark_filename": Key(list, "split made beforehand: the parts of the files' names for training, validation, test", None, True),
    # Knowledge graphs
    "HEAD_ENTITY_ID_FIELD": Key(str, "column of a knowledge graph", used=KNOWLEDGE),
    "TAIL_ENTITY_ID_FIELD": Key(str, "column of a knowledge graph", used=KNOWLEDGE),
    "RELATION_ID_FIELD": Key(str, "column of a knowledge graph", used=KNOWLEDGE),
    "ENTITY_ID_FIELD": Key(str, "column of a knowledge graph", used=KNOWLEDGE),
    "alias_of_entity_id": Key(list, "further columns of entities", None, True, KNOWLEDGE),
    "alias_of_relation_id": Key(list, "further columns of relations", None, True, KNOWLEDGE),
    "kg_reverse_r": Key(bool, "reversed relations", used=KNOWLEDGE),
    "entity_kg_num_interval": Key(str, "how often an entity must occur", used=KNOWLEDGE),
    "relation_kg_num_interval": Key(str, "how often a relation must occur", used=KNOWLEDGE),
    # Keys of single models
    "contrast": Key(str, "the contrast of FEARec", one_of("us", "un", "su", "us_x"), True, only("beside sim and tau", lambda run: None not in (run.get("sim"), run.get("tau")), "add --sim=dot --tau=1")),
    "sim": Key(str, "the similarity of FEARec's contrast", one_of("dot", "cos"), True, FEAREC),
    "tau": Key(float, "the temperature of FEARec's contrast, or of MacridVAE's prototypes", POSITIVE, True, TEMPERED),
    "loss_type": Key(str, "CE: cross-entropy over all items; BPR: against sampled negatives; BCE and MSE: the losses of CDAE", one_of("CE", "BPR", "BCE", "MSE"), used=LOSSES),
}
# fmt: on
"""RecBole's keys that are not in `keys.KEYS`: types, meanings, bounds, and when they are used."""

READ_WITHOUT_DEFAULT = {
    "": ("encoding",),
    "FEARec": ("contrast", "sim", "tau"),
}
"""Keys that RecBole uses although none of its YAML files names them: in every run, and in single models."""

_PROCESSES = "for several processes: torchrun --nproc_per_node=2 run_recbole_bbqrec.py ..., see docs/scale.md; drop it"
_DEVICE = "use_gpu=False computes on the CPU, gpu_id=1 on that GPU"
_OF_TRANSFORMS = "it is of RecBole's transform, which no model but BERT4Rec and SHAN reads; drop it"
_SPLIT = "the split is eval_args={'split': {'LS': 'valid_and_test'}}"
HABITS: dict[str, tuple[str, ...] | str] = {
    "lr": ("learning_rate",),
    "batch_size": ("train_batch_size",),
    "test_batch_size": ("eval_batch_size",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "epoch": ("epochs",),
    "max_len": ("MAX_ITEM_LIST_LENGTH",),
    "maxlen": ("MAX_ITEM_LIST_LENGTH",),
    "max_seq_len": ("MAX_ITEM_LIST_LENGTH",),
    "max_seq_length": ("MAX_ITEM_LIST_LENGTH",),
    "dropout": ("hidden_dropout_prob", "dropout_prob", "dropout_ratio"),
    "dropout_prob": ("hidden_dropout_prob", "dropout_ratio"),
    "optimizer": ("learner",),
    "optim": ("learner",),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "patience": ("stopping_step",),
    "early_stop": ("stopping_step",),
    "embedding_size": ("hidden_size",),
    "embedding_dim": ("hidden_size", "embedding_size"),
    "hidden_dim": ("hidden_size", "embedding_size"),
    "num_layers": ("n_layers",),
    "num_blocks": ("n_layers", "num_layers"),
    "num_heads": ("n_heads", "heads"),
    "num_workers": ("worker",),
    "random_seed": ("seed",),
    "k": ("topk",),
    "params_file": ("config_files",),
    "neg_sampling": ("train_neg_sample_args",),
    "training_neg_sample_num": ("train_neg_sample_args",),
    "eval_setting": ("eval_args",),
    "split_ratio": _SPLIT,
    "group_by_user": _SPLIT,
    "leave_one_num": _SPLIT,
    "real_time_process": "drop it",
    **dict.fromkeys(("device", "cuda", "gpu", "gpus", "use_cuda", "no_cuda", "ngpu"), _DEVICE),
    **dict.fromkeys(("nproc", "world_size", "ip", "port", "group_offset", "offset", "local_rank"), _PROCESSES),
    **dict.fromkeys(("eta", "beta", "mask_ratio", "ft_ratio"), _OF_TRANSFORMS),
    "tool": "searches are made by `bbqrec tune`",
}
"""Keys that people know from RecBole's older versions and scripts and from PyTorch: what is meant, or what to do."""
