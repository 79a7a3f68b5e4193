"""The command that trains and judges. Its arguments are settings alone, which `run` of this folder reads."""

import argparse

from .parser import command

NOTE = """
Nearly all of RecBole's models run the same way (-m SASRec -d ml-100k); settings are --key=value or --key value,
docs/settings.md has them all. --final adds the test split, --result_file=out.json keeps the record, --verbose shows
all details, --debug tracebacks. --item_semantics=codes,features and --code_fields=prefixes give RecBole's models
semantic IDs, --second_stage=gbdt reorders the best items. Data sets: ml-100k, Sports, Beauty and others that are
fetched when missing; your own: bbqrec prepare. Lists make a leaderboard: --model=Pop,SASRec,BBQRec
--dataset=Sports,Beauty --seeds=5 runs every pair with every seed (--single=SASRec: with one), keeps records and goes on
where it stopped; see docs/leaderboard.md.
"""


@command("a model on a data set: --model=BBQRec --dataset=ml-100k; or many of both", settings=True, note=NOTE)
def _train(given: argparse.Namespace) -> int:
    from . import run

    return run([*given.settings, *["--debug"] * given.debug])
