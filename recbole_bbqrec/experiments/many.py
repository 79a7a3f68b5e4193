"""Several models on several data sets over seeds, from one command line: the runs of leaderboards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import quick_start, registry
from ..config import Config, refuse_unused, usable
from ..errors import InputError, MissingDataSetError
from ..evaluation.configuration import name_of_split
from ..layers import joined, layered, parse_command_line, read_files
from ..settings import public_source
from . import leaderboard, leaderboard_page, records, tables
from .runner import QUIET, Job, exit_code, run_jobs, say


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for many runs: it gives `--seeds`, or a list of models or data sets."""
    options = [argument.partition("=") for argument in joined(arguments)]
    return any(key == "--seeds" or (key in ("--model", "--dataset") and "," in text) for key, _, text in options)


def run_many(arguments: Sequence[str]) -> int:
    """Run every pair of model and data set that has no record yet, and write the leaderboards after every run.

    The first seed of all pairs comes first. Names, settings and data sets are checked before anything runs; public
    data sets that are missing are fetched. `--model`, `--dataset`, `--seeds` and `--single` are read here; everything
    else are settings of all runs that use them, and at least one has to. Returns the exit code: 1 where a run failed or
    a leaderboard could not be written, else 0.
    """
    given = layered(read_files(arguments), parse_command_line(arguments))
    given.pop("config_files", None)
    models, datasets = (_names(option, given.pop(option, "")) for option in ("model", "dataset"))
    single = _names("single", given.pop("single")) if "single" in given else []
    n_seeds = given.pop("seeds", 1)
    for key in {"result_file", "ranks_file"} & given.keys():
        raise InputError(f"--{key}: found it beside many runs, which would overwrite it; each has a record anyway")
    if given.get("cold_items"):
        raise InputError("--cold_items: leaderboards show models that know all items; take bbqrec cold, or one run")
    for name in single:
        if name not in models:
            raise InputError(f"--single: found {name!r}, expected some of {', '.join(models)}, which --model names")
    if type(n_seeds) is not int or n_seeds < 1:
        raise InputError(f"--seeds: found {str(n_seeds)!r}, expected how many runs each model gets, at least 1")

    shared = {**QUIET, **given, "final": given.get("final") or False}
    # What cannot run is refused before anything is fetched or run.
    for model in models:
        registry.get_model(model)
    pairs = [pair for dataset in datasets for pair in _pairs(models, dataset, shared)]
    for pair in pairs:
        try:
            Config(config_dict=pair)
        except MissingDataSetError as error:
            if public_source(error.name) is None:
                raise
    jobs, modes, asked = [], {}, {"metrics": [], "groups": []}
    for pair in pairs:
        quick_start.fetch_missing((), pair)
        config = Config(config_dict=pair)
        results = Path(config["results"])
        modes[pair["dataset"]] = config["eval_args"]["mode"]["test" if shared["final"] else "valid"]
        asked = {key: list(dict.fromkeys([*asked[key], *more])) for key, more in tables.asked_of(config).items()}
        data, folder = records.about_data(config), records.folder_of(results, config["dataset"])
        seeds = range(config["seed"], config["seed"] + (1 if pair["model"] in single else n_seeds))
        jobs += [(at, Job(pair["model"], {**pair, "seed": seed}, (), data, folder)) for at, seed in enumerate(seeds)]
    jobs = [job for _, job in sorted(jobs, key=lambda found: found[0])]  # the first seed of all pairs first
    planned: dict[str, dict[str, str]] = {name: {} for name in datasets}
    for job in jobs:
        # Runs that do something else about ties stand beside the rows, not in their place.
        if job.settings.get("shuffle_ties") == leaderboard.default_ties(job.dataset):
            planned[job.dataset][job.name] = job.key

    splits = {job.dataset: name_of_split(job.settings) for job in jobs}

    def write(dataset: str) -> str | None:
        more = {**asked, "mode": modes[dataset], "of_split": splits[dataset]}
        try:
            return leaderboard_page.write(dataset, results, shared["final"], planned=planned[dataset], **more)
        except InputError as error:  # the other runs are worth having
            say(f"no leaderboard of {dataset}: {error}")
            return None

    failures = run_jobs(jobs, shared["final"], lambda job: write(job.dataset))
    pages = [write(dataset) for dataset in datasets]
    print("\n".join(_in_short(page) for page in pages if page) + f"\nwhole pages, with figures and settings: {results}")
    return max(exit_code(failures), int(None in pages))


def _in_short(page: str) -> str:
    """The title of a page, and its table of seen items masked, which all claims are about."""
    title, *parts = page.split("\n## ")
    table = next(part for part in parts if "seen items masked" in part.partition("\n")[0])
    return f"{title.splitlines()[0]}\n\n## {table.partition('![')[0].rstrip()}\n"


def _pairs(models: Sequence[str], dataset: str, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings of each model's runs on a data set, without keys it would not use; at least one model must use each."""
    found = [usable({**shared, "model": model, "dataset": dataset}) for model in models]
    refuse_unused([refused for _, refused in found])
    for pair, refused in found:
        if refused:
            say(f"{pair['model']} on {dataset} does not use {', '.join(refused)}")
    return [{key: value for key, value in pair.items() if key not in refused} for pair, refused in found]


def _names(option: str, text: Any) -> list[str]:
    listed = text if isinstance(text, tuple) else str(text).split(",")  # names of digits alone are read as numbers
    names = [str(name) for name in listed if name != ""]
    if not names:
        raise InputError(f"--{option}: found no name, expected some such as --model=Pop,BBQRec --dataset=Sports,Beauty")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--{option}: found {name!r} {names.count(name)} times, expected every name once")
    return names
