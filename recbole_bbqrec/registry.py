"""Which class a name on the command line means: explicit tables, falling back to RecBole's own."""

import importlib
from typing import Any

from recbole.data.dataset import Dataset, KGSeqDataset, SequentialDataset
from recbole.model.abstract_recommender import AbstractRecommender, SequentialRecommender
from recbole.utils import ModelType
from recbole.utils import get_trainer as recbole_trainer

from . import compat, schema
from .data.code_fields import VECTOR
from .data.code_graph import CodeGraphDataset
from .data.dataset import MultiModalSequentialDataset, PrefixDataset
from .data.interactions import InteractionDataset
from .errors import InputError, nearest
from .model.bbqrec import BBQRec
from .model.cpu_speed import speed_up_graph, speed_up_vectors
from .model.item_semantics import add_semantics
from .model.stock_attention import add_similarity
from .model.stock_kgat import KGAT
from .model.tiger import TIGER
from .model.unisrec import UniSRec
from .model.untrained import ContentNeighbors, Pop, TransitionGraph, Untrained
from .training import checkpoint
from .training.sequence_trainer import SequenceTrainer
from .training.trainer import ProtocolTrainer
from .training.untrained_trainer import UntrainedTrainer

MODELS: dict[str, type[SequentialRecommender]] = {
    "BBQRec": BBQRec,
    "BBQRecCodes": BBQRec,
    "BBQRecCodesDense": BBQRec,
    "BBQRecGenerate": BBQRec,
    "BBQRecWithoutCandidates": BBQRec,
    "SASRecPlus": BBQRec,
    "SASRecPlusT": BBQRec,
    "SASRecPlusFT": BBQRec,
    "SASRecPlusSeen": BBQRec,
    "UniSRec": UniSRec,
    "TIGER": TIGER,
    "TIGERPaper": TIGER,
    "Pop": Pop,
    "ContentNeighbors": ContentNeighbors,
    "TransitionGraph": TransitionGraph,
}
"""Models of this project by the name given to `--model`. Each has a file of its own in properties/model; names that
share a class differ in their settings alone."""

TRAINERS: dict[str, type[ProtocolTrainer]] = {
    name: UntrainedTrainer if issubclass(model, Untrained) else SequenceTrainer for name, model in MODELS.items()
}
"""Trainers of this project's models; RecBole's models keep their own trainer with the protocol on top."""

REGISTERED = {name: model for name, model in MODELS.items() if name != "Pop"}
"""Models that RecBole's own scripts get to know; to them, `Pop` is the general model that RecBole has."""

_PRETRAINED = "its second stage reads the weights of the first from a file of RecBole's, which is not loaded here"
_TREES = "it grows trees over labelled rows, for which RecBole has a trainer and files of its own"
NOT_RUN = {"S3Rec": _PRETRAINED, "RaCT": _PRETRAINED, "LightGBM": _TREES, "XGBoost": _TREES}
"""RecBole's models that this script does not run, and why."""

MENDED: dict[str, type[AbstractRecommender]] = {"KGAT": KGAT}
"""Our mended versions of RecBole's models, which take the place of those of the same name."""

PACKAGES = ("sequential", "general", "context_aware", "knowledge_aware")
"""RecBole's packages of models, `recbole.model.<name>_recommender`."""
_KINDS = {
    ModelType.SEQUENTIAL: schema.STOCK,
    ModelType.GENERAL: schema.GENERAL,
    ModelType.TRADITIONAL: schema.TRADITIONAL,
    ModelType.CONTEXT: schema.CONTEXT,
    ModelType.KNOWLEDGE: schema.KNOWLEDGE,
}


