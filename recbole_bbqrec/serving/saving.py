"""A finished run's folder becomes a bundle: what is needed without the data set is written beside the weights."""

import logging
import shutil
from pathlib import Path
from typing import Any

from .. import __version__, registry, storage
from ..data.feature_sources import item_file
from ..model.catalogue import Catalogue
from ..model.protocol import NeedsDataError
from ..settings import plain_settings
from . import generations
from .bundle import load_bundle
from .folder import BUNDLE, ENCODERS, FEATURES, ITEMS, REPORT_CARD, SEMANTIC_IDS, STAND_IN_FILE, TOKENIZER, WEIGHTS
from .items import items_of
from .new_items import save_encoders
from .stand_in import save_stand_in


def write_bundle(run_dir: Path, config: Any, dataset: Any) -> None:
    """Make the folder of a finished run, which holds its weights already, work without the data set.

    `bundle.json` is written last: a folder without it is not a bundle.
    """
    (run_dir / BUNDLE).unlink(missing_ok=True)
    if config["model"] not in registry.MODELS:
        save_stand_in(run_dir / STAND_IN_FILE, dataset)
    catalogue: Catalogue = dataset.catalogue
    if catalogue.features is not None:
        catalogue.features.save(run_dir / FEATURES, {})
    if catalogue.semantic_ids is not None:
        catalogue.semantic_ids.save(run_dir / SEMANTIC_IDS)
        shutil.copyfile(dataset.tokenizer_file, run_dir / TOKENIZER)
        if (card := dataset.tokenizer_file.with_suffix(".json")).is_file():
            shutil.copyfile(card, run_dir / REPORT_CARD)
    items_of(config, catalogue.tokens).save(run_dir / ITEMS)
    if dataset.feature_files:
        save_encoders(run_dir / ENCODERS, dataset.feature_files, item_file(config).parent)
    training = storage.fingerprint(run_dir / WEIGHTS, catalogue.tokens)
    generations.keep_those_of(run_dir, training)
    content = {**_head(config), "training": training, "item_tokens": catalogue.tokens}
    storage.write_json(run_dir / BUNDLE, content)


def _head(config: Any) -> dict[str, Any]:
    return {"format": storage.FORMAT, "version": __version__, "settings": plain_settings(config)}


def keep_bundle(run_dir: Path, config: Any, dataset: Any) -> None:
    """As `write_bundle`; where one of RecBole's models needs its data set, `bundle.json` says so in place of items."""
    logger = logging.getLogger()

    def leave_none(reason: Exception | str) -> None:
        needs = f"{config['model']} needs its data set ({reason}); use load_data_and_model"
        storage.write_json(run_dir / BUNDLE, {**_head(config), "needs": needs})
        logger.warning(f"no bundle: {run_dir}: {needs}")

    if dataset.rows_are_interactions:  # all its model knows of a user are his number and what he had done in training
        return leave_none(f"the column {dataset.uid_field}")
    write_bundle(run_dir, config, dataset)
    try:
        bundle = load_bundle(run_dir)
        bundle.recommend([[bundle.item_tokens[1]]], k=1)
        logger.info(f"bundle: recbole_bbqrec.load_bundle({str(run_dir)!r}).recommend([[item tokens]], k=10)")
    except Exception as error:
        (run_dir / BUNDLE).unlink()
        if isinstance(error, NeedsDataError) and config["model"] not in registry.MODELS:
            leave_none(error)
        else:  # whatever it is, the run is finished and worth its record
            logger.exception(f"no bundle: {config['model']} fails to recommend without its data set")
