"""A leaderboard's content as a page in the form of RecBole's benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole
import yaml

from ..evaluation import report
from ..evaluation.statistics import FLIPS
from ..settings import PROPERTIES, property_files, settings_to_load
from .study import METRICS, SPLITS, p_text

TESTED = [f"{metric}@{k}" for metric, k in METRICS]

# RecBole's keys of training; its other shared files are about data and models that are not used here.
_TRAINING = ("learner", "learning_rate", "weight_decay", "train_batch_size", "MAX_ITEM_LIST_LENGTH")

_RECBOLE_MODELS = Path(str(recbole.__file__)).parent / "properties" / "model"


def markdown(content: Mapping[str, Any]) -> str:
    """Return the page."""
    rows, dataset = content["rows"], content["dataset"]
    shown = SPLITS[content["split"]]
    parts = [f"# {dataset}"]
    if content["worth_of_codes"]:
        parts.append(f"**Worth of the codes**: {_worth(content['worth_of_codes'])}")
    parts += ["## Experimental setting", _setting(content), "## Data statistics", _data(content["data"])]
    parts += [f"## {shown}, seen items masked", _masked_table(content), _standing(content), *_marks(rows)]
    parts += [
        f"## {shown}, seen items not masked",
        _plain_table(rows, "unmasked"),
        "What stock RecBole measures; no claim is made.",
    ]
    parts.append(f"![Metrics with their intervals]({dataset}.png)")
    if content["split"] == "test":
        parts += [f"## {SPLITS['valid']}, seen items masked", _plain_table(rows, "valid_masked")]
        parts.append("The same runs on the split that stopped their training and that settings were chosen on.")
    parts += ["## Cost", _cost_table(rows)]
    parts.append(
        "Training: all epochs with their validation, and what is fitted after them. Times are means over the seeds; of "
        "tokenizer and features, which a cache may have spared, and of memory the largest. Memory is an upper bound "
        "where one process made several runs. On test: how often these settings were judged on it at most. "
        + _total(content)
    )
    parts += ["## Sanity", _sanity(content)]
    warnings = [
        *map(_other, content["others"]),
        *(f"failed and not in the tables: {line}" for line in content["failed"]),
    ]
    if warnings:
        parts += ["## Not shown", "\n".join(f"- {line}" for line in warnings)]
    shared, own = model_settings(dataset, content["settings"])
    parts += ["## Settings", "Of all rows:", _yaml(shared)]
    chosen = {row["model"]: row["chosen"] for row in rows}
    for model, settings in own.items():
        parts += [f"### {model}", _yaml(settings)]
        parts += [f"Chosen on validation, seed {seed}: {_inline(found)}." for seed, found in chosen[model].items()]
    return "\n\n".join([*parts, "## Files", _links(dataset)]) + "\n"


def short(name: str) -> str:
    """`ndcg@10` -> `N@10`."""
    metric, _, k = name.partition("@")
    return f"{metric[0].upper()}@{k}"


def _worth(worth: Mapping[str, Any]) -> str:
    """The line on the codes: differences, intervals, p-values, whatever their sign."""
    found = []
    for name, entry in worth.items():
        change, p_value = entry["difference"], entry["p_holm"]
        p_value = "p < 0.001" if p_value < 0.001 else f"p = {p_text(p_value)}"
        found.append(f"{short(name)} {change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}], {p_value}")
    return f"BBQRec minus SASRecPlusFT, seen items masked: {'; '.join(found)} (Holm over both)."


def _setting(content: Mapping[str, Any]) -> str:
    """The protocol in a few lines."""
    settings = content["settings"].values()

    def of_all(key: str) -> str:
        found = list(dict.fromkeys(str(one.get(key)) for one in settings))
        return " or ".join(found)

    split = " or ".join(
        dict.fromkeys(f"{one['eval_args']['split']} in order {one['eval_args']['order']}" for one in settings)
    )
    reference = "the named row" if content["against"] else "the row that is best by masked NDCG@10"
    lines = [
        f"split {split}; every target is ranked among all items, ties of scores in one fixed random order; "
        f"shown: {SPLITS[content['split']].lower()}",
        f"trained rows stop on masked {of_all('valid_metric')} of validation, after more than "
        f"{of_all('stopping_step')} evaluations without a gain, one every {of_all('eval_step')} epochs, or at "
        f"{of_all('epochs')} epochs",
        "masked: all that the user had before the target leaves the ranking; all claims are made on this column",
        f"p: two-sided sign-flip test of {reference} against every other row, on values per user averaged over a row's "
        f"seeds first; {FLIPS:,} flips; Holm over all rows and both metrics",
        "intervals: 95 %, bootstrap over users and seeds",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _data(data: Mapping[str, Any]) -> str:
    header = ["users", "items", "interactions", "per user", "sparsity in %", "modalities"]
    cells = [
        *(f"{data[key]:,}" for key in ("users", "items", "interactions")),
        *(f"{data['interactions_per_user']:.2f}", f"{100 * (1 - data['density']):.3f}"),
        ", ".join(data["modalities"]) or "none",
    ]
    return report.markdown_table(header, [cells])


def is_bold(content: Mapping[str, Any], model: str, name: str) -> bool:
    """Whether a row is the reference and significantly better than every other row by this metric."""
    places = content["standing"].get(name, {"worse": [], "level": [], "better": []})
    only_worse = bool(places["worse"]) and not places["level"] and not places["better"]
    return model == content["reference"] and only_worse


def _masked_table(content: Mapping[str, Any]) -> str:
    rows = content["rows"]
    header = ["model"]
    for name in rows[0]["masked"]:
        header += [f"{short(name)} [95 %]", "p (Holm)"] if name in TESTED else [short(name)]
    cells = []
    for row in rows:
        line = [row["model"] + marks_of(row)]
        for name, entry in row["masked"].items():
            text = f"{entry['mean']:.4f}"
            text = f"**{text}**" if is_bold(content, row["model"], name) else text
            if name in TESTED:
                line += [f"{text} [{entry['low']:.4f}, {entry['high']:.4f}]", p_text(entry.get("p_holm"))]
            else:
                line.append(text)
        cells.append(line)
    return report.markdown_table(header, cells)


def _plain_table(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Means alone: no intervals, no tests."""
    header = ["model", *map(short, rows[0][key])]
    cells = [[row["model"], *(f"{entry['mean']:.4f}" for entry in row[key].values())] for row in rows]
    return report.markdown_table(header, cells)