def get_model(name: str) -> type[AbstractRecommender]:
    """Return the model class called `name`, ours or RecBole's; an `InputError` gives the nearest names."""
    if name in MODELS:
        return MODELS[name]
    if name in NOT_RUN:
        raise InputError(
            f"--model={name}: {NOT_RUN[name]}; run it with RecBole's own scripts, after recbole_bbqrec.register()"
        )
    stock: dict[str, type[AbstractRecommender]] = {}
    for package in PACKAGES:
        stock |= recbole_models(package) | MENDED
        if name in stock:
            return stock[name]
    names = sorted({*MODELS, *stock})
    near = nearest(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
    raise InputError(f"--model={name}: no model of this name; {hint}")


def kind_of(name: str) -> str:
    """Return what sort of model `name` is: one of the kinds in `schema`."""
    if name in TRAINERS:
        return schema.UNTRAINED if TRAINERS[name] is UntrainedTrainer else schema.WINDOWS
    return _KINDS[get_model(name).type]


def build_model(config: Any, dataset: Any) -> AbstractRecommender:
    """Return the configured model for `dataset`; RecBole's own with the additions that are asked for."""
    if config["num_clusters"]:  # of NCL, which would otherwise end in an error of faiss
        fewest = min(dataset.user_num, dataset.item_num) - 1
        if config["num_clusters"] > fewest:
            found = f"found {config['num_clusters']}, expected at most {fewest}"
            raise InputError(f"num_clusters: {found}, the smaller one of the numbers of users and of items")
    if config["reranker_CAN_NUM"]:  # of SASRecCPR and GRU4RecCPR, which would otherwise fail in torch while training
        largest, items = int(str(config["reranker_CAN_NUM"]).split(",")[0]), dataset.num(config["ITEM_ID_FIELD"]) - 1
        if largest > items:
            raise InputError(f"reranker_CAN_NUM: found {largest}, expected at most {items}, the number of items")
    compat.restore_sparse_update()
    compat.stand_in_for_torch_scatter()
    try:
        model = get_model(config["model"])(config, dataset)
    except ModuleNotFoundError as error:
        why = f"RecBole's code for it needs the package {error.name}, which is not installed here"
        raise InputError(f"--model={config['model']}: {why}; install it, or take another model") from error
    if config["model"] not in MODELS:
        model.catalogue = dataset.catalogue  # for a second stage; ours have it
        checkpoint.note_derived(model)
        speed_up_graph(model)
        speed_up_vectors(model, VECTOR)
        if (config["similarity_attention"] or "off") != "off":
            add_similarity(model, config, dataset)
        if config["item_semantics"]:
            add_semantics(model, config, dataset)
    return model


def recbole_models(*packages: str) -> dict[str, type[AbstractRecommender]]:
    """Return RecBole's models by name, of some of `PACKAGES`, the sequential ones unless told otherwise.

    Importing them changes nothing here.
    """
    found: dict[str, type[AbstractRecommender]] = {}
    for package in packages or PACKAGES[:1]:
        with compat.keeping_anomaly_mode():
            module = importlib.import_module(f"recbole.model.{package}_recommender")
        found |= {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == f"{module.__name__}.{name.lower()}"
        }
    return found


def get_dataset(model: str, kg: str = "files") -> type[MultiModalSequentialDataset]:
    """Return the data set class of a model of ours, or of RecBole's, over its special one where it has one (DIEN).

    `kg` is where the knowledge graph of a model that reads one comes from, as the key of this name says.
    """
    if model in MODELS:
        return MultiModalSequentialDataset
    kind = kind_of(model)
    base = InteractionDataset if kind in schema.INTERACTIONS else PrefixDataset
    graph = CodeGraphDataset if kg == "codes" else KGSeqDataset
    usual = {schema.STOCK: SequentialDataset, schema.KNOWLEDGE: graph}.get(kind, Dataset)
    special = getattr(importlib.import_module("recbole.data.dataset"), f"{model}Dataset", usual)
    if issubclass(base, special):
        return base
    return type(f"MultiModal{special.__name__}", (base, special), {})


def get_trainer(config: Any) -> type[ProtocolTrainer]:
    """Return the trainer class of the configured model."""
    if config["model"] in TRAINERS:
        return TRAINERS[config["model"]]
    stock = recbole_trainer(config["MODEL_TYPE"], config["model"])
    return type(f"Protocol{stock.__name__}", (ProtocolTrainer, stock), {"__module__": stock.__module__})
