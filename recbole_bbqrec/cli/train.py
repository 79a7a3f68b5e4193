"""The command that trains and evaluates. All its arguments are settings, which `run` of this folder reads."""

import argparse

from .parser import COMMANDS, command

NOTE = """
Example: bbqrec train --model=BBQRec --dataset=ml-100k. Nearly all of RecBole's models run the same way (-m SASRec -d
ml-100k). Settings are --key=value or --key value; docs/settings.md has them all. --final adds the test split,
--result_file=out.json keeps the record, --verbose shows all details, --debug tracebacks.
--item_semantics=codes,features and --code_fields=prefixes give RecBole's models semantic IDs, --second_stage=gbdt
reorders the best items. Data sets: ml-100k, Sports, Beauty and others are fetched when missing; bbqrec prepare makes
your own. Lists make a leaderboard: --model=Pop,SASRec,BBQRec --dataset=Sports,Beauty --seeds=5 runs every pair with
every seed (--single=SASRec: with one seed), keeps records and resumes if stopped; see docs/leaderboard.md.
"""


@command("train and evaluate a model on a data set, or many models on many", settings=True, note=NOTE)
def _train(given: argparse.Namespace) -> int:
    from . import run

    return run([*given.settings, *["--debug"] * given.debug])


COMMANDS.choices["train"].usage = "bbqrec train --model=NAME --dataset=NAME [--key=value ...]"
