"""Where settings come from, and settings as plain data for records and fingerprints."""

from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

_INSTALLED = Path(__file__).parent / "properties"
PROPERTIES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "properties"
"""Our YAML files: inside the installed package, or at the top of a source checkout."""

# Keys that change where a run writes or what it prints, never what it learns.
NOT_LEARNED_FROM = {
    *("final", "resume", "result_file", "cache_dir", "checkpoint_dir", "show_progress", "state", "data_path"),
    "report_card",
    *("log_wandb", "wandb_project", "gpu_id", "device", "config_files", "save_dataset", "save_dataloaders"),
    *("dataset_save_path", "dataloaders_save_path", "metric_decimal_place", "loss_decimal_place", "eval_batch_size"),
}

# Keys of what is fitted after training, with the trained weights held fixed.
FITTED_AFTER_TRAINING = (*("candidate_similarity", "n_candidate_neighbours", "n_candidate_bins", "n_candidate_last"),)


def candidate_settings(config: Any) -> dict[str, Any]:
    """Return the settings of what is fitted after training, as plain data; training does not depend on them."""
    if config["scoring"] == "generate":  # the paper's form of scoring: nothing is fitted after it
        return {key: [] if key == "candidate_similarity" else 0 for key in FITTED_AFTER_TRAINING}
    return {key: _plain(config[key]) for key in FITTED_AFTER_TRAINING if key in config.final_config_dict}


SOURCE, EXTENDS = NO_SETTINGS = ("source", "extends")
"""Keys of our YAML files that are no settings of a run: where a data set comes from, and whose file comes first."""


def property_files(model: str, dataset: str) -> list[Path]:
    """Return our YAML files for a run, those that win later in the list.

    Raises
    ------
    InputError : `extends` in a model's file names no model that has one, or leads back to the file itself.
    """
    files = [PROPERTIES / "overall.yaml", *_model_files(model), _dataset_file(dataset)]
    return [path for path in files if path.is_file()]


def _model_files(model: str) -> list[Path]:
    """Return the YAML file of a model, after those that it extends."""
    files = [PROPERTIES / f"model/{model}.yaml"]
    while (base := _content(files[0]).get(EXTENDS)) is not None:
        path = files[0].with_name(f"{base}.yaml")
        if not path.is_file():
            raise InputError(f"{files[0]}: {EXTENDS} {base!r}, but there is no {path}; name a model of that folder")
        if path in files:
            raise InputError(f"{files[0]}: {EXTENDS} {base!r}, which extends this file itself; take one of them out")
        files.insert(0, path)
    return files


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
    """Return the settings that can change what a run learns, as plain data: what its fingerprint is made of."""
    return {key: value for key, value in plain_settings(config).items() if key not in NOT_LEARNED_FROM}


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
}


def settings_to_load(plain: dict[str, Any]) -> dict[str, Any]:
    """Turn `plain_settings` back into what may be given to `Config` as `config_dict`."""
    given = {key: value for key, value in plain.items() if key not in _DERIVED}
    if (given.get("train_neg_sample_args") or {}).get("distribution") == "none":
        given["train_neg_sample_args"] = None
    given["data_path"] = str(Path(given["data_path"]).parent)
    return given
