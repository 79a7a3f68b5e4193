"""Commands for data: data sets from files, their images and features."""

import argparse
from pathlib import Path

from ..errors import InputError
from ..preparation.raw import CALLED, COLUMN_FLAGS
from .parser import DATA_PATH, NAME, command, option


@command(
    "make a data set from public files or your own tables",
    option("name", help="name of a public data set, or with --from the name of a new one"),
    DATA_PATH,
    option("--user-core", type=int, help="fewest interactions of a user (default 5, or as published)"),
    option("--item-core", type=int, help="fewest interactions of an item (default 5, or as published)"),
    option("--least-rating", type=float, help="public: leave out lower ratings (default as published)"),
    option("--shuffle-ties", type=int, metavar="SEED", help="shuffle equal times by this seed"),
    option("--raw_dir", type=Path, metavar="FOLDER", help="public: folder of raw files; missing ones are fetched"),
    option("--as", dest="written", metavar="NAME", help="public: name of the data set to write"),
    option("--from", dest="interactions", type=Path, metavar="FILE", help="own: table of interactions"),
    option("--items", type=Path, metavar="FILE", help="own: table of items"),
    option("--images", type=Path, metavar="FOLDER", help="own: folder with <item id>.jpg, .png or .webp"),
    *(
        option(flag, dest=field, metavar="NAME", help=f"own: column with the {CALLED[field]}, if it is not recognised")
        for field, flag in COLUMN_FLAGS.items()
    ),
    option("--on-bad", choices=("skip", "error"), help="own: list bad rows, or stop at one (default skip)"),
    note="Without --from the name is that of a public data set, such as Sports or Amazon2023-Video_Games.",
)
def _prepare(given: argparse.Namespace) -> None:
    said = {key: value for key, value in vars(given).items() if value is not None}
    both = {key: said[key] for key in ("user_core", "item_core", "shuffle_ties") if key in said}
    wrong, why = (
        {"raw_dir": "--raw_dir", "written": "--as", "least_rating": "--least-rating"},
        "with --from, but it is for public data sets; drop it",
    )
    if given.interactions is None:
        wrong = {"items": "--items", "images": "--images", "on_bad": "--on-bad", **COLUMN_FLAGS}
        why = "without --from, which names your table of interactions"
    for key, flag in wrong.items():
        if key in said:
            raise InputError(f"{flag}: found {str(said[key])!r} {why}")
    if given.interactions is None:
        from ..preparation.obtain import advice, obtain
        from ..preparation.public import describe

        public = {"written": given.written, "raw_dir": given.raw_dir, "least_rating": given.least_rating}
        report = obtain(given.name, given.data_path, **public, **both)
        print(f"{describe(report)}\n{advice(given.name, report)}")
    else:
        from ..preparation.own_data import describe, prepare_own

        columns = {field: said[field] for field in COLUMN_FLAGS if field in said}
        more = {"images": given.images, "columns": columns, "on_bad": given.on_bad or "skip", **both}
        print(describe(prepare_own(given.name, given.interactions, given.items, given.data_path, **more)))


@command("fetch the items' images from their addresses", NAME, DATA_PATH)
def _images(given: argparse.Namespace) -> None:
    from ..preparation.image_download import fetch_images

    print(fetch_images(given.data_path / given.name))


@command("show which item features are ready, missing or stale", NAME, settings=True)
def _features(given: argparse.Namespace) -> None:
    from ..config import Config
    from ..experiments.feature_report import feature_report

    print(feature_report(Config("BBQRec", given.name, arguments=given.settings)))
