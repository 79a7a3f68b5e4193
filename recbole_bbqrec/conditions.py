"""When a run uses a key: the conditions in which `keys.KEYS` and `recbole_keys.RECBOLE` are written."""

from pathlib import Path
from typing import Any

from .key_types import Settings, Use, only
from .modalities import MODALITIES
from .schema import (
    CLICK_MODELS,
    CONTEXT,
    COUNTED,
    FEATURE_MODELS,
    GENERAL,
    GRAPH_MODELS,
    INTERACTIONS,
    KIND,
    KNOWLEDGE,
    ON_GPU,
    STOCK,
    TOKENIZERS,
    TRADITIONAL,
    UNTRAINED,
    VECTORS,
    WINDOWS,
    attends,
    compares,
    decodes,
    encoder_of,
    encoders,
    has_codes,
    is_bbqrec,
    reads_graph,
    reads_labels,
    second_stage,
)


def _is_model(encoder: str) -> bool:
    return bool(encoder) and encoder not in COUNTED and Path(encoder).suffix not in VECTORS


def _reads_columns(run: Settings, modality: str) -> bool:
    """Whether features of a modality are made from columns of the .item file."""
    encoder = encoder_of(run, modality)
    is_file = Path(encoder).suffix in VECTORS
    return encoder != "" and not is_file and (encoder in COUNTED or not run.get(f"{modality}_folder"))


def _picks_columns(run: Settings) -> bool:
    """Whether the item columns that RecBole's model reads are picked from those of texts and codes."""
    default, columns = run.get("selected_features") == ["class"], run["load_col"] or {}
    return run["model"] in FEATURE_MODELS and default and not columns.get("item")


def _reads_more(run: Settings) -> bool:
    """Whether the model reads further columns of users, items or rows than their ids."""
    return run["model"] in FEATURE_MODELS + CLICK_MODELS or run.get(KIND) == CONTEXT


def _builds(run: Settings) -> bool:
    return bool(run.get("attach_item_features") or run.get("item_semantics")) or compares(run)


def _loads_more(run: Settings) -> bool:
    """Whether further columns are loaded than users, items and times."""
    columns = run["load_col"]
    return columns is None or len(columns) > 1 or len(columns.get("inter") or ()) > 3 or run["model"] in FEATURE_MODELS


def _loads_rows(run: Settings) -> bool:
    """Whether rows of users or items are loaded; the item columns of `selected_features` are named later."""
    columns = run["load_col"]
    return columns is None or not {"user", "item"}.isdisjoint(columns) or run["model"] in FEATURE_MODELS


def _candidates(run: Settings) -> list[str]:
    return [] if second_stage(run) == "off" else list(run["candidate_similarity"])


def _reads_features(run: Settings, attach: Any) -> bool:
    if not attach:  # to leave them out, nothing else may bring them along
        return not compares(run)
    ranked = not MODALITIES.keys().isdisjoint(_candidates(run))
    read = compares(run) or not {"graph_hops", "content_last_items"}.isdisjoint(run) or ranked
    return read or (is_bbqrec(run) and bool(run.get("use_features")))


def _reads_ids(run: Settings, attach: Any) -> bool:
    if "causal_encoder" in run:
        return True
    if not attach:
        return not attends(run)
    scored = run.get("use_code_embedding") or run.get("scoring") != "dense"
    selected = "semantic_id" in (run.get("selected_features") or ())
    read = attends(run) or "codes" in _candidates(run) or (scored if is_bbqrec(run) else selected)
    return run.get("codes") != "none" and bool(read)


def _known_signals(run: Settings, names: Any) -> bool:
    """Whether a second stage of this form can know all these signals of the items."""
    form = second_stage({**run, "candidate_similarity": names})
    there = {
        "behavior": form != "off",
        "codes": form != "off" and has_codes(run),
        "seen": form == "linear",
        "popularity": form == "gbdt",
    }
    of_features = form != "off" and _builds(run)
    return all(there.get(name, of_features and bool(encoder_of(run, name))) for name in names)


IDS = (
    "semantic IDs: attach_semantic_ids, similarity_attention, code_fields, kg=codes or codes in item_semantics, "
    "and codes not none"
)


def _tokenizer(*names: str, learned: bool = True) -> tuple[Use, ...]:
    """One of these tokenizers gives the codes; where `learned`, no random ones stand in their place."""

    def holds(run: Settings) -> bool:
        return has_codes(run) and run.get("tokenizer") in names and not (learned and run.get("codes") == "random")

    which = f", with tokenizer={' or '.join(names)}" if len(names) < len(TOKENIZERS) else ""
    return only(f"with {IDS}{which}{' and without codes=random' * learned}", holds)


