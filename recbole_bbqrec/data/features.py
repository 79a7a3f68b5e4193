"""Item features: one matrix per modality, keyed by item token, computed once and kept by fingerprint.

Everything is computed over the item tokens in sorted order, so that a feature depends on tokens and contents, never on
the ids that RecBole gives.
"""

import logging
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .. import storage
from ..errors import InputError
from ..model.catalogue import PADDING, ItemFeatures
from ..preparation import encoders
from ..preparation.counted import FITTED
from ..tokenizer import memory
from .feature_sources import Source, gather, modalities, read_texts, unused_texts

NOT_MEASURED = {"seconds": None, "memory_growth_mib": None}
_ENCODER = "encoder."  # begins the names of the tensors that an encoder has learned


class Built(NamedTuple):
    """Features of all modalities, rows in sorted order of the tokens, and of each modality the file that has them.

    `seconds` are what encoding took; none where nobody has measured that.
    """

    features: ItemFeatures
    seconds: float | None
    files: dict[str, Path]


def build_item_features(
    config: Any, item_tokens: Sequence[str], cache_dir: Path, unfitted: Collection[str] = ()
) -> Built:
    """Return the features of the items.

    Where encoders learn words and dimensions, they learn none from the items `unfitted`.

    What `cache_dir` holds is read, with what it cost when it was made. A file, column or model that is missing or
    broken is an `InputError`, and so is a modality that no item has.
    """
    tokens = sorted({str(token) for token in item_tokens} - {PADDING})
    result, seconds, files = ItemFeatures(tokens), [], {}
    if unused := " ".join(unused_texts(config)):
        how = f"to use them, add --text_encoder=tfidf --text_fields='{unused}'"
        logging.getLogger().info(f"items have texts that this run does not use ({unused}); {how}")
    texts = read_texts(config, tokens, modalities(config))
    for name in modalities(config):
        source = gather(name, config, texts, tokens, unfitted=unfitted)
        file = files[name] = cache_file(cache_dir, source)
        if cached := read_file(file, source.inputs):
            found, cost = cached[0], cached[1].get("cost", NOT_MEASURED)
            memory.count_growth(cost["memory_growth_mib"])
            logging.getLogger().info(f"{name} features: read from {file}")
        else:
            found, cost = _encode(source, file)
        seconds.append(cost["seconds"])
        shutil.rmtree(file.with_suffix(".parts"), ignore_errors=True)
        width, missing = found.matrices[name].shape[1], int((~found.present[name]).sum())
        share = f"{missing} items ({100 * missing / len(tokens):.1f} %) have none"
        logging.getLogger().info(f"{name} features: {len(tokens)} items x {width}, {share}")
        result.matrices |= found.matrices
        result.present |= found.present
    return Built(result, None if None in seconds else sum(seconds), files)


def cache_file(cache_dir: Path, source: Source) -> Path:
    """Return where the features of a source are kept; what an interrupted encoding left is in `.parts` beside it."""
    return cache_dir / f"features-{source.about['modality']}-{source.inputs}.safetensors"


def read_file(file: Path, inputs: str | None = None) -> tuple[ItemFeatures, dict[str, Any], Tensor] | None:
    """Return the features of one modality that a file holds, its header, and the hash of what each item was made from.

    `None` stands for a file that is not there, is damaged, or, where `inputs` are given, was made from others.
    """
    try:
        tensors, header = storage.load(file, "features")
        features = ItemFeatures._from_file(file, tensors, header)
        hashes = tensors[f"hash.{header['modality']}"]
        learned = {name: value for name, value in tensors.items() if name.startswith(_ENCODER)}
        content = storage.fingerprint(features.tokens, features.matrices, features.present, hashes, learned)
        if header["content"] == content and inputs in (None, header["inputs"]):
            return features, header, hashes
    except (InputError, KeyError):
        pass
    if inputs and file.is_file():
        logging.getLogger().warning(f"{file}: a damaged file of item features; they are computed again")
    return None


def read_encoder(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header of a file of features, which says how they were encoded, and what the encoder has learned."""
    tensors, header = storage.load(file, "features")
    return header, {name.removeprefix(_ENCODER): value for name, value in tensors.items() if name.startswith(_ENCODER)}


def _encode(source: Source, file: Path) -> tuple[ItemFeatures, dict[str, float | None]]:
    """Compute the features of a source and keep them in `file`, with what that cost, which is returned too."""
    started, parts = time.perf_counter(), file.with_suffix(".parts")
    peak, earlier = memory.PeakMemory(), encoders.seconds_of_parts(parts)
    name = source.about["modality"]
    nothing = f"{source.place}: none of the {len(source.tokens)} items has {name} features; {source.remedy}"
    if not source.available:
        raise InputError(nothing)
    matrix, known, notes = source.encode(parts)
    if not known.any():
        raise InputError(nothing)
    features = ItemFeatures(source.tokens, {name: matrix}, {name: known})
    learned = notes.pop(FITTED).state() if FITTED in notes else {}
    more = {_ENCODER + part: value for part, value in learned.items()}
    counts = {"items": len(known), "present": int(known.sum())}
    # So that damage inside the file is seen as well.
    content = storage.fingerprint(source.tokens, features.matrices, features.present, source.hashes, more)
    header = {**source.about, **source.method, **notes, **counts, "inputs": source.inputs, "content": content}
    cost = {
        "seconds": None if earlier is None else earlier + time.perf_counter() - started,
        "memory_growth_mib": peak.growth_mib,
    }
    features.save(file, {**header, "cost": cost}, {f"hash.{name}": source.hashes, **more})
    return features, cost
