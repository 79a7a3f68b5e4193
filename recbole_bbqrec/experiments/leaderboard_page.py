"""A leaderboard's content as a page in the form of RecBole's benchmarks, as LaTeX, as CSV and as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import recbole
import yaml

from ..settings import PROPERTIES, property_files, settings_to_load
from . import tables
from .tables import SPLITS, TESTED, short

# RecBole's keys of training; its other shared files are about data and models that are not used here.
_TRAINING = ("learner", "learning_rate", "weight_decay", "train_batch_size", "MAX_ITEM_LIST_LENGTH")

_RECBOLE_MODELS = Path(str(recbole.__file__)).parent / "properties" / "model"


COSTS = (
    *("parameters", "train_seconds", "epoch_seconds", "evaluate_seconds", "feature_seconds", "peak_memory_mib"),
    "epochs",
)
"""What a row takes, see `leaderboard`."""


def pages(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page and the table of all metrics in both columns for LaTeX, which needs `booktabs`."""
    rows, settings = content["rows"], list(content["settings"].values())
    shared, own = model_settings(content["dataset"], content["settings"])
    checks: dict[str, list[str]] = {}
    for row in rows:
        for check in dict.fromkeys(row["leakage_checks"]):
            checks.setdefault(check, []).append(row["model"])
    shown = {
        **content,
        "of_all": lambda key: " or ".join(dict.fromkeys(str(one.get(key)) for one in settings)),
        "orders": dict.fromkeys("{split} in order {order}".format_map(one["eval_args"]) for one in settings),
        "is_bold": lambda model, metric: is_bold(content, model, metric),
        "checks": checks,
        "shared": shared,
        "own": own,
        "inline": _inline,
        "yaml": _yaml,
        "has_own_file": (PROPERTIES / "dataset" / f"{content['dataset']}.yaml").is_file(),
    }
    return tables.page("leaderboard.md.jinja", **shown), tables.page("leaderboard.tex.jinja", **shown)


def is_bold(content: Mapping[str, Any], model: str, metric: str) -> bool:
    """Whether a row is the reference and significantly better than every other row by this metric."""
    places = content["standing"].get(metric, {"worse": [], "level": [], "better": []})
    only_worse = bool(places["worse"]) and not places["level"] and not places["better"]
    return model == content["reference"] and only_worse


def _inline(settings: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return "~" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key}: {text(value)}" for key, value in settings.items())


def model_settings(
    dataset: str, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split the rows' settings into those of all rows and those of each model, in the order of the property files.

    Keys of a model's own files, ours and RecBole's, and those of training stand with the model even where all agree.
    """
    # As they would be given: RecBole turns a few settings into forms of its own.
    given = {model: settings_to_load({**found, "data_path": ""}) for model, found in settings.items()}
    general, own = {}, {}
    for model in settings:
        files = property_files(model, dataset)
        about_model = [path for path in files if path.parent.name == "model"]
        general |= tables.keys_of(path for path in files if path not in about_model)
        own[model] = [*tables.keys_of([*about_model, _RECBOLE_MODELS / f"{model}.yaml"]), *_TRAINING]
    of_models = {key for keys in own.values() for key in keys}
    shared: dict[str, Any] = {}
    for key in general:
        values = [found[key] for found in given.values() if key in found]
        if key not in of_models and values and all(value == values[0] for value in values):
            shared[key] = values[0]
    return shared, {
        model: {key: found[key] for key in dict.fromkeys([*own[model], *general]) if key in found and key not in shared}
        for model, found in given.items()
    }


def _yaml(settings: Mapping[str, Any]) -> str:
    # One line a key; of a bare value YAML writes a second line that ends the document.
    lines = [f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=1000)}" for key, value in settings.items()]
    text = "\n".join(line.removesuffix("...\n").rstrip() for line in lines)
    return f"```yaml\n{text}\n```" if text else "None of its own."


def csv_text(content: Mapping[str, Any]) -> str:
    """Return all figures of the rows, unrounded; what there is none of is blank."""
    lines = []
    for row in content["rows"]:
        line: dict[str, Any] = {"model": row["model"], "split": content["split"], "seeds": len(row["seeds"])}
        for column in ("masked", "unmasked", "valid_masked"):
            line |= {f"{column} {metric}": entry["mean"] for metric, entry in row.get(column, {}).items()}
        for metric in TESTED:
            entry = row["masked"][metric]
            change = entry["difference"] or {}
            line |= {f"{metric} {end}": entry[end] for end in ("low", "high")}
            line |= {f"{metric} difference": change.get("mean")}
            line |= {f"{metric} difference {end}": change.get(end) for end in ("low", "high")}
            line |= {f"{metric} p (Holm)": entry.get("p_holm")}
        lines.append(line | {key: row[key] for key in (*COSTS, "hit_cap", "other_code", "times_tested", "run_key")})
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def figure(content: Mapping[str, Any]) -> bytes:
    """Draw the tested metrics as bars with intervals; returns a PNG."""
    panels = {short(metric): {row["model"]: row["masked"][metric] for row in content["rows"]} for metric in TESTED}
    title = f"{content['dataset']}, {SPLITS[content['split']].lower()}, seen items masked"
    return tables.figure(title, panels, content["reference"])