TRAINED = only(
    "in models that train, not in Pop, TransitionGraph and RecBole's traditional models",
    lambda run: run[KIND] not in (UNTRAINED, TRADITIONAL),
)
RECBOLES = only("in RecBole's own models", lambda run: run[KIND] in (STOCK, *INTERACTIONS))
SEQUENTIAL = only("in RecBole's sequential models", lambda run: run[KIND] == STOCK)
NEGATIVES = only(
    "in RecBole's models that train on sampled negatives, with loss_type=BPR or without a loss_type",
    lambda run: run[KIND] in (STOCK, GENERAL, CONTEXT, KNOWLEDGE) and run.get("loss_type") != "CE",
    "drop it; BBQRec and its controls draw their negatives themselves, see n_negatives",
)
COLUMNS = only(
    f"in models that read further columns: {', '.join(FEATURE_MODELS + CLICK_MODELS)}, context-aware ones",
    _reads_more,
)
ITEM_COLUMNS = only(
    "with benchmark_filename, and in models that read further columns of items: "
    f"{', '.join(FEATURE_MODELS + CLICK_MODELS + GRAPH_MODELS)}, context-aware and knowledge-aware ones",
    lambda run: bool(run["benchmark_filename"]) or _reads_more(run) or reads_graph(run),
)
SELECTED = only(f"in {', '.join(FEATURE_MODELS)}", lambda run: run["model"] in FEATURE_MODELS)
LABELS = only(
    f"in {' and '.join(CLICK_MODELS)} and context-aware models, which learn from labels",
    reads_labels,
    "drop it; to keep some interactions alone use val_interval={'rating': '[4,inf)'}",
)
PRELOADED = only(
    f"in {' and '.join(GRAPH_MODELS)}",
    lambda run: run["model"] in GRAPH_MODELS,
    "give pretrained vectors of items as a file: text_encoder=vectors.npy or image_encoder=, see docs/item-features.md",
)
SEQUENCES = only(
    "where texts, further columns or files with histories are read",
    lambda run: _builds(run) or _loads_more(run) or bool(run["benchmark_filename"]),
)
ROWS = only("where columns of users or items are loaded", _loads_rows)
FILTERED = only("without benchmark_filename, whose files stay as they are", lambda run: not run["benchmark_filename"])
ON_A_GPU = (Use("only on a GPU", lambda run, value: bool(run[ON_GPU]) or value in (False, "", "-1")),)
HISTORIES = only(
    "in models that read histories, not in Pop without a second_stage and in models of users and items",
    lambda run: run[KIND] not in INTERACTIONS and (run["model"] != "Pop" or second_stage(run) != "off"),
)

ATTACH_FEATURES = (
    Use(
        "True only where something reads the features (use_features, a modality of a second_stage, "
        "TransitionGraph), False only where neither semantic IDs nor similarity attention are made from them",
        _reads_features,
        "to go without features empty text_encoder and those of other modalities",
    ),
)
ATTACH_IDS = (
    Use(
        "True only where something reads the IDs (BBQRec's use_code_embedding, scoring, similarity_attention, codes "
        "of a second_stage; selected_features) and codes is not none, False only without similarity attention",
        _reads_ids,
        "to go without codes set codes=none",
    ),
)
FEATURES = (
    Use(
        "only where features are built: attach_item_features, item_semantics, or what semantic IDs are made for",
        lambda run, value: not value or _builds(run),
        "drop it, or take a model that reads features, such as BBQRec",
    ),
)
TEXTS = (
    Use(
        f"only where an encoder makes features of texts, and in {', '.join(FEATURE_MODELS)} without selected_features",
        lambda run, value: not value or _picks_columns(run) or (_builds(run) and _reads_columns(run, "text")),
        "drop it, or set text_encoder in a model that reads features",
    ),
)


def code_columns(modality: str) -> tuple[Use, ...]:
    """Make the condition of `<modality>_fields`, which name code columns."""
    words = f"with {modality}_encoder=codes, and in {', '.join(FEATURE_MODELS)} without selected_features"
    return only(words, lambda run: _picks_columns(run) or (_builds(run) and _reads_columns(run, modality)))


