"""Commands for using a finished run."""

import argparse
from pathlib import Path

from ..errors import InputError
from .parser import command, lines, names, option

SHOWN = 20  # lists of so many users are read on the screen; more of them are for a file


@command(
    "recommend items after histories or to users, from a run's folder",
    option("folder", help="folder of a finished run, such as saved/BBQRec-ml-100k-2020-..."),
    option(
        "--history",
        action="append",
        metavar="TOKEN,TOKEN",
        help="item tokens in time order, separated by commas; may be given several times",
    ),
    option("--users", metavar="USER,USER", help="users of the run's data set, or all; all that they did is read"),
    option("-k", type=int, default=10, help="number of items (default 10)"),
    option("--allow", type=Path, metavar="FILE", help="items to choose from, one token a line"),
    option("--keep-seen", action="store_true", help="leave in what is in the history already"),
    option("--explain", action="store_true", help="also show what spoke for each item (needs --second_stage=gbdt)"),
    option("--out", type=Path, metavar="FILE", help="with --users: table to write, .csv or .parquet"),
    option("--data_path", type=Path, metavar="FOLDER", help="with --users: folder of data sets (default: the run's)"),
)
def _recommend(given: argparse.Namespace) -> None:
    from ..evaluation.report import markdown_table
    from ..serving.bundle import load_bundle
    from ..serving.lists import check_table, known_histories, write_lists

    users = names(given.users or "")
    if bool(given.history) == bool(users):
        raise InputError("recommend: give either --history=TOKEN,TOKEN or --users=all (or USER,USER)")
    if not users and (given.out or given.data_path):
        raise InputError(f"--{'out' if given.out else 'data_path'}: goes with --users, not with --history")
    if given.out:
        if given.explain:
            raise InputError("--explain: goes with lists on the screen, not with --out; drop one of the two")
        check_table(given.out)
    bundle, allow = load_bundle(given.folder), None if given.allow is None else lines(given.allow)
    if not users:
        histories = {text: names(text) for text in given.history}
    else:
        histories = known_histories(bundle, given.data_path)
        wanted = list(histories) if users == ["all"] else users
        if strange := [user for user in wanted if user not in histories]:
            there = f"the {len(histories)} users of {bundle.settings['dataset']}"
            raise InputError(f"--users: {', '.join(strange[:3])} not among {there}, such as {next(iter(histories))}")
        histories = {user: histories[user] for user in wanted}
    if given.out:
        rows = write_lists(given.out, bundle, histories, given.k, not given.keep_seen, allow, progress=True)
        print(f"{given.out}: {rows} rows for {len(histories)} users")
        return
    if len(histories) > SHOWN:
        raise InputError(f"--users: {len(histories)} users, at most {SHOWN} are shown; --out=lists.csv writes a table")
    found = bundle.recommend(histories.values(), given.k, not given.keep_seen, allow, given.explain)
    header = ["rank", "item", "score", *(("for it spoke", "by") if given.explain else ())]
    for name, result in zip(histories, found, strict=True):
        items, scores, unknown = result
        ignored = f" (unknown, ignored: {', '.join(unknown)})" if unknown else ""
        print(f"{'user' if users else 'after'} {name}{ignored}")
        rows = [[str(at), item, f"{score:.4f}"] for at, (item, score) in enumerate(zip(items, scores, strict=True), 1)]
        for row, reason in zip(rows, getattr(result, "reasons", ()), strict=False):
            row += [f"{reason.signal} ({reason.share:.0%})", reason.item or ""]
        print(markdown_table(header, rows) if rows else "nothing: no known item in it, or none left")


@command(
    "a run's model for other runtimes: an ONNX encoder of histories, item vectors, and what to do with them",
    option("folder", help="folder of a finished run"),
    option("--format", choices=("onnx",), default="onnx", help="form of the encoder (default onnx)"),
    option("--out", type=Path, required=True, metavar="FOLDER", help="new folder to write"),
)
def _export(given: argparse.Namespace) -> None:
    from ..serving.bundle import load_bundle
    from ..serving.export import export

    export(load_bundle(given.folder), given.out)
    print(f"{given.out}: {', '.join(sorted(path.name for path in given.out.iterdir()))}")
