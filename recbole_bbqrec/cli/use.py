"""Commands for using a finished run."""

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .parser import RESULTS, command, lines, names, option

LISTED = 10  # most items listed where words match several titles
SHOWN = 20  # most users whose lists are shown on the screen; more go to a file


@command(
    "recommend items for histories or users, from a run's folder",
    option("folder", help="folder of a finished run, such as saved/BBQRec-ml-100k-2020-..."),
    option(
        "--history",
        action="append",
        metavar="ITEM,ITEM",
        help="tokens or words of titles in time order, separated by commas; may be given several times",
    ),
    option("--users", metavar="USER,USER", help="users of the run's data set, or all; their whole histories are read"),
    option("-k", type=int, default=10, help="number of items (default 10)"),
    option("--allow", type=Path, metavar="FILE", help="items to choose from, one token a line"),
    option("--deny", type=Path, metavar="FILE", help="items to leave out, one token a line"),
    option("--keep-seen", action="store_true", help="keep items that are already in the history"),
    option("--explain", action="store_true", help="also show the main reason for each item"),
    option("--out", type=Path, metavar="FILE", help="with --users: table to write, .csv or .parquet"),
    option("--data_path", type=Path, metavar="FOLDER", help="with --users: folder of data sets (default: the run's)"),
)
def _recommend(given: argparse.Namespace) -> None:
    from ..evaluation.report import markdown_table
    from ..serving.bundle import load_bundle
    from ..serving.lists import check_table, known_histories, write_lists

    users = names(given.users or "")
    if bool(given.history) == bool(users):
        raise InputError("recommend: give either --history=ITEM,ITEM or --users=all (or USER,USER)")
    if not users and (given.out or given.data_path):
        raise InputError(f"--{'out' if given.out else 'data_path'}: goes with --users, not with --history")
    if given.out:
        if given.explain:
            raise InputError("--explain: goes with lists on the screen, not with --out; drop one of the two")
        check_table(given.out)
    bundle = load_bundle(given.folder)
    allow, deny = (None if file is None else lines(file) for file in (given.allow, given.deny))
    if not users:
        histories = {text: [_item(bundle, name) for name in names(text)] for text in given.history}
    else:
        histories = known_histories(bundle, given.data_path)
        wanted = list(histories) if users == ["all"] else users
        if strange := [user for user in wanted if user not in histories]:
            there = f"the {len(histories)} users of {bundle.settings['dataset']}"
            raise InputError(f"--users: {', '.join(strange[:3])} not among {there}, such as {next(iter(histories))}")
        histories = {user: histories[user] for user in wanted}
    if given.out:
        how = {"exclude_seen": not given.keep_seen, "allow": allow, "deny": deny}
        rows = write_lists(given.out, bundle, histories, given.k, **how, progress=True)
        print(f"{given.out}: {rows} rows for {len(histories)} users")
        return
    if len(histories) > SHOWN:
        raise InputError(f"--users: {len(histories)} users, at most {SHOWN} are shown; --out=lists.csv writes a table")
    found = bundle.recommend(histories.values(), given.k, not given.keep_seen, allow, deny, given.explain)
    titled = any(bundle.titles)
    header = ["rank", "item", *["title"] * titled, "score", *(("reason", "because of") if given.explain else ())]
    for name, result in zip(histories, found, strict=True):
        items, scores, unknown = result
        ignored = f" (unknown, ignored: {', '.join(unknown)})" if unknown else ""
        print(f"{'user' if users else 'after'} {name}{ignored}")
        rows = [
            [str(at), item, *[bundle.title(item)] * titled, f"{score:.4f}"]
            for at, (item, score) in enumerate(zip(items, scores, strict=True), 1)
        ]
        for row, reason in zip(rows, getattr(result, "reasons", ()), strict=False):
            by = f"{reason.item}  {bundle.title(reason.item)}".strip() if reason.item else ""
            row += [f"{reason.signal} ({reason.share:.0%})", by]
        print(markdown_table(header, rows, left=2 + titled) if rows else "nothing: no known item in it, or none left")