IMAGES = (
    Use(
        "only where image_encoder names a model and features are built",
        lambda run, value: not value or (_builds(run) and _is_model(encoder_of(run, "image"))),
    ),
)
COUNTED_FEATURES = only(
    "with an encoder tfidf or codes", lambda run: _builds(run) and not set(COUNTED).isdisjoint(encoders(run))
)
MODEL_FEATURES = only(
    "where an encoder is a transformers model", lambda run: _builds(run) and any(map(_is_model, encoders(run)))
)
TEXT_MODEL = only(
    "where text_encoder is a transformers model", lambda run: _builds(run) and _is_model(encoder_of(run, "text"))
)
COMPARES = only(
    "with attach_semantic_ids, similarity_attention, code_fields, kg=codes or codes in item_semantics",
    lambda run: run[KIND] != UNTRAINED and compares(run),
)
CODES = only(f"with {IDS}", has_codes)
FIELDS = (
    *only(
        "in context-aware models, such as DeepFM, and with codes not none",
        lambda run: run[KIND] == CONTEXT and run.get("codes") != "none",
    ),
    Use(
        "vectors only in models that read sequences of numbers, not in FwFM",
        lambda run, value: run["model"] != "FwFM" or "vectors" not in value,
        "give --code_fields=prefixes",
    ),
)
GRAPH = only(
    "in knowledge-aware models, such as CKE, and with codes not none",
    lambda run: run[KIND] == KNOWLEDGE and run.get("codes") != "none",
)
PREFIXES = only(
    "with prefixes among code_fields, or kg=codes",
    lambda run: "prefixes" in (run.get("code_fields") or ()) or run.get("kg") == "codes",
)
REPORT = (Use(CODES[0].words, lambda run, value: not value or has_codes(run)),)
SHAPE = _tokenizer(*TOKENIZERS, learned=False)
NETWORK = _tokenizer("behavior_bind", "rqvae", "aligned", learned=False)
LEARNED_NETWORK = _tokenizer("behavior_bind", "rqvae", "aligned")
RQVAE, ALIGNED = _tokenizer("rqvae", "aligned"), _tokenizer("aligned")
BOUND, BOUND_SHAPE = _tokenizer("behavior_bind"), _tokenizer("behavior_bind", learned=False)
BOUND_FEATURES = (*BOUND, *only("where items have features", lambda run: bool(encoders(run))))
SHARED = (*BOUND_FEATURES, *only("without sid_mode=fused", lambda run: run.get("sid_mode") != "fused"))
ATTENTION = only(
    "in BBQRec, its controls and RecBole's sequential models", lambda run: run[KIND] == STOCK or is_bbqrec(run)
)
SEMANTICS = (
    *only("in RecBole's models that train", lambda run: run[KIND] not in (WINDOWS, UNTRAINED, TRADITIONAL)),
    *only("codes without codes=none", lambda run: has_codes(run) or "codes" not in run["item_semantics"]),
    *only(
        "features with an encoder",
        lambda run: bool(encoders(run)) or "features" not in run["item_semantics"],
        "name one, as in --text_encoder=tfidf --text_fields='title brand'",
    ),
)
SIMILARITY = (*ATTENTION, *only("with similarity_attention", attends))
CODE_EMBEDDING = (Use(f"True {CODES[0].words}", lambda run, value: not value or has_codes(run)),)
IDENTITY = (
    Use(
        f"{CODES[0].words}, and not with scoring=generate, which decodes what a tokenizer has learned",
        lambda run, value: not value or (has_codes(run) and not decodes(run)),
    ),
)
PROJECTED = (
    Use(
        "True only with item features: attach_item_features and an encoder of a modality, such as text_encoder",
        lambda run, value: not value or (_builds(run) and bool(encoders(run))),
    ),
)
EXPERTS = only("with use_features", lambda run: bool(run.get("use_features")))
ID_PART = only("with use_item_id", lambda run: bool(run.get("use_item_id")))
ID_DIM = (
    *ID_PART,
    Use("only up to hidden_size", lambda run, value: (value or 0) <= run["hidden_size"], "give a smaller one"),
)
SCORING = (Use(f"joint, codes and generate {CODES[0].words}", lambda run, value: value == "dense" or has_codes(run)),)
JOINT = only("with scoring=joint and semantic IDs", lambda run: run.get("scoring") == "joint" and has_codes(run))
GENERATE = only("with scoring=generate", lambda run: run.get("scoring") in (None, "generate"))
DENSE = only("with scoring=joint or dense", lambda run: run.get("scoring") in ("joint", "dense"))
COSINE = (*DENSE, *only("with score_function=cosine", lambda run: run.get("score_function") == "cosine"))
SECOND_STAGE = (
    Use(
        "only in models that score all items after a history: not where IDs are decoded, as in TIGER and with "
        "scoring=generate, which scores a few items, and not in models of users and items",
        lambda run, value: value == "off" or not (decodes(run) or run[KIND] in INTERACTIONS),
    ),
)
CANDIDATES = (
    Use(
        "only with a second_stage; a modality only where it has an encoder and features are built, codes only "
        "with semantic IDs, seen only with second_stage=linear, popularity only with second_stage=gbdt",
        lambda run, value: not value or _known_signals(run, value),
        "drop it, or give what it needs",
    ),
)
NEIGHBOURS = only(
    "with second_stage=linear and candidate_similarity by behavior, a modality or codes",
    lambda run: second_stage(run) == "linear" and bool(set(_candidates(run)) - {"seen"}),
)


def _beyond_one(key: str, words: str) -> tuple[Use, ...]:
    return only(f"with {words}", lambda run: any(value not in (None, 1) for value in run.get(key) or ()))


HOPS, STEPS = _beyond_one("graph_hops", "more than one hop"), _beyond_one("graph_last_items", "more than one last item")
CONTENT_STEPS = _beyond_one("content_last_items", "more than one last item")
HAS_FEATURES = only("where items have features, as by text_encoder", lambda run: _builds(run) and bool(encoders(run)))
