"""Our settings: where values come from, whether a run uses them, and settings as plain data.

`keys.KEYS` knows what a key is, `properties/` has the defaults, and docs/settings.md is made from both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from . import schema
from .errors import InputError
from .key_types import Key, Use
from .keys import KEYS
from .recbole_keys import RECBOLE

_INSTALLED = Path(__file__).parent / "properties"
PROPERTIES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "properties"
"""Our YAML files: inside the installed package, or at the top of a source checkout."""


IN_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list, such as [a, b]",
    dict: "a dict, such as {'key': value}",
}
"""What a value of a type is called where another one was found."""


def checked(key: str, value: Any, default: Any) -> Any:
    """Return `value` in the type of its key, or raise `InputError`.

    `default` gives the type of keys of single models.
    """
    known = _known(key) or Key(type(None) if default is None else type(default), "", None, default is None)
    expected, names = known.type, known.allowed.names if known.allowed else ()
    value = known.form(value) if known.form else value
    # What YAML and the command line make of the words none and off.
    if expected is list and names and value in (None, False, "off", "none"):
        value = []
    elif expected is list and known.allowed and not names and value in (None, []):
        value = [None]  # nothing to choose from
    elif value is None and "none" in names:
        value = "none"
    elif value is False and "off" in names:
        value = "off"
    if value is None and (known.may_be_empty or default is None or expected in (str, dict, list)):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if expected is int:
            value = int(value) if float(value).is_integer() else value
        elif expected in (float, str):
            value = expected(value)
    if expected is list and isinstance(value, (str, int, float, tuple)):
        value = list(value) if isinstance(value, tuple) else [value]
    wrong_bool = isinstance(value, bool) and expected in (int, float)
    if expected in (bool, int, float, str, list, dict) and (wrong_bool or not isinstance(value, expected)):
        raise InputError(f"{key}: found {value!r}, expected {IN_WORDS[expected]}")
    if known.parts and isinstance(value, dict) and (other := [part for part in value if part not in known.parts]):
        raise InputError(f"{key}: found the key {other[0]!r}, expected some of {', '.join(known.parts)}")
    if known.allowed is not None:
        for part in value if isinstance(value, list) else [value]:
            numbers = expected in (int, float, list) and not names
            comparable = not numbers or (isinstance(part, (int, float)) and not isinstance(part, bool))
            if not comparable or not known.allowed.holds(part):
                raise InputError(f"{key}: found {part!r}, expected {known.allowed.words}")
    return value


def _known(key: str) -> Key | None:
    return KEYS.get(key) or RECBOLE.get(key)


def unused(key: str, value: Any, run: Mapping[str, Any]) -> Use | None:
    """Return the first condition of a key that a run with these settings, `schema.KIND` among them, does not meet."""
    known = _known(key)
    return next((use for use in known.used if not use.holds(run, value)), None) if known else None


def reference() -> str:
    """Return docs/settings.md: every key with its default in each of our YAML files, its meaning and its bounds."""
    lines = [
        "# Settings\n\n"
        "Every key, made by `python -m recbole_bbqrec.settings`. The command line (`--key=value` or `--key value`)\n"
        "wins over `--config_files`, those over `properties/dataset/`, then `properties/model/`,\n"
        "`properties/overall.yaml`, RecBole.\n\n"
        "A key that a run would not use is an error that says why, unless it has its default. Of `eval_args` and\n"
        "`load_col`, "
        "what is not given keeps its default."
    ]
    for path in [PROPERTIES / "overall.yaml", *sorted((PROPERTIES / "model").glob("*.yaml"))]:
        content = _content(path)
        above = f": `{content.pop(EXTENDS)}` with" if EXTENDS in content else ""
        title = "Every model" if path.stem == "overall" else f"{path.stem}{above}"
        lines += ["", f"## {title}", "", "| key | default | type | meaning |", "| --- | --- | --- | --- |"]
        for name, value in content.items():
            shown = "~" if value is None else "''" if value == "" else value
            lines.append(f"| `{name}` | `{shown}` | {_row(name)} |")
    lines += ["", "## RecBole's own keys", "", "| key | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {_row(name)} |" for name in RECBOLE]
    return "\n".join(lines) + "\n"


def _row(name: str) -> str:
    key = {**RECBOLE, **KEYS}[name]
    bounds = [key.allowed.words] if key.allowed else []
    return f"{key.type.__name__} | {'; '.join([key.meaning, *bounds, *(_when(use) for use in key.used)])}"


def _when(use: Use) -> str:
    return use.words if use.words.startswith("only ") else f"**refused**: {use.words}"


# Keys that change where a run computes and writes or what it prints, never what it learns.
NOT_LEARNED_FROM = {
    *("final", "resume", "result_file", "ranks_file", "train_on"),  # what is trained on counts by its content
    *("cache_dir", "checkpoint_dir", "show_progress", "state", "verbose", "data_path"),
    *("report_card", "log_wandb", "wandb_project", "gpu_id", "device", "config_files", "eval_batch_size"),
    *("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"),
    *("metric_decimal_place", "loss_decimal_place"),
    *("topk", "metrics", "tail_ratio", "group_metrics"),  # which follow from ranks and lists, see `Asked`
    *("use_gpu", "results"),  # `use_gpu` decides the device alone
}

ADDED_LATER = {
    **{"audio_fields": "", "audio_encoder": None, "video_fields": "", "video_encoder": None},
    **{"cold_items": 0.0, "cycle_epochs": 0, "id_dim": None, "n_identity_codes": 0, "sid_alignment_weight": 1000.0},
    "valid_users": 0,
    **{"code_fields": [], "kg": "files", "code_levels": None, "item_semantics": []},
}
"""Keys that came after the first records -> the value that leaves a run as it was without the key."""

# Keys of what is fitted after training, with the trained weights held fixed.
FITTED_AFTER_TRAINING = ("second_stage", "candidate_similarity", "n_candidate_neighbours", "n_candidate_last")


def second_stage_settings(config: Any) -> dict[str, Any]:
    """Return the settings that the second stage of a run reads, as plain data, none where there is none.

    Training does not depend on them.
    """
    form = schema.second_stage(config.final_config_dict)
    read = {"off": (), "gbdt": FITTED_AFTER_TRAINING[:2], "linear": FITTED_AFTER_TRAINING}[form]
    found = {key: _plain(config[key]) for key in read}
    return found and {**found, "candidate_similarity": candidate_signals(config.final_config_dict)}


def candidate_signals(run: Mapping[str, Any]) -> list[str]:
    """Return a run's `candidate_similarity` without modalities that came after the first records and that it lacks.

    The default names all modalities, so that a run without the later ones is what it was before.
    """
    later = {key.removesuffix("_encoder") for key in ADDED_LATER if key.endswith("_encoder")}
    return [name for name in run.get("candidate_similarity") or [] if name not in later or run.get(f"{name}_encoder")]


SOURCE, EXTENDS = NO_SETTINGS = ("source", "extends")
"""Keys of our YAML files that are no settings of a run: where a data set comes from, and whose file comes first."""


def property_files(model: str, dataset: str) -> list[Path]:
    """Return our YAML files for a run, those that win later in the list: a model's after those that it extends."""
    files = [PROPERTIES / f"model/{model}.yaml"]
    while (base := _content(files[0]).get(EXTENDS)) is not None:
        path = files[0].with_name(f"{base}.yaml")
        if not path.is_file():
            raise InputError(f"{files[0]}: {EXTENDS} {base!r}, but there is no {path}; name a model of that folder")
        if path in files:
            raise InputError(f"{files[0]}: {EXTENDS} {base!r}, which extends this file itself; take one of them out")
        files.insert(0, path)
    return [path for path in (PROPERTIES / "overall.yaml", *files, _dataset_file(dataset)) if path.is_file()]


