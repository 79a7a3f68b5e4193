"""What a run does, by its settings alone, among which `KIND` says what sort of model it has."""

from .key_types import Settings
from .modalities import MODALITIES

KIND, WINDOWS, UNTRAINED, STOCK = "model_kind", "windows", "untrained", "stock"
"""Models of this project that train on windows of sequences or do not train, and RecBole's sequential ones."""
INTERACTIONS = GENERAL, TRADITIONAL, CONTEXT, KNOWLEDGE = "general", "traditional", "context", "knowledge"
"""RecBole's other models, which learn from pairs of a user and an item: general ones (traditional ones among them count
instead of training), context-aware and knowledge-aware ones."""
ON_GPU = "on_gpu"
"""Whether the run computes on a GPU; stands among its settings as `KIND` does."""

COUNTED, VECTORS = ("tfidf", "codes"), (".npy", ".safetensors")
"""Encoders without a model, and the endings of files of vectors; any other encoder is a `transformers` model."""
FEATURE_MODELS, CLICK_MODELS = ("FDSA", "GRU4RecF", "SASRecF"), ("DIEN", "DIN")
"""RecBole's models that read the item columns of `selected_features`, and those that read all columns."""
GRAPH_MODELS = ("GRU4RecKG", "KSR")
"""RecBole's models that read a knowledge graph and pretrained vectors, `preload_weight`."""
TOKENIZERS = ("behavior_bind", "rqvae", "aligned", "kmeans")


def encoder_of(run: Settings, modality: str) -> str:
    """Return the encoder of a modality, empty where it has none."""
    name = run.get(f"{modality}_encoder")
    return "" if name in (None, "~") else str(name)


def encoders(run: Settings) -> list[str]:
    """Return the encoders of the modalities that have one."""
    return [name for name in (encoder_of(run, modality) for modality in MODALITIES) if name]


def reads_labels(run: Settings) -> bool:
    """Whether the model learns from labels which of the rows are wanted."""
    return run["model"] in CLICK_MODELS or run.get(KIND) == CONTEXT


def reads_graph(run: Settings) -> bool:
    """Whether the model reads a knowledge graph of the items."""
    return run.get("model") in GRAPH_MODELS or run.get(KIND) == KNOWLEDGE


def attends(run: Settings) -> bool:
    """Whether the similarity of items enters attention."""
    return (run.get("similarity_attention") or "off") != "off"


def compares(run: Settings) -> bool:
    """Whether items are compared: by their semantic IDs, or with `codes: none` by their raw features instead."""
    # RecBole's models read codes as columns of items, as a knowledge graph, or in their item tables.
    shown = run.get("code_fields") or run.get("kg") == "codes" or "codes" in (run.get("item_semantics") or ())
    return bool(run.get("attach_semantic_ids") or shown) or attends(run)


def is_labelled(run: Settings) -> bool:
    """Whether rows have labels: by a threshold, or from a column."""
    columns = run["load_col"]
    return bool(run["threshold"]) or columns is None or run["LABEL_FIELD"] in (columns.get("inter") or ())


def has_codes(run: Settings) -> bool:
    """Whether semantic IDs are made."""
    return compares(run) and run.get("codes") != "none"


def decodes(run: Settings) -> bool:
    """Whether IDs are decoded; a second stage cannot go on from that, as items beyond a beam have no scores."""
    return run.get("scoring") == "generate" or "causal_encoder" in run


def ranks_new_items(run: Settings) -> bool:
    """Whether the model represents items by what is known of new ones too: features, or codes made from them."""
    if decodes(run) or "content_last_items" in run:
        return True
    return is_bbqrec(run) and bool(run.get("use_features") or (has_codes(run) and run.get("use_code_embedding")))


def second_stage(run: Settings) -> str:
    """Return the form of second stage that a run makes: `gbdt`, `linear` or `off`."""
    is_off = decodes(run) or not run.get("candidate_similarity")
    return "off" if is_off else run.get("second_stage") or "off"


def is_bbqrec(run: Settings) -> bool:
    """Whether the model is BBQRec or shares its class: its controls, UniSRec."""
    return "scoring" in run
