"""A finished run's folder becomes a bundle: what is needed without the data set is written beside the weights."""

import gc
import json
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

    `bundle.json` is written last: a folder without it is not a bundle. Of a model of users and items it says that the
    data set is needed: all that such a model knows of users are their numbers and what they had done in training.
    """
    (run_dir / BUNDLE).unlink(missing_ok=True)
    if dataset.rows_are_interactions:
        _leave_none(run_dir, config, f"the column {dataset.uid_field}")
        return
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


def _leave_none(run_dir: Path, config: Any, reason: Exception | str) -> None:
    needs = f"{config['model']} needs its data set ({reason}); use load_data_and_model"
    storage.write_json(run_dir / BUNDLE, {**_head(config), "needs": needs})
    logging.getLogger().info(f"no bundle: {needs}")


def try_bundle(run_dir: Path, config: Any) -> list[str]:
    """Ask a written bundle once; where one of RecBole's models needs its data set, `bundle.json` says so instead.

    Returns two items that it can be asked with; none where it does not work without the data set. It loads everything
    once more: what the run itself holds should have been let go.
    """
    gc.collect()
    if "needs" in json.loads((run_dir / BUNDLE).read_text(encoding="utf-8")):
        return []
    logger = logging.getLogger()
    try:
        bundle = load_bundle(run_dir)
        bundle.recommend([[bundle.item_tokens[1]]], k=1)
        return bundle.item_tokens[1:3]
    except Exception as error:
        (run_dir / BUNDLE).unlink()
        if isinstance(error, NeedsDataError) and config["model"] not in registry.MODELS:
            _leave_none(run_dir, config, error)
        else:  # whatever it is, the run is finished and worth its record
            logger.exception(f"no bundle: {config['model']} fails to recommend without its data set")
        return []
