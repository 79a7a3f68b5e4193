"""Our keys: the one place that knows the type, the meaning and the bounds of each, and when a run uses it."""

from pathlib import Path

from . import conditions, schema
from .key_types import (
    CUT_OFFS,
    FACTOR,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    Allowed,
    Key,
    one_of,
    parts_of,
    whole,
    whole_parts_of,
)
from .modalities import MODALITIES
from .recbole_keys import METRICS, TAIL

_READY = Allowed(
    f"codes or a file of vectors ({', '.join(schema.VECTORS)}): no model is known for it",
    lambda value: value in ("", "~", "codes") or Path(value).suffix in schema.VECTORS,
)


# fmt: off
KEYS: dict[str, Key] = {
    # Protocol
    "eval_args": Key(dict, "split, order and mode of the evaluation, see docs/leaderboard.md; leave-one-out, and all items are ranked unless mode is uni100 or pop100, see docs/metrics.md; order RO for models of users and items", used=conditions.FILTERED, parts=("split", "group_by", "order", "mode")),
    "repeatable": Key(bool, "RecBole's flag for sequential models; seen items are masked by our ranker"),
    "metrics": Key(list, f"of {', '.join(METRICS)}, see docs/metrics.md, and AUC, LogLoss, see docs/context.md; a trained model is judged by others without training", form=parts_of),
    "topk": Key(list, "cut-offs of the metrics; a trained model is judged at others without training", CUT_OFFS, form=whole_parts_of),
    "valid_metric": Key(str, "metric that stops training, in the masked column"),
    "tail_ratio": Key(float, "long tail of TailPercentage: this share of the items that training has, the least popular ones, or above 1 those of at most so many interactions", POSITIVE, used=TAIL),
    "group_metrics": Key(list, "metrics by groups of targets: by `popularity` in training, by `length` of the history, `cold` ones apart", one_of("popularity", "length", "cold", words="some of {}, or [] for none"), form=parts_of),
    "eval_batch_size": Key(int, "histories scored at once", POSITIVE),
    "valid_users": Key(int, "users of validation that its figures are of, the same ones for every seed; 0: all", NOT_NEGATIVE),
    "load_col": Key(dict, "columns RecBole loads; item texts are read by the item features alone"),
    "verbose": Key(bool, "show on the screen what the log file has: all settings, the model, tables of the report card, every evaluation"),
    "final": Key(bool, "also evaluate the test split; leave it off while developing"),
    "seed": Key(int, "every source of randomness starts here", SEED),
    "shuffle_ties": Key(int, "seed that shuffles a user's interactions of equal time; empty keeps the file's order", NOT_NEGATIVE, True, conditions.FILTERED),
    "MAX_ITEM_LIST_LENGTH": Key(int, "last items of the history that are read", POSITIVE, used=conditions.HISTORIES),
    # Training
    "epochs": Key(int, "cap; a run that reaches it is marked", POSITIVE, used=conditions.TRAINED),
    "eval_step": Key(int, "epochs from one evaluation to the next", POSITIVE, used=conditions.TRAINED),
    "stopping_step": Key(int, "evaluations in a row that may bring no improvement; the next such one ends training", NOT_NEGATIVE, used=conditions.TRAINED),
    "train_batch_size": Key(int, "training targets a step", POSITIVE, used=conditions.TRAINED),
    "learning_rate": Key(float, "of the optimiser", POSITIVE, used=conditions.TRAINED),
    "cycle_epochs": Key(int, "epochs in which the learning rate rises and falls once, the last of training; 0: a constant rate, and validation or `epochs` ends training", NOT_NEGATIVE),
    "weight_decay": Key(float, "of the optimiser", NOT_NEGATIVE, used=conditions.TRAINED),
    "average_weights": Key(bool, "evaluate and keep an average over the last steps of training, not the last step"),
    "length_groups": Key(bool, "run RecBole's own models on length groups where they do not depend on padding", used=conditions.SEQUENTIAL),
    "resume": Key(bool, "go on with an interrupted run of the same settings, or one of fewer epochs; evaluate a finished one"),
    "cold_items": Key(float, "share of the items that training does not know, to judge how new items are ranked", PROBABILITY),
    "train_on": Key(str, "`train`, or `all`: validation decides, then all interactions are trained on, for use", one_of("train", "all")),
    # Item features
    "attach_item_features": Key(bool, "build the item features and attach them to the data set", used=conditions.ATTACH_FEATURES),
    "attach_semantic_ids": Key(bool, "learn semantic IDs on the training split and attach them as item feature `semantic_id`", used=conditions.ATTACH_IDS),
    "text_fields": Key(str, "columns of the .item file joined to one text, `title brand`, or a template, `{title}[ by {brand}]`", used=conditions.TEXTS),
    "text_encoder": Key(str, "`tfidf`, `codes`, a file of vectors (.npy, .safetensors) or a `transformers` model; empty: no texts", None, True, used=conditions.FEATURES),
    "image_fields": Key(str, "code columns of the .item file, for image_encoder `codes`", used=conditions.code_columns("image")),
    "image_folder": Key(str, "folder with <item token>.jpg or .png; relative paths start at the data set", None, True, used=conditions.IMAGES),
    "image_encoder": Key(str, "`codes`, a file of vectors or a `transformers` vision model; empty: no images", None, True, used=conditions.FEATURES),
    "audio_fields": Key(str, "code columns of the .item file, for audio_encoder `codes`", used=conditions.code_columns("audio")),
    "audio_encoder": Key(str, "`codes`, or a file of vectors; empty: no audio", _READY, True, used=conditions.FEATURES),
    "video_fields": Key(str, "code columns of the .item file, for video_encoder `codes`", used=conditions.code_columns("video")),
    "video_encoder": Key(str, "`codes`, or a file of vectors; empty: no video", _READY, True, used=conditions.FEATURES),
    "feature_dim": Key(int, "width of `tfidf` and `codes` features", POSITIVE, used=conditions.COUNTED_FEATURES),
    "encode_batch_size": Key(int, "texts or images that a `transformers` model encodes at once", POSITIVE, used=conditions.MODEL_FEATURES),
    "max_text_tokens": Key(int, "tokens of a text that a `transformers` model reads", POSITIVE, used=conditions.TEXT_MODEL),
    # Semantic IDs
    "codes": Key(str, "`learned`; `random` and `shuffled` are controls; `none`: raw features in every place of quantised vectors", one_of("learned", "random", "shuffled", "none"), used=conditions.COMPARES),
    "tokenizer": Key(str, "`behavior_bind`, `rqvae` (TIGER's, features alone), `aligned` (an RQ-VAE aligned with co-occurrence) or `kmeans` (residual k-means)", one_of(*schema.TOKENIZERS), used=conditions.CODES),
    "report_card": Key(bool, "measure new codes and write the ID report card beside the tokenizer's file", used=conditions.REPORT),
    "sid_mode": Key(str, "how the signals share an ID", one_of("chained", "concat", "fused"), used=conditions.BOUND_SHAPE),
    "sid_levels": Key(int, "codes per signal", POSITIVE, used=conditions.SHAPE),
    "sid_codebook_size": Key(int, "codes per codebook", POSITIVE, used=conditions.SHAPE),
    "sid_code_dim": Key(int, "width of the codebook vectors", POSITIVE, used=conditions.NETWORK),
    "sid_epochs": Key(int, "passes over the training sequences", POSITIVE, used=conditions.BOUND),
    "sid_min_steps": Key(int, "at least this many steps, for small data", NOT_NEGATIVE, used=conditions.BOUND),
    "sid_steps": Key(int, "batches an RQ-VAE is trained on", POSITIVE, used=conditions.RQVAE),
    "sid_alignment_weight": Key(float, "weight of the contrast between quantised and collaborative vectors", NOT_NEGATIVE, used=conditions.ALIGNED),
    "sid_learning_rate": Key(float, "of the tokenizer's AdamW", POSITIVE, used=conditions.LEARNED_NETWORK),
    "sid_independence_weight": Key(float, "weight of the share of the behaviour part that a probe predicts from the specific part", NOT_NEGATIVE, used=conditions.BOUND_FEATURES),
    "sid_sequence_contrast_weight": Key(float, "weight of the contrast of histories with their next item", NOT_NEGATIVE, used=conditions.BOUND),
    "sid_cross_contrast_weight": Key(float, "weight of the contrast between the signals of an item", NOT_NEGATIVE, used=conditions.BOUND_FEATURES),
    "sid_shared_codebook": Key(bool, "one set of codebooks for all signals", used=conditions.SHARED),
    "sid_use_id": Key(bool, "the learned item representation z_ID is a signal of its own", used=conditions.BOUND_SHAPE),
    "count_collisions": Key(bool, "last code: a number among the items of equal earlier codes, as in TIGER's paper; else one more level of the RQ-VAE"),
    # Codes for RecBole's other models
    "code_fields": Key(list, "columns of items that context-aware models read: `prefixes` of an ID's codes as tokens, quantised `vectors` as numbers", one_of("prefixes", "vectors", words="some of {}, or [] for none"), used=conditions.FIELDS, form=parts_of),
    "kg": Key(str, "knowledge graph of knowledge-aware models: `files`, RecBole's .kg and .link; `codes`, triples of an item, a level and the prefix of codes it has there", one_of("files", "codes"), used=conditions.GRAPH),
    "code_levels": Key(int, "most codes in a prefix, for code_fields and kg=codes; empty: as many as bring two items or more together", POSITIVE, True, used=conditions.PREFIXES),
    # Attention
    "similarity_attention": Key(str, "how the similarity of items enters attention; also for RecBole's SASRec, SASRecF, BERT4Rec and CORE", one_of("additive", "multiplicative", "undiscretised", "off"), used=conditions.ATTENTION),
    "similarity_signals": Key(list, "signals that attention compares, such as [text, id]; empty: all", None, True, used=conditions.SIMILARITY),
    "similarity_shared_layers": Key(bool, "one set of weights for all layers", used=conditions.SIMILARITY),
    "item_semantics": Key(list, "what the item tables of RecBole's own models add to IDs: embeddings of the codes, projected features; see docs/item-semantics.md", one_of("codes", "features", words="some of {}, or [] for none"), used=conditions.SEMANTICS, form=parts_of),
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
    "n_experts": Key(int, "whitening experts of UniSRec's adaptor", POSITIVE, used=conditions.EXPERTS),
    # Item representation
    "use_item_id": Key(bool, "ID embedding in the item representation"),
    "id_dim": Key(int, "width of the ID embedding, mapped linearly to hidden_size; empty: hidden_size, without a map", POSITIVE, True, used=conditions.ID_DIM),
    "use_code_embedding": Key(bool, "embeddings of the item's codes in the item representation", used=conditions.CODE_EMBEDDING),
    "use_features": Key(bool, "projected item features in the item representation", used=conditions.PROJECTED),
    "n_identity_codes": Key(int, "codes behind those of the tokenizer that are a hash of the item, by which items of similar codes are told apart", NOT_NEGATIVE, used=conditions.IDENTITY),
    "id_dropout_prob": Key(float, "how often an item goes without its ID part in training, as new items will", PROBABILITY, used=conditions.ID_PART),
    # Scoring and loss
    "scoring": Key(str, "`joint`: dense + code_weight * codes; `generate`: decode the ID code by code", one_of("joint", "dense", "codes", "generate"), used=conditions.SCORING),
    "code_weight": Key(float, "weight of the code heads in loss and score of `joint`", NOT_NEGATIVE, used=conditions.JOINT),
    "beam_size": Key(int, "prefixes kept in decoding; 0: exact likelihood of every item, for small catalogues", NOT_NEGATIVE, used=conditions.GENERATE),
    "n_decoder_layers": Key(int, "layers of the decoder of IDs", POSITIVE, used=conditions.GENERATE),
    "score_function": Key(str, "how a hidden state is compared with an item", one_of("cosine", "dot"), used=conditions.DENSE),
    "temperature": Key(float, "divides the cosine", POSITIVE, used=conditions.COSINE),
    "n_negatives": Key(int, "uniform negatives a step, all different, shared by its targets; 0: all items", NOT_NEGATIVE, used=conditions.DENSE),
    # Second stage
    "second_stage": Key(str, "fitted on validation over the scores of the trained model: `gbdt`, trees that rank its best candidates; `linear`, a weight for each bucket of candidate similarity", one_of("gbdt", "linear", "off"), used=conditions.SECOND_STAGE),
    "candidate_similarity": Key(list, "signals that a second stage knows of candidates and the last items; linear also `seen`: a weight for seen items; gbdt also `popularity`", one_of("behavior", *MODALITIES, "codes", "seen", "popularity", words="some of {}, or [] for none"), used=conditions.CANDIDATES),
    "n_candidate_last": Key(int, "last items of the history that candidates are compared with", POSITIVE, used=conditions.NEIGHBOURS),
    "n_candidate_neighbours": Key(int, "nearest neighbours kept per item and signal", POSITIVE, used=conditions.NEIGHBOURS),
    # Transition graph: validation chooses among the values of a list; one value fixes it
    "graph_hops": Key(list, "longest path; a step back in the history counts as a hop", whole(1, 3)),
    "graph_last_items": Key(list, "last items of the history that paths start from", whole(1, 50)),
    "graph_hop_decay": Key(list, "factor for every further hop", FACTOR, used=conditions.HOPS),
    "graph_position_decay": Key(list, "factor for every step back from the last item", FACTOR, used=conditions.STEPS),
    "graph_cosine_weight": Key(list, "weight of the features' cosine", Allowed("numbers of at least 0", lambda value: 0 <= value < float("inf")), used=conditions.HAS_FEATURES),
    "content_last_items": Key(list, "last items of the history that ContentNeighbors compares with", whole(1, 50)),
    "content_position_decay": Key(list, "factor for every step back from the last item", FACTOR, used=conditions.CONTENT_STEPS),
    # Files
    "cache_dir": Key(str, "item features and tokenizers, kept by fingerprint; empty: <checkpoint_dir>/cache", None, True, conditions.FEATURES),
    "results": Key(str, "folder of records, pages, and of the counts of how often a configuration was judged on test"),
    "result_file": Key(str, "write the run's record as JSON to this file", None, True),
    "ranks_file": Key(str, "write each judged target's rank to this file, .csv or .parquet", None, True),
}
# fmt: on
"""All keys of `properties/`: types, meanings and bounds. Of RecBole's own, those that we bound or give a default."""
