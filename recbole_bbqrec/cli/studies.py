"""Commands for studies: many runs, and the pages made of them."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .parser import STUDY, command, names, option

SEEDS = option("--seeds", type=int, default=3, help="runs of each row (default 3; 1 screens)")
FINAL = option("--final", action="store_true", help="also evaluate the test split")


def models(default: str) -> Any:
    """The option that names a study's models."""
    return option("--models", type=names, default=[], help=f"names, separated by commas (default: {default})")


@command(
    "compare models on one page, from their records",
    *STUDY,
    option("--final", action="store_true", help="show the test split instead of validation"),
    option("--models", type=names, default=[], help="rows, separated by commas (default: all that have a record)"),
    option("--keys", type=names, default=[], help="run keys to show instead of the latest of their models"),
    option(
        "--against",
        metavar="MODEL",
        help="compare with this row (default: BBQRec, else the first of --models, else as before)",
    ),
    option("--metrics", type=names, default=[], help="further metrics to show: MAP,GiniIndex, or at 5 MAP@5"),
    option("--group_metrics", type=names, default=[], help="show groups of targets: popularity, length, cold"),
    option("--mode", default="full", help="rows ranked among sampled items, such as uni100 (default: full)"),
    option("--split", default="", help="rows of another split than leave-one-out, as in the page's name: TS, RS"),
    note="bbqrec train --model=A,B --dataset=X,Y --seeds=5 makes the records.",
)
def _leaderboard(given: argparse.Namespace) -> None:
    from ..experiments import leaderboard_page, tables

    rows = given.models, given.keys, given.against
    more = {"metrics": tables.named(given.metrics), "groups": tables.grouped(given.group_metrics), "mode": given.mode}
    print(leaderboard_page.write(given.dataset, given.results, given.final, *rows, of_split=given.split, **more))


@command(
    "compare BBQRec with one part changed at a time, over seeds",
    *STUDY,
    option("--form", default="full", help="full, or with items known by codes alone: codes, codes-dense; generate"),
    SEEDS,
    option("--rows", type=names, default=[], help="names of rows, separated by commas (default: all that apply)"),
    FINAL,
    option("--table-only", action="store_true", help="only rewrite page and figure from the records"),
    settings=True,
)
def _ablate(given: argparse.Namespace) -> int | None:
    from ..experiments import ablation

    if not given.table_only:
        study = given.dataset, given.rows, given.seeds, given.settings, given.final, given.results
        return ablation.ablate(*study, given.form)
    if given.settings or given.rows:
        raise InputError("--table-only reads records alone: give --dataset, --form, --results and --final, no more")
    return ablation.remake(given.dataset, given.final, given.results, given.form)


@command(
    "measure how items that training did not know are ranked, and how much accuracy that costs on known ones",
    *STUDY,
    models("all that can"),
    SEEDS,
    FINAL,
    settings=True,
)
def _cold(given: argparse.Namespace) -> int:
    from ..experiments import cold

    return cold.study(given.dataset, given.models, given.seeds, given.settings, given.final, given.results)


@command(
    "measure what codes as item columns are worth to context-aware models",
    *STUDY,
    models("DeepFM, DCNV2"),
    SEEDS,
    FINAL,
    settings=True,
)
def _context(given: argparse.Namespace) -> int:
    from ..experiments import context

    return context.study(given.dataset, given.models, given.seeds, given.settings, given.final, given.results)


@command(
    "measure what codes and features are worth in the item tables of RecBole's own models",
    *STUDY,
    models("BPR, LightGCN"),
    SEEDS,
    FINAL,
    settings=True,
)
def _general(given: argparse.Namespace) -> int:
    from ..experiments import general

    return general.study(given.dataset, given.models, given.seeds, given.settings, given.final, given.results)


@command(
    "choose a model's settings on validation, within a budget of CPU time",
    option("--model", required=True, help="name of the model"),
    *STUDY,
    option("--minutes", type=float, default=60.0, help="CPU time of all trials together (default 60)"),
    option("--space", type=Path, metavar="FILE", help="keys and their values (default: the model's own)"),
    option("--storage", metavar="URL|FILE", help="database or shared journal of the trials, for many machines"),
    settings=True,
)
def _tune(given: argparse.Namespace) -> int:
    from ..experiments.tune import tune

    return tune(given.model, given.dataset, given.minutes, given.settings, given.space, given.results, given.storage)


@command(
    "measure time and memory of scoring, with and without codes; or accuracy against bytes of item parameters",
    *STUDY,
    option("--users", type=int, help="histories to score (default 1000)"),
    option("--rounds", type=int, help="timings of each way of scoring (default 5)"),
    option("--table", action="store_true", help="train ID tables of several widths and of codes instead"),
    option("--seeds", type=int, help="with --table: trainings of each table (default 1)"),
    settings=True,
)
def _cost(given: argparse.Namespace) -> int | None:
    for name in ("users", "rounds") if given.table else ("seeds",):
        if getattr(given, name) is not None:
            raise InputError(f"--{name}: goes {'without' if given.table else 'with'} --table; drop one of the two")
    said = {key: value for key, value in vars(given).items() if value is not None}
    if given.table:
        from ..experiments.item_bytes import study

        return study(given.dataset, said.get("seeds", 1), given.settings, given.results)
    from ..experiments.cost import cost

    cost(given.dataset, said.get("users", 1000), said.get("rounds", 5), given.settings, given.results)
    return None


@command(
    "make the item tokenizer's report cards over seeds, with and without independence of its two parts",
    *STUDY,
    option("--seeds", type=int, default=5, help="fits of each tokenizer (default 5)"),
    settings=True,
)
def _ids(given: argparse.Namespace) -> None:
    from ..experiments.ids import study

    study(given.dataset, given.seeds, given.settings, given.results)


@command(
    "measure what each group of features adds to the second stage of a model",
    option("--model", help="name of the model; the page has all models with records"),
    *STUDY,
    option("--seeds", type=int, default=1, help="trainings of the model (default 1)"),
    option("--table-only", action="store_true", help="only rewrite page and figure from the records"),
    settings=True,
)
def _second_stage(given: argparse.Namespace) -> None:
    from ..experiments import second_stage, second_stage_page

    if given.table_only:
        if given.settings or given.model:
            raise InputError("--table-only reads records alone: give --dataset and --results, nothing else")
        for split in second_stage_page.splits_of(given.dataset, given.results) or [""]:
            print(second_stage_page.write(given.dataset, given.results, split))
    elif not given.model:
        raise InputError("--model: found no name, expected that of a model, such as --model=BBQRec")
    else:
        print(second_stage.study(given.model, given.dataset, given.seeds, given.settings, given.results))