def trained_as(model: str) -> str:
    """Return the model whose training serves `model`: what it extends, where nothing that training reads differs."""
    own = _content(PROPERTIES / f"model/{model}.yaml")
    shared = EXTENDS in own and own.keys() <= {EXTENDS, *FITTED_AFTER_TRAINING}
    return trained_as(own[EXTENDS]) if shared else model


def _dataset_file(dataset: str) -> Path:
    """Return the YAML file of a data set: its own, or that of its family, as of `Amazon2018-Video_Games`."""
    own, family = (PROPERTIES / "dataset" / f"{name}.yaml" for name in (dataset, dataset.partition("-")[0]))
    return family if not own.is_file() and "categories" in _content(family).get(SOURCE, {}) else own


def dataset_settings(dataset: str) -> dict[str, Any]:
    """Return the settings of runs in the YAML file of a data set, without empty ones."""
    content = _content(_dataset_file(dataset))
    return {key: value for key, value in content.items() if key not in NO_SETTINGS and value is not None}


def public_source(dataset: str) -> dict[str, Any] | None:
    """Return the description of where a public data set comes from, see `preparation.public`; none where none is known.

    What a description says overrides that of its `family`.
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
    """Return the settings that can change what training learns, as plain data: what its fingerprint is made of."""
    left_out = NOT_LEARNED_FROM.union(FITTED_AFTER_TRAINING)
    plain = plain_settings(config)
    left_out |= {key for key, value in ADDED_LATER.items() if plain.get(key) == value}
    return {key: value for key, value in plain.items() if key not in left_out}


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
    # Names of columns that RecBole's models note; settings of earlier versions hold them.
    *("MASK_INDEX", "MASK_ITEM_SEQ", "POS_ITEMS", "NEG_ITEMS", "INVERSE_ITEM_SEQ"),
    *("CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "REORDER_ITEM_SEQ"),
}


MAY_BE_UNUSED = "may_be_unused"
"""Marks a `config_dict` that the program has put together, as all settings of a run or a study's changes of them: it
may hold keys that the run does not use. `Config` takes the mark away."""


def settings_to_load(plain: dict[str, Any]) -> dict[str, Any]:
    """Turn `plain_settings` back into what may be given to `Config` as `config_dict`."""
    given: dict[str, Any] = {key: value for key, value in plain.items() if key not in _DERIVED}
    given[MAY_BE_UNUSED] = True
    if (given.get("train_neg_sample_args") or {}).get("distribution") == "none":
        given["train_neg_sample_args"] = None
    given["data_path"] = str(Path(given["data_path"]).parent)
    if "scoring" in given:  # the value of runs from before the key; the files of some models say otherwise
        given.setdefault("n_identity_codes", ADDED_LATER["n_identity_codes"])
    return given


if __name__ == "__main__":
    print(reference(), end="")
