"""Settings of a run: RecBole's layers, our properties on top, and an error for every key that nobody reads."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config as RecBoleConfig

from . import compat, distributed, registry, schema
from .data.cold_items import check_cold_items
from .data.dataloader import check_negatives
from .data.feature_sources import COUNTED
from .data.presplit import EXAMPLE, check_files
from .data.selected_features import load_selected_features
from .errors import InputError, MissingDataSetError, RefusedKeyError, nearest
from .evaluation.labels import check_labels, of_rankings
from .layers import files_of, layered, parse_command_line, plain_loader, read_yaml
from .modalities import MODALITIES
from .protocol import check_protocol
from .recbole_keys import HABITS, READ_WITHOUT_DEFAULT
from .settings import MAY_BE_UNUSED, NO_SETTINGS, checked, property_files, public_sets, public_source, unused

OF_INTERACTIONS = {"repeatable": False, "train_neg_sample_args": {"distribution": "uniform"}, "threshold": None}
"""Settings that all models of users and items share with RecBole's general models. For context-aware ones on its
ml-100k, RecBole would otherwise make labels from ratings. Items that a user has met are no negatives."""


class Config(RecBoleConfig):
    """RecBole's `Config` with our properties, strict about keys, types and names.

    Parameters
    ----------
    model, dataset : names; where missing, the keys `model` and `dataset` of the arguments below.
    config_file_list : YAML files, later ones win.
    config_dict : settings that win over files.
    arguments : command line (`--key=value` strings) that wins over everything. Unlike RecBole's, nothing is read from
        `sys.argv` unless it is handed over here.

    Whatever is wrong is an `InputError`: a key, type or value, the model, a missing data set, a config file; and a key
    that the run would not use, unless `config_dict` is marked with `settings.MAY_BE_UNUSED`.

    Attributes
    ----------
    unused : see `unused_settings`.
    """

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        config_file_list: Iterable[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._arguments, self._noted = parse_command_line(arguments), {}
        files = [*(config_file_list or []), *files_of(self._arguments)]
        try:
            super().__init__(model, dataset, files, dict(config_dict or {}))
        except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            text = str(error.args[0]) if error.args else repr(error)
            raise InputError(f"settings: {' '.join(text.split())}; see docs/settings.md") from error
        kind = registry.kind_of(self.model)
        check_negatives(self, kind)
        check_labels(self, kind)
        check_cold_items(self)
        _check_data_path(self)
        _check_graph(self, kind)
        _check_encoders(self)
        load_selected_features(self, chosen="selected_features" in self.external_config_dict)

    def __setitem__(self, key: str, value: Any) -> None:
        """Change a setting; keys that are not settings are kept apart, as RecBole's models note column names here."""
        if key in self.final_config_dict:
            super().__setitem__(key, value)
        else:
            self._noted[key] = value

    def __getitem__(self, key: str) -> Any:
        return self._noted[key] if key in self._noted else super().__getitem__(key)

    def note(self, key: str, value: Any) -> None:
        """Let models read `value` under a key without changing its setting: what a data set has found out for them."""
        self._noted[key] = value

    # What follows are RecBole's own steps, in the order in which its constructor takes them.

    def compatibility_settings(self) -> None:
        compat.restore_numpy_names()

    def _build_yaml_loader(self) -> Any:
        return plain_loader()

    def _load_config_files(self, file_list: Iterable[str]) -> dict[str, Any]:
        return layered(*map(read_yaml, file_list))

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        # RecBole evaluates strings of the dict as code; a dict from Python already has its types.
        given = dict(config_dict or {})
        self._may_be_unused = given.pop(MAY_BE_UNUSED, False)
        return given

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._arguments

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = layered(self.file_config_dict, self.variable_config_dict, self.cmd_config_dict)

    def _get_model_and_dataset(self, model: str | None, dataset: str | None) -> tuple[str, type, str]:
        given = self.external_config_dict
        model, dataset = model or given.get("model"), dataset or given.get("dataset")
        for name, value in (("model", model), ("dataset", dataset)):
            if not value:
                raise InputError(f"--{name} is missing; for example: --model=BBQRec --dataset=ml-100k")
        return str(model), registry.get_model(str(model)), str(dataset)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        self.internal_config_dict["selected_features"] = self.internal_config_dict.get("selected_features")
        for path in property_files(model, dataset):
            content = {key: value for key, value in read_yaml(path).items() if key not in NO_SETTINGS}
            # RecBole loads further files for some models (item columns for its feature-aware ones): those stay.
            columns = {**(self.internal_config_dict.get("load_col") or {}), **content.pop("load_col", {})}
            self.internal_config_dict.update(content, load_col=columns)
        if registry.kind_of(model) in schema.INTERACTIONS:
            self.internal_config_dict.update(OF_INTERACTIONS)
            given = layered(self.internal_config_dict, self.external_config_dict)
            if registry.kind_of(model) == schema.CONTEXT and schema.is_labelled(given):
                self.internal_config_dict["train_neg_sample_args"] = None  # rows below the threshold are the negatives
        # RecBole takes one suffix or a list of them, and makes a list of the one.
        if isinstance(suffix := self.internal_config_dict.get("additional_feat_suffix"), str):
            self.internal_config_dict["additional_feat_suffix"] = [suffix]
        # RecBole's default, one sampled negative, stops every model with a cross-entropy loss.
        if {**self.internal_config_dict, **self.external_config_dict}.get("loss_type") == "CE":
            self.internal_config_dict["train_neg_sample_args"] = None

    def _get_final_config_dict(self) -> dict[str, Any]:
        given, internal = self.external_config_dict, self.internal_config_dict
        known = {*internal, *READ_WITHOUT_DEFAULT[""], *READ_WITHOUT_DEFAULT.get(self.model, ())}
        known.update(("model", "dataset", "config_files"), *self.parameters.values())
        for key in given:
            if key not in known:
                raise RefusedKeyError(f"unknown key {key!r} for model {self.model}; {_hint(key, known)}", key)
        given |= completed(given, internal)
        final = super()._get_final_config_dict()
        kind = registry.kind_of(self.model)
        check_protocol({**final, "model": self.model, schema.KIND: kind})
        self.unused = unused_settings({**final, "model": self.model}, given, internal)
        if kind in schema.INTERACTIONS:  # where that may be unused
            final["second_stage"] = "off"
        if not self._may_be_unused:
            refuse_unused([self.unused])
        return final

    def _set_default_parameters(self) -> None:
        # RecBole judges rankings or labels; a run here may be asked for both.
        final, names = self.final_config_dict, self.final_config_dict["metrics"]
        final["metrics"] = of_rankings(names) or names
        super()._set_default_parameters()
        final["metrics"] = names

    def _init_device(self) -> None:
        self.final_config_dict["gpu_id"] = distributed.gpu(self.final_config_dict["gpu_id"])
        if not distributed.is_main():
            self.final_config_dict |= {"show_progress": False, "state": "ERROR", "log_wandb": False}
        super()._init_device()
        if not self.final_config_dict["use_gpu"]:  # RecBole looks at gpu_id alone
            self.final_config_dict["device"] = torch.device("cpu")


