"""This project's models in RecBole's own scripts, and what those scripts need on today's Python stack."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import recbole.utils
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import trainer as recbole_trainers
from recbole.utils import EvaluatorType, InputType, ModelType

from . import compat, config, quick_start, registry
from .data.dataset import MultiModalSequentialDataset
from .errors import InputError
from .evaluation.candidates import sampling_of
from .protocol import check_protocol
from .registry import REGISTERED, TRAINERS
from .settings import NO_SETTINGS, property_files
from .training import recbole_checkpoint

OF_OUR_SCRIPT = ("final", "train_on", "result_file", "ranks_file", "group_metrics")
"""Settings of our models that say what `run_recbole_bbqrec.py` does with a run."""

_load_internal, _get_final = RecBoleConfig._load_internal_config_dict, RecBoleConfig._get_final_config_dict
_load_other, _build_dataset = AbstractRecommender.load_other_parameter, Dataset.__init__
_measure_lists = SequentialDataset._benchmark_presets


def register() -> None:
    """Enter this project's models into RecBole's look-up tables; see `recbole_bbqrec.register`."""
    compat.restore_numpy_names()
    compat.restore_removed_numpy_names()
    compat.restore_sparse_update()
    compat.restore_exhaustive_search()
    compat.stand_in_for_ray()
    registry.recbole_models()  # imports RecBole's package of sequential models without its side effect
    datasets, trainers = importlib.import_module("recbole.data.dataset"), importlib.import_module("recbole.trainer")
    for name, model in REGISTERED.items():
        # RecBole looks a model up as the attribute `name` of a module of that name.
        spec = ModuleSpec(f"recbole.model.sequential_recommender.{name.lower()}", None)
        sys.modules[spec.name] = module_from_spec(spec)
        setattr(sys.modules[spec.name], name, model)
        setattr(datasets, f"{name}Dataset", MultiModalSequentialDataset)
        setattr(trainers, f"{name}Trainer", TRAINERS[name])
    RecBoleConfig._load_internal_config_dict = _with_our_properties
    RecBoleConfig._get_final_config_dict = _with_our_checks
    # pandas 3 leaves blank cells of RecBole's own data sets blank, and then numbers them as it likes.
    Dataset.__init__, SequentialDataset._benchmark_presets = _with_lengths, _with_lengths_of_lists
    Dataset._load_feat, Dataset._check_interactions = MultiModalSequentialDataset._load_feat, _check_nothing
    Dataset._columns_to_load = _columns_to_load
    Dataset._fill_nan = MultiModalSequentialDataset._fill_nan
    recbole_trainers.Trainer._save_checkpoint = recbole_checkpoint.save_checkpoint
    recbole_trainers.PretrainTrainer.save_pretrained_model = recbole_checkpoint.save_pretrained_model
    AbstractRecommender.load_other_parameter = _load_other_parameter
    for name in ("recbole.quick_start", "recbole.quick_start.quick_start"):
        vars(importlib.import_module(name))["load_data_and_model"] = load_data_and_model


def _with_our_properties(self: Any, model: str, model_class: type, dataset: str) -> None:
    """What RecBole's `Config` reads, and after it our YAML files, for our models alone."""
    _load_internal(self, model, model_class, dataset)
    if model in REGISTERED:
        for path in property_files(model, dataset):
            self._update_internal_config_dict(path)
        for key in NO_SETTINGS:
            self.internal_config_dict.pop(key, None)


def _with_our_checks(self: Any) -> dict[str, Any]:
    """Refuse settings of our models as our own `Config` does, before anything is read or trained."""
    if self.model not in REGISTERED:
        return _get_final(self)
    given, internal = self.external_config_dict, self.internal_config_dict
    given |= config.completed(given, internal)
    for key in OF_OUR_SCRIPT:
        if (value := given.get(key, internal.get(key))) != internal.get(key):
            raise InputError(
                f"{key}: found {value!r}, which RecBole's own scripts do not use; run_recbole_bbqrec.py does"
            )
    final = _get_final(self)
    check_protocol(final)
    if any(sampling_of(final, split) for split in ("valid", "test")):
        mode = final["eval_args"]["mode"]
        raise InputError(f"eval_args: found mode {mode}, which run_recbole_bbqrec.py alone has for our models; drop it")
    # Of keys without effect only this one is refused: people share files of settings among models there.
    config.refuse_unused([config.unused_settings({**final, "model": self.model}, ["transform"], internal)])
    return final


def _with_lengths(self: Any, settings: Any) -> None:
    with compat.lengths_by_element():
        _build_dataset(self, settings)


def _with_lengths_of_lists(self: Any) -> None:
    with compat.lengths_by_element():
        _measure_lists(self)


def _check_nothing(*_: Any) -> None:
    """RecBole's own models may do without times."""


def _columns_to_load(self: Any, _: str, source: Any) -> Any:
    return self._get_load_and_unload_col(source)


def _load_other_parameter(self: Any, para: Any) -> None:
    _load_other(self, recbole_checkpoint.restored(para))


def load_data_and_model(model_file: str | Path) -> tuple[Any, ...]:
    """Stand in for RecBole's function: read a checkpoint, or the folder of a run of our models, back with its data.

    Parameters
    ----------
    model_file : the `.pth` file that a model of RecBole has left, or what `quick_start.load_data_and_model` reads.

    Returns
    -------
    config, model, dataset, train_data, valid_data, test_data.
    """
    path = Path(model_file)
    if path.is_dir() or path.suffix == ".safetensors":
        return quick_start.load_data_and_model(path)
    checkpoint = recbole_checkpoint.read_checkpoint(path)
    settings = _config_of(checkpoint["config"])
    compat.init_seed(settings)
    recbole.utils.init_logger(settings)
    dataset = create_dataset(settings)
    loaders = data_preparation(settings, dataset)
    compat.init_seed(settings)
    model = recbole.utils.get_model(settings["model"])(settings, loaders[0]._dataset).to(settings["device"])
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint["other_parameter"])
    return settings, model, dataset, *loaders


def _config_of(plain: dict[str, Any]) -> Any:
    """Return RecBole's `Config` of settings that it has built before; their text is not evaluated a second time."""
    found = RecBoleConfig.__new__(RecBoleConfig)
    found.compatibility_settings()
    found._init_parameters_category()
    kinds = {"MODEL_TYPE": ModelType, "MODEL_INPUT_TYPE": InputType, "eval_type": EvaluatorType}
    named = {key: kind[plain[key].partition(".")[2]] for key, kind in kinds.items()}
    of_its_machine = ("device", "local_rank", "single_spec")
    found.final_config_dict = {key: value for key, value in plain.items() if key not in of_its_machine} | named
    found.model, found.dataset = plain["model"], plain["dataset"]
    found._init_device()
    return found
