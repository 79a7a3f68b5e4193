"""Several models on several data sets over seeds, from one command line: the runs of leaderboards."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import quick_start, registry
from ..config import MissingDataSetError
from ..errors import InputError
from ..settings import public_source
from . import leaderboard, records
from .runner import QUIET, Data, Execute, Job, Planned, given_and_files, run_jobs
from .selection import default_ties

OPTIONS = ("model", "dataset", "seeds", "single", "results")
"""What is read here; everything else is a setting of all runs."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes
    ----------
    models, datasets : names; every pair is run.
    single : models that get one seed.
    n_seeds : runs of every other pair, from the base seed upwards.
    results : folder of leaderboards and records.
    given, files : settings of all runs, see `runner.Planned`.
    """

    models: list[str]
    datasets: list[str]
    single: list[str]
    n_seeds: int
    results: Path
    given: dict[str, Any]
    files: list[str]

    @property
    def final(self) -> bool:
        """Whether test is judged too."""
        return bool(self.given.get("final"))

    def planned(self, model: str, dataset: str, **more: Any) -> Planned:
        """One run, without a seed unless it is given."""
        own = {"model": model, "dataset": dataset, "final": self.final}
        return Planned(model, {**QUIET, **self.given, **own, **more}, self.files)


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for many runs: it gives `--seeds`, or a list of models or data sets."""
    options = [argument.partition("=") for argument in arguments]
    return any(key == "--seeds" or (key in ("--model", "--dataset") and "," in text) for key, _, text in options)


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line.

    Raises
    ------
    InputError : an option twice, no or repeated names, no number of seeds, `--single` of a model that is not run.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    for argument in arguments:
        key, _, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or key not in OPTIONS:
            rest.append(argument)
        elif own.setdefault(key, text) != text:
            raise InputError(f"--{key} is given twice, with {own[key]!r} and {text!r}; keep one")
    given, files = given_and_files(rest)
    if "result_file" in given:
        raise InputError("--result_file: found it beside many runs, which would overwrite it; each has a record anyway")
    models, datasets = _names(own, "model"), _names(own, "dataset")
    single = _names(own, "single") if "single" in own else []
    for name in single:
        if name not in models:
            raise InputError(f"--single: found {name!r}, expected some of {', '.join(models)}, which --model names")
    seeds = own.get("seeds", "1")
    if not seeds.isdecimal() or not int(seeds):
        raise InputError(f"--seeds: found {seeds!r}, expected how many runs each model gets, at least 1")
    return Asked(models, datasets, single, int(seeds), Path(own.get("results", "results")), given, files)


def _names(own: dict[str, str], option: str) -> list[str]:
    names = [name for name in own.get(option, "").split(",") if name]
    if not names:
        raise InputError(f"--{option}: found no name, expected some such as --model=Pop,BBQRec --dataset=Sports,Beauty")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--{option}: found {name!r} {names.count(name)} times, expected every name once")
    return names


def run_many(arguments: Sequence[str], execute: Execute | None = None) -> int:
    """Run every pair of model and data set that has no record yet, and write the leaderboards after every run.

    The first seed of all pairs comes first. Names, settings and data sets are checked before anything runs; public
    data sets that are missing are fetched.

    Parameters
    ----------
    execute : stands in for `quick_start.execute`.

    Returns
    -------
    Exit code: 0, or 1 where a run failed or a leaderboard could not be written.
    """
    asked = parse(arguments)
    _check(asked)
    jobs = _jobs(asked)
    planned: dict[str, dict[str, str]] = {name: {} for name in asked.datasets}
    for job in jobs:
        dataset = job.run.given["dataset"]
        if job.settings.get("shuffle_ties") == default_ties(
            dataset
        ):  # others stand beside the rows, not in their place
            planned[dataset][job.run.name] = job.key

    def write(dataset: str) -> str | None:
        try:
            return leaderboard.write(dataset, asked.results, asked.final, planned=planned[dataset])
        except InputError as error:  # the other runs are worth having
            print(f"no leaderboard of {dataset}: {error}", file=sys.stderr)
            return None

    splits = ("valid", "test") if asked.final else ("valid",)
    failures = run_jobs(jobs, splits, lambda job: write(job.run.given["dataset"]), execute)
    pages = [write(dataset) for dataset in asked.datasets]
    print("\n".join(page for page in pages if page))
    for title, message in failures.items():
        print(f"failed: {title}: {message}", file=sys.stderr)
    return 1 if failures or None in pages else 0


def _check(asked: Asked) -> None:
    """Refuse what cannot run, before anything is fetched or run."""
    for model in asked.models:
        registry.get_model(model)
    for dataset in asked.datasets:
        for model in asked.models:
            try:
                asked.planned(model, dataset).config()
            except MissingDataSetError as error:
                if public_source(error.name) is None:
                    raise


def _jobs(asked: Asked) -> list[Job]:
    """All runs in their order, the data read once for each pair."""
    folders = {dataset: records.folder_of(asked.results, dataset) for dataset in asked.datasets}
    pairs = {}
    for dataset in asked.datasets:
        for model in asked.models:
            run = asked.planned(model, dataset)
            config = quick_start.configured(run.files, dict(run.given))
            pairs[dataset, model] = (Data.of(config), config["seed"])
    return [
        Job(asked.planned(model, dataset, seed=first + at), data, folders[dataset])
        for at in range(asked.n_seeds)
        for (dataset, model), (data, first) in pairs.items()
        if at == 0 or model not in asked.single
    ]
