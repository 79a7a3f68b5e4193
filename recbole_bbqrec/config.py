"""Settings of a run: RecBole's layers, our properties on top, and an error for every key that nobody reads."""

import ast
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config as RecBoleConfig
from recbole.evaluator.register import metric_types

from . import compat, registry
from .data.selected_features import load_selected_features
from .errors import InputError
from .evaluation.ranking import METRICS
from .settings import NO_SETTINGS, checked, property_files, public_source

# Keys that RecBole reads from its config although none of its YAML files names them.
READ_BY_RECBOLE = ("encoding", "reg_weight", "selected_features", "log_wandb", "wandb_project", "alias_of_user_id")


class MissingDataSetError(InputError):
    """The data set `name` is not in `folder`, the folder of data sets."""

    def __init__(self, message: str, name: str, folder: Path) -> None:
        super().__init__(message)
        self.name, self.folder = name, folder


def parse_command_line(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn `--key=value` arguments into a dict; values are Python or YAML-like literals, never evaluated code."""
    parsed: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument[2:].partition("=")
        if argument.startswith("--") and not equals and key == "final":
            text = "True"  # a plain switch
        elif not argument.startswith("--") or not equals or not key:
            raise InputError(f"argument {argument!r}: expected --key=value, without blanks around '='")
        if key in parsed and parsed[key] != _literal(text):
            raise InputError(f"--{key} is given twice, with {parsed[key]!r} and {text!r}; keep one")
        parsed[key] = _literal(text)
    return parsed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None, "null": None, "~": None}.get(text.lower(), text)


class Config(RecBoleConfig):
    """RecBole's `Config` with our properties, strict about keys, types and names.

    Parameters
    ----------
    model, dataset : names; where missing, the keys `model` and `dataset` of the arguments below.
    config_file_list : YAML files, later ones win.
    config_dict : settings that win over files.
    arguments : command line (`--key=value` strings) that wins over everything. Unlike RecBole's, nothing is read from
        `sys.argv` unless it is handed over here.

    Whatever is wrong is an `InputError`: a key, type or value, the model, a missing data set, a config file.
    """

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        config_file_list: Iterable[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._arguments = parse_command_line(arguments)
        listed = self._arguments.get("config_files") or ""
        files = [*(config_file_list or []), *str(listed).split()]
        try:
            super().__init__(model, dataset, files, dict(config_dict or {}))
        except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            text = str(error.args[0]) if error.args else repr(error)
            raise InputError(f"settings: {' '.join(text.split())}; see docs/settings.md") from error
        _check_data_path(self)
        load_selected_features(self, chosen="selected_features" in self.external_config_dict)

    # What follows are RecBole's own steps, in the order in which its constructor takes them.

    def compatibility_settings(self) -> None:
        compat.restore_numpy_names()

    def _build_yaml_loader(self) -> Any:
        """RecBole's loader makes any Python object that a file names; this one makes plain data, with its floats."""
        resolvers = super()._build_yaml_loader().yaml_implicit_resolvers
        return type("PlainLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})

    def _load_config_files(self, file_list: Iterable[str]) -> dict[str, Any]:
        return {key: value for name in file_list for key, value in self._read_yaml(Path(name)).items()}

    def _read_yaml(self, path: Path) -> dict[str, Any]:
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=self.yaml_loader)
        except OSError as error:
            raise InputError(f"config file {path}: {error.strerror}; give the path of a YAML file") from error
        except yaml.YAMLError as error:
            raise InputError(f"config file {path}: no valid YAML ({' '.join(str(error).split())})") from error
        if not isinstance(content, (dict, type(None))):
            raise InputError(
                f"config file {path}: found {type(content).__name__}, expected lines of the form key: value"
            )
        return content or {}

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        # RecBole evaluates strings of the dict as code; a dict from Python already has its types.
        return dict(config_dict or {})

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._arguments

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
            content = {key: value for key, value in self._read_yaml(path).items() if key not in NO_SETTINGS}
            # RecBole loads further files for some models (item columns for its feature-aware ones): those stay.
            columns = {**(self.internal_config_dict.get("load_col") or {}), **content.pop("load_col", {})}
            self.internal_config_dict.update(content, load_col=columns)
        # RecBole's default, one sampled negative, stops every model with a cross-entropy loss.
        if {**self.internal_config_dict, **self.external_config_dict}.get("loss_type") == "CE":
            self.internal_config_dict["train_neg_sample_args"] = None

    def _get_final_config_dict(self) -> dict[str, Any]:
        known = {*self.internal_config_dict, *READ_BY_RECBOLE, "model", "dataset", "config_files"}
        known.update(key for keys in self.parameters.values() for key in keys)
        for key, value in self.external_config_dict.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else "docs/settings.md lists the keys"
                raise InputError(f"unknown key {key!r} for model {self.model}; {hint}")
            self.external_config_dict[key] = checked(key, value, self.internal_config_dict.get(key))
        final = super()._get_final_config_dict()
        check_protocol(final)
        return final


def check_protocol(final: dict[str, Any]) -> None:
    """Refuse settings under which this project's figures would not mean what their names say."""
    for key in ("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"):
        if final.get(key):
            raise InputError(
                f"{key}: RecBole's pickled data cache is not used, it runs code when read and does not notice changed "
                "files; drop the key, features and codes are cached by fingerprint already"
            )
    mode = (final.get("eval_args") or {}).get("mode", "full")
    if set(mode.values() if isinstance(mode, dict) else [mode]) != {"full"}:
        raise InputError(f"eval_args: found mode {mode!r}, expected full: every item is ranked")
    names = [str(name).lower() for name in final["metrics"]]
    for name in (name for name in names if name not in METRICS):
        known_elsewhere = " (RecBole has it, our ranker does not)" if name in metric_types else ""
        raise InputError(
            f"metrics: found {name!r}{known_elsewhere}, expected some of Recall, NDCG, MRR, Hit, Precision"
        )
    allowed = [f"{name}@{k}" for name in names for k in final["topk"]]
    if str(final["valid_metric"]).lower() not in allowed:
        raise InputError(f"valid_metric: found {final['valid_metric']!r}, expected one of {', '.join(allowed)}")
    width, heads = final.get("hidden_size"), final.get("n_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % heads:
        raise InputError(f"hidden_size: found {width}, expected a multiple of n_heads {heads}")


def _check_data_path(config: Config) -> None:
    name, folder = config["dataset"], Path(config["data_path"])
    if (folder / f"{name}.inter").is_file() or config["benchmark_filename"]:
        return
    parent = folder.parent
    there = sorted(path.parent.name for path in parent.glob("*/*.inter") if path.stem == path.parent.name)
    near = difflib.get_close_matches(name, there, n=1)
    found = f"did you mean {near[0]}?" if near else f"found there: {', '.join(there) or 'no data set'}"
    how = "" if public_source(name) else " --from interactions.csv"
    raise MissingDataSetError(
        f"--dataset={name}: no file {folder / f'{name}.inter'}; {found}; --data_path names another folder, "
        f"ml-100k comes with RecBole, `bbqrec prepare {name}{how}` makes it",
        name,
        parent,
    )