def _item(bundle: Any, name: str) -> str:
    """Return the token of an item named by its token or by words of its title; an unknown name stays as it is."""
    found = bundle.find(name, LISTED + 1)
    if name in found or not found:
        return name
    whole = [token for token in found if bundle.title(token).casefold() == name.casefold()]
    if len(found) > 1 and len(whole) != 1:
        listed = ", ".join(f"{token}  {bundle.title(token)}" for token in found[:LISTED])
        more = "; and more" if len(found) > LISTED else ""
        raise InputError(f"--history: {name!r} is in several titles, say which: {listed}{more}")
    return (whole or found)[0]


@command(
    "add new items to a finished run without training, or find items by words of their titles",
    option("action", choices=("add", "find"), help="add the rows of a CSV file, or find items"),
    option("folder", help="folder of a finished run"),
    option("what", nargs="+", metavar="FILE|WORD", help="add: the CSV file, see docs/serving.md; find: words"),
)
def _items(given: argparse.Namespace) -> None:
    from ..evaluation.report import markdown_table
    from ..serving.bundle import load_bundle

    if given.action == "add" and len(given.what) > 1:
        raise InputError(f"items add: found {len(given.what)} files, expected one")
    bundle = load_bundle(given.folder)
    if given.action == "add":
        grown = bundle.add_items(given.what[0])
        n_new = len(grown.item_tokens) - len(bundle.item_tokens)
        print(f"{given.folder}: {n_new} items added, generation {grown.generation}")
        return
    found = bundle.find(" ".join(given.what))
    rows = [[token, bundle.title(token)] for token in found]
    print(markdown_table(["item", "title"], rows, left=2) if rows else "nothing: no title has all these words")


@command(
    "serve recommendations over HTTP, with a demo page",
    option("folder", help="folder of a finished run, such as saved/BBQRec-ml-100k-2020-..."),
    option("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"),
    option("--port", type=int, default=8000, help="port to listen on (default 8000)"),
    option("--workers", type=int, default=1, help="processes that answer, one core each (default 1)"),
    option(
        "--store",
        metavar="FILE|URL",
        help="users' histories: an SQLite file (default: <folder's name>.events.sqlite) or postgresql://user@host/name",
    ),
    option("--api-key", help="key that requests send as X-API-Key (default: $BBQREC_API_KEY, else none)"),
    option("--rate", type=float, default=200, help="requests per second and client (default 200; 0 = no limit)"),
    option("--index", choices=("faiss",), help="find items with an index, for catalogues beyond a million items"),
)
def _serve(given: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers are the parallel part
    from ..serving.service.server import Options, serve

    store = given.store or f"{Path(given.folder).name}.events.sqlite"
    key = given.api_key or os.environ.get("BBQREC_API_KEY")
    serve(given.folder, Options(store, given.host, given.port, given.workers, key, given.rate, given.index))


@command(
    "export a run's model for other runtimes: an ONNX encoder of histories, item vectors, and instructions",
    option("folder", help="folder of a finished run"),
    option("--format", choices=("onnx",), default="onnx", help="form of the encoder (default onnx)"),
    option("--out", type=Path, required=True, metavar="FOLDER", help="new folder to write"),
)
def _export(given: argparse.Namespace) -> None:
    from ..serving.bundle import load_bundle
    from ..serving.export import export

    export(load_bundle(given.folder), given.out)
    print(f"{given.out}: {', '.join(sorted(path.name for path in given.out.iterdir()))}")


@command(
    "upload a finished run to the Hugging Face hub, with a model card, for load_bundle('hf://org/name')",
    option("folder", type=Path, help="folder of a finished run"),
    option("repo", metavar="ORG/NAME", help="repository; it is created if missing"),
    option("--private", action="store_true", help="make the repository private"),
    option("--endpoint", metavar="URL", help="a hub other than huggingface.co"),
    RESULTS,
)
def _push(given: argparse.Namespace) -> None:
    from ..experiments.tables import results_of
    from ..serving.hub import push

    print(push(given.folder, given.repo, given.private, given.endpoint, results_of(given.folder, given.results)))