def _standing(content: Mapping[str, Any]) -> str:
    """Who is better than whom, in words."""
    reference, lines = content["reference"], []
    if len(content["rows"]) == 1:
        return "One row: nothing to compare it with, so nothing is bold."
    for name, places in content["standing"].items():
        if is_bold(content, reference, name):
            said = "significantly better than every other row"
        else:
            said = "; ".join(
                f"{words} {', '.join(places[place])}"
                for place, words in (("better", "significantly worse than"), ("level", "level with"))
                if places[place]
            )
            said += "; so nothing is bold here"
        lines.append(f"- {short(name)}: {reference} is {said} (p < 0.01 after Holm).")
    return "\n".join(lines)


def marks_of(row: Mapping[str, Any]) -> str:
    """Marks of what a row must not be taken for, see the lines below the table."""
    one_seed = len(row["seeds"]) == 1 and not row["untrained"]
    return "\\*" * bool(row["hit_cap"]) + "†" * one_seed + "‡" * bool(row["other_code"])


def _marks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the marks that occur mean."""

    def named(key: str) -> str:
        return ", ".join(f"{row['model']} {row[key]} of {len(row['seeds'])}" for row in rows if row[key])

    marks = []
    if capped := named("hit_cap"):
        marks.append(f"- \\* runs that ended at the cap on epochs, not by early stopping: {capped}")
    if any("†" in marks_of(row) for row in rows):
        marks.append("- † one seed; neither interval nor p knows how much seeds differ")
    if other := named("other_code"):
        marks.append(f"- ‡ runs made by another version of the code than most others: {other}")
    return ["\n".join(marks)] * bool(marks)


COST = (
    *(
        ("parameters", "parameters", ",.0f"),
        ("train_seconds", "training s", ",.0f"),
        ("epoch_seconds", "epoch s", ".1f"),
    ),
    *(("evaluate_seconds", "evaluation s", ".1f"), ("feature_seconds", "tokenizer, features s", ".0f")),
    *(("peak_memory_mib", "peak MiB", ",.0f"), ("epochs", "epochs", ".0f")),
)
"""Key of what a row costs, its words and its form in the table."""


def _cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["model", "seeds", *(words for _, words, _ in COST), "on test"]
    cells = []
    for row in rows:
        seeds = "untrained" if row["untrained"] else str(len(row["seeds"]))
        costs = ["-" if row[key] is None else format(row[key], form) for key, _, form in COST]
        cells.append([row["model"], seeds, *costs, str(row["times_tested"])])
    return report.markdown_table(header, cells)


def _total(content: Mapping[str, Any]) -> str:
    """What all rows took together."""
    runs = sum(len(row["seeds"]) for row in content["rows"])
    hours = content["total_seconds"] / 3600
    return f"All {runs} runs together: {hours:.1f} hours; a training that rows share counts once."


def _sanity(content: Mapping[str, Any]) -> str:
    lines = [f"- users evaluated: {content['users']:,}, the same in all rows"]
    if "tied_times" in content["data"]:
        share = 100 * content["data"]["tied_times"]
        lines.append(
            f"- ties in time: {share:.1f} % of the interactions have another one of their user at the same time"
        )
    checks: dict[str, list[str]] = {}
    for row in content["rows"]:
        for check in dict.fromkeys(row["leakage_checks"]):
            checks.setdefault(check, []).append(row["model"])
    found = "; ".join(f"{check}: {', '.join(models)}" for check, models in sorted(checks.items()))
    lines.append(f"- leakage check (training, targets and masks against the users' sequences): {found}")
    if not content["other_ties"]:
        return "\n".join(lines)
    shown = {row["model"]: row["masked"] for row in content["rows"]}
    header = ["other ties", "shuffle_ties", "seeds", *(f"{short(n)} (as shown above)" for n in TESTED)]
    cells = [
        [
            row["model"],
            "file order" if row["shuffle_ties"] is None else str(row["shuffle_ties"]),
            str(len(row["seeds"])),
        ]
        + [f"{row['masked'][name]:.4f} ({shown[row['model']][name]['mean']:.4f})" for name in TESTED]
        for row in content["other_ties"]
    ]
    return "\n".join(lines) + "\n\n" + report.markdown_table(header, cells)


def _inline(settings: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return "~" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key}: {text(value)}" for key, value in settings.items())


def _other(entry: Mapping[str, Any]) -> str:
    changes = _inline(entry["changes"])
    what = "; ".join([changes] * bool(changes) + ["other data"] * entry["other_data"])
    seeds = ", ".join(map(str, entry["seeds"]))
    return f"other settings of {entry['model']} with records, `--keys={entry['run_key']}`: {what} (seeds {seeds})"


def model_settings(
    dataset: str, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split the rows' settings into those of all rows and those of each model, in the order of the property files.

    Keys of a model's own files, ours and RecBole's, and those of training stand with the model even where all agree.
    """
    # As they would be given: RecBole turns a few settings into forms of its own.
    given = {model: settings_to_load({**found, "data_path": ""}) for model, found in settings.items()}
    general, own = [], {}
    for model in settings:
        files = property_files(model, dataset)
        about_model = [path for path in files if path.parent.name == "model"]
        general += [key for path in files if path not in about_model for key in _keys(path)]
        own[model] = [
            *(key for path in [*about_model, _RECBOLE_MODELS / f"{model}.yaml"] for key in _keys(path)),
            *_TRAINING,
        ]
    of_models = {key for keys in own.values() for key in keys}
    shared: dict[str, Any] = {}
    for key in dict.fromkeys(general):
        values = [found[key] for found in given.values() if key in found]
        if key not in of_models and values and all(value == values[0] for value in values):
            shared[key] = values[0]
    apart = {
        model: {key: given[model][key] for key in dict.fromkeys([*own[model], *general]) if key in given[model]}
        for model in settings
    }
    return shared, {model: {k: v for k, v in found.items() if k not in shared} for model, found in apart.items()}


def _keys(path: Path) -> list[str]:
    return list(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else []


def _yaml(settings: Mapping[str, Any]) -> str:
    # One line a key; of a bare value YAML writes a second line that ends the document.
    lines = [f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=1000)}" for key, value in settings.items()]
    text = "\n".join(line.removesuffix("...\n").rstrip() for line in lines)
    return f"```yaml\n{text}\n```" if text else "None of its own."


def _links(dataset: str) -> str:
    links = [
        f"[records and ranks per user](runs/{dataset}/), [CSV]({dataset}.csv), [LaTeX]({dataset}.tex), "
        f"[JSON]({dataset}.json)",
        "[how to run and read this](../docs/leaderboard.md), [the protocol's settings](../properties/overall.yaml)",
        "[RecBole](https://github.com/RUCAIBox/RecBole), whose own figures of sequential models are unmasked",
    ]
    if (PROPERTIES / "dataset" / f"{dataset}.yaml").is_file():
        links.append(f"[settings and source of the data](../properties/dataset/{dataset}.yaml)")
    return "\n".join(f"- {link}" for link in links)