def completed(given: Mapping[str, Any], internal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings, each in the type of its key; dicts of `MERGED` are completed from `internal`.

    A split by time is over all users unless it is given `group_by: user`.
    """
    values = {key: checked(key, value, internal.get(key)) for key, value in given.items()}
    evaluation = values.get("eval_args")
    if evaluation and isinstance(split := evaluation.get("split"), dict) and "TS" in split:
        values["eval_args"] = {"group_by": "none", **evaluation}
    return {key: value for key, value in layered(internal, values).items() if key in values}


def _hint(key: str, known: Iterable[str]) -> str:
    """What someone may have meant by a key that a run does not know."""
    habit = HABITS.get(key.lower(), ())
    if isinstance(habit, str):
        return habit
    near = [name for name in habit if name in known] or nearest(key, known, likeness=0.75)
    return f"did you mean {near[0]}?" if near else "docs/settings.md lists the keys"


def usable(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, RefusedKeyError]]:
    """Return the settings whose keys the run knows, and by key why it does not know or would not use others."""
    left, refused = {**given, MAY_BE_UNUSED: True}, {}
    while True:
        try:
            return left, refused | Config(config_dict=left).unused
        except MissingDataSetError as error:
            return left, refused | error.unused
        except RefusedKeyError as error:
            refused[error.key] = error
            del left[error.key]


def unused_settings(
    final: Mapping[str, Any], given: Iterable[str], internal: Mapping[str, Any]
) -> dict[str, RefusedKeyError]:
    """Return, for each key of `given` that the run of `final["model"]` would not use, the error that says why.

    `final` has the run's settings; a key with the value that it has among the defaults, `internal`, passes.
    """
    kind = registry.kind_of(final["model"])
    on_gpu = torch.cuda.is_available() and final["use_gpu"] and final["gpu_id"] not in ("", "-1")
    run, found = {**final, schema.KIND: kind, schema.ON_GPU: on_gpu}, {}
    for key in given:
        if key in final and final[key] != internal.get(key) and (use := unused(key, final[key], run)) is not None:
            what = f"{key}: found {final[key]!r}, which this run of {final['model']} would not use"
            found[key] = RefusedKeyError(f"{what} ({use.words}); {use.instead}", key)
    return found


def refuse_unused(runs: Sequence[Mapping[str, RefusedKeyError]]) -> None:
    """Raise the error about the first key that none of the runs uses, see `unused_settings`."""
    for key, error in runs[0].items():
        if all(key in run for run in runs):
            raise error


def _check_data_path(config: Config) -> None:
    name, folder = config["dataset"], Path(config["data_path"])
    if (path := Path(name)).name != name:
        raise InputError(
            f"--dataset: found {name!r}, expected a name; give --data_path={path.parent} --dataset={path.name}"
        )
    if config["benchmark_filename"] is not None:
        check_files(config)
        return
    if (folder / f"{name}.inter").is_file():
        return
    parent = folder.parent
    there = sorted(path.parent.name for path in parent.glob("*/*.inter") if path.stem == path.parent.name)
    known = (*public_sets(), "ml-100k", *there)
    near = [] if name in known else nearest(name, known, likeness=0.8)
    found = f"did you mean {near[0]}" if near else f"found there: {', '.join(there) or 'no data set'}"
    if split := [path.name for path in sorted(folder.glob(f"{name}.*.inter"))]:
        found = f"found {', '.join(split)}, which need {EXAMPLE}"
    how = "" if public_source(name) else " --from interactions.csv"
    raise MissingDataSetError(
        f"--dataset={name}: no file {folder / f'{name}.inter'}; {found}; --data_path names another folder, "
        f"ml-100k comes with RecBole, `bbqrec prepare {name}{how}` makes it",
        name,
        parent,
        config.unused,
    )


def _check_graph(config: Config, kind: str) -> None:
    """Refuse a model that reads a graph where the data set has none."""
    if config["kg"] == "codes" or kind != schema.KNOWLEDGE:
        return
    folder, name = Path(config["data_path"]), config["dataset"]
    missing = [path for path in (folder / f"{name}.kg", folder / f"{name}.link") if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file; {config['model']} reads a graph of the items from {name}.kg and {name}.link; "
            "--kg=codes makes one of semantic IDs, see docs/context.md"
        )


def _check_encoders(config: Config) -> None:
    """Refuse a misspelt name of one of our encoders, before the hub is asked for a model of that name."""
    for key in (f"{modality}_encoder" for modality in MODALITIES):
        name = str(config[key] or "")
        near = nearest(name, COUNTED, likeness=0.75)
        if near and name not in COUNTED and not (Path(config["data_path"]) / Path(name).expanduser()).exists():
            raise InputError(f"{key}: found {name!r}, and there is no such file; did you mean {near[0]}?")
