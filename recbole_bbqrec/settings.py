"""Where settings come from, and settings as plain data for records and fingerprints."""

from pathlib import Path
from typing import Any

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


def property_files(model: str, dataset: str) -> list[Path]:
    """Return our YAML files for a run, those that win later in the list."""
    files = [PROPERTIES / "overall.yaml", PROPERTIES / f"model/{model}.yaml", PROPERTIES / f"dataset/{dataset}.yaml"]
    return [path for path in files if path.is_file()]


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
