"""How the page of a leaderboard is written, its table before its settings; with it LaTeX, CSV, JSON, a figure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import recbole
import yaml

from ..data.splitting import shares_of_time
from ..evaluation import report
from ..evaluation.candidates import MODE
from ..settings import PROPERTIES, property_files, settings_to_load
from . import overview, records, tables
from .leaderboard import FULL_RANKING, content
from .tables import SPLITS, TESTED, Row, short

# RecBole's keys of training; its other shared files are about data and models that are not used here.
_TRAINING = ("learner", "learning_rate", "weight_decay", "train_batch_size", "MAX_ITEM_LIST_LENGTH")

_RECBOLE_MODELS = Path(str(recbole.__file__)).parent / "properties" / "model"

COSTS = ("parameters", *(f"{name}_seconds" for name in ("train", "epoch", "evaluate", "feature")))
COSTS += ("peak_memory_mib", "epochs")
"""What a row takes, see `leaderboard`."""


def write(dataset: str, results: Path = Path("results"), *shown: Any, **more: Any) -> str:
    """Write `<dataset>.md`, `.tex`, `.csv`, `.png` and `.json` from the records in `runs/`; return the page.

    The overview of all leaderboards is written again too. `shown` and `more` say what they show, see
    `leaderboard.content`; for another split than leave-one-out, its name follows that of the data set.

    A page that is written again keeps the row that others were compared with, where no other one is named.
    """
    name = _name_of({"dataset": dataset, **more})
    before = _reference_of(tables.file_of(results, name, "json"))
    found = content(dataset, records.folder_of(results, dataset), *shown, before=before, **more)
    page, tex = pages(found)
    panels = {short(metric): {row["model"]: row["masked"][metric] for row in found["rows"]} for metric in TESTED}
    title = tables.name_of(dataset, found.get("of_split"))
    title += f", {SPLITS[found['split']].lower()}, seen items masked"
    title += f", among {found['among']}" if "among" in found else ""
    figure = report.bar_figure(title, panels, found["reference"])
    files = {"png": figure, "tex": tex, "csv": csv_text(found), "md": page}
    tables.write(results, name, found, files)
    overview.write(results)
    return page


def _name_of(content: Mapping[str, Any]) -> str:
    mode = content.get("mode", FULL_RANKING)
    return tables.name_of(content["dataset"], content.get("of_split"), mode if MODE.fullmatch(mode) else None)


def _reference_of(page: Path) -> str | None:
    """The row that others are compared with on a page, by its JSON; none where there is no page or it tests nothing."""
    try:
        return json.loads(page.read_text(encoding="utf-8")).get("reference")
    except (OSError, ValueError):  # the page is about to be written
        return None


def pages(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page and the table of all metrics in both columns for LaTeX, which needs `booktabs`."""
    settings = list(content["settings"].values())
    shared, own = model_settings(content["dataset"], content["settings"])
    checks = dict.fromkeys(check for row in content["rows"] for check in row["leakage_checks"])
    shown = {
        **{"further": None, "groups": None},
        **content,
        "of_all": lambda key: " or ".join(dict.fromkeys(str(one.get(key)) for one in settings)),
        "orders": dict.fromkeys(
            "as the files come"
            if one.get("benchmark_filename")
            else f"{one['eval_args']['split']}{_over(one['eval_args'])} in order {one['eval_args']['order']}"
            for one in settings
        ),
        "is_bold": lambda model, metric: is_bold(content, model, metric),
        "checks": {of: [row["model"] for row in content["rows"] if of in row["leakage_checks"]] for of in checks},
        "of_split": content.get("of_split"),
        "by_time": any(shares_of_time(one["eval_args"]) for one in settings),
        "shared": shared,
        "own": own,
        "inline": _inline,
        "yaml": yaml_block,
        "file": _name_of(content),
        "has_own_file": (PROPERTIES / "dataset" / f"{content['dataset']}.yaml").is_file(),
    }
    return tables.page("leaderboard.md.jinja", **shown), tables.page("leaderboard.tex.jinja", **shown)


def _over(eval_args: Mapping[str, Any]) -> str:
    return " over all users" if shares_of_time(eval_args) else ""


def is_bold(content: Mapping[str, Any], model: str, metric: str) -> bool:
    """Whether a row is the reference and significantly better than every other row by this metric."""
    places = content["standing"].get(metric, {})  # none for metrics without a test
    return model == content["reference"] and [side for side, rows in places.items() if rows] == ["worse"]


def _inline(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in settings.items()}
    return ", ".join(f"{key}: {'~' if value is None else value}" for key, value in shown.items())


def model_settings(dataset: str, settings: Mapping[str, Row]) -> tuple[Row, dict[str, Row]]:
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
    of_models, shared = {key for keys in own.values() for key in keys}, {}
    for key in general:
        values = [found[key] for found in given.values() if key in found]
        if key not in of_models and values and values.count(values[0]) == len(values):
            shared[key] = values[0]
    return shared, {
        model: {key: found[key] for key in dict.fromkeys([*own[model], *general]) if key in found and key not in shared}
        for model, found in given.items()
    }


def yaml_block(settings: Mapping[str, Any]) -> str:
    """Return settings as a block of YAML for a page."""
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
        for column, of in content.get("further", {}).items():
            line |= {f"{column} {metric}": means[row["model"]] for metric, means in of.items()}
        more = ("second_stage", *COSTS, "hit_cap", "other_code", "times_tested", "run_key")
        lines.append(line | {key: row[key] for key in more})
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")
