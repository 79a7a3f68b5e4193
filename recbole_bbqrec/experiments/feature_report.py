"""What item features there are for a data set, and what the next run would have to encode; nothing is computed here.

Read from the files alone, without RecBole's data set: the items, their texts, images or vectors, and the cache.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import storage
from ..data.feature_sources import FeatureSettings, Modality, Source, gather
from ..data.features import PADDING, ItemFeatures, cache_file, parts_of, read_cached
from ..errors import InputError
from ..evaluation.report import markdown_table
from ..preparation.atomic import read_atomic
from ..preparation.encoding_parts import count_batches
from ..preparation.image_download import FAILURES, addresses_of, images_command, read_failures
from ..preparation.images import images_by_token, token_of

FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval")


@dataclass(frozen=True)
class ModalityReport:
    """State of one modality.

    Attributes
    ----------
    state : `ready`, `begun`, `stale`, `missing`, or `broken` where its source cannot be read.
    available : items that have something to encode; -1 where the source is broken.
    known : items that have features in a ready file.
    remark : what is to be known or done, one line; "" where nothing is.
    width, size, written : of a ready file: D, bytes, seconds since 1970.
    """

    name: str
    encoder: str
    source: str
    state: str
    available: int
    remark: str = ""
    known: int = 0
    width: int = 0
    size: int = 0
    written: float = 0.0


@dataclass(frozen=True)
class ImageFiles:
    """Images in `folder`, items that have one, items whose image can be fetched and how, listed failures by kind."""

    folder: str
    files: int
    items: int
    to_fetch: int
    command: str
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureReport:
    """Features of a data set: its modalities, files in the cache that belong to none of them, images, remarks."""

    dataset: str
    items: int
    modalities: list[ModalityReport]
    cache_dir: Path
    unused: list[Path]
    unused_bytes: int
    images: ImageFiles | None
    remarks: list[str]


def feature_report(config: Any) -> FeatureReport:
    """Look at the item features of a configuration's data set; nothing is encoded, trained or downloaded.

    Raises
    ------
    InputError : the interaction file is missing or broken. A modality that is gets a line of its own in the report.
    """
    settings = FeatureSettings.from_config(config)
    item_file = Path(config["data_path"]) / f"{config['dataset']}.item"
    tokens = item_tokens(config)
    root = config["cache_dir"] or Path(config["checkpoint_dir"]) / "cache"
    cache_dir = Path(root) / config["dataset"]
    modalities: list[ModalityReport] = []
    used: set[Path] = set()
    unsure: list[str] = []  # whose files cannot be told from others
    for modality in settings.modalities():
        try:
            source = gather(modality, item_file, tokens, settings, torch.device(config["device"]), download=False)
        except InputError as error:
            place = modality.folder or " ".join(modality.fields)
            modalities.append(ModalityReport(modality.name, modality.encoder, place, "broken", -1, str(error)))
            unsure.append(modality.name)
            continue
        file = cache_file(cache_dir, source)
        used |= {file, parts_of(file, source).folder}
        modalities.append(_state(source, file, settings))
        if not source.model_is_here:
            unsure.append(modality.name)
    entries = [*cache_dir.glob("features-*.safetensors"), *cache_dir.glob("features-*.parts")]
    unused = sorted(path for path in entries if path not in used and path.name.split("-")[1] not in unsure)
    filters = [key for key in FILTERS if config[key] and config[key] != "[0,inf)"]
    remarks = [f"{', '.join(filters)}: not applied here, a run may see fewer items and look for another file"]
    return FeatureReport(
        config["dataset"],
        len(tokens),
        modalities,
        cache_dir,
        unused,
        sum(map(_size, unused)),
        _images(item_file, tokens, settings),
        remarks if filters else [],
    )


def item_tokens(config: Any) -> list[str]:
    """Return the sorted items that a run over the whole data set would see.

    They are those of the interaction files, unless RecBole loads the .item file: its items then decide.
    """
    folder, name, column = Path(config["data_path"]), config["dataset"], config["ITEM_ID_FIELD"]
    how = (config["field_separator"], config["encoding"] or "utf-8")

    def items_of(path: Path) -> set[str]:
        return set(map(str, read_atomic(path, [column], *how)[0][column]))

    parts = config["benchmark_filename"]
    files = [folder / f"{name}.{part}.inter" for part in parts] if parts else [folder / f"{name}.inter"]
    tokens = set().union(*map(items_of, files))
    load, item_file = config["load_col"], folder / f"{name}.item"
    if (load is None or load.get("item")) and item_file.is_file():
        listed = items_of(item_file)
        tokens = listed if config["filter_inter_by_user_or_item"] is True else tokens | listed
    return sorted(tokens - {"", PADDING})


def _state(source: Source, file: Path, settings: FeatureSettings) -> ModalityReport:
    modality, available = source.modality, source.available
    about = (modality.name, modality.encoder, source.place.name)
    features = read_cached(file, source)
    if features is not None:
        known, width = int(features.present[modality.name].sum()), features.matrices[modality.name].shape[1]
        remark = "" if known == available else f"{available - known} items have something that could not be encoded"
        stat = file.stat()
        return ModalityReport(*about, "ready", available, remark, known, width, stat.st_size, stat.st_mtime)
    total = count_batches(available, settings.encode_batch_size)
    done = sum(piece.stop - piece.start for piece in parts_of(file, source).read(total))
    if done:
        remark = f"{done} of {total} batches are done, the next run goes on from there"
        return ModalityReport(*about, "begun", available, remark)
    fetch = "" if source.model_is_here else f"; {modality.encoder} is not on this machine and is downloaded first"
    if not available:
        return ModalityReport(*about, "missing", 0, f"{source.place}: no item has any; {source.remedy}")
    earlier = _earlier(file.parent, modality)
    if earlier is None:
        return ModalityReport(*about, "missing", available, f"nothing is encoded yet, the next run does it{fetch}")
    if found := earlier.compare(source):
        remark = f"{earlier.path.name}: {found}; the next run encodes all items again{fetch}"
    elif source.model_is_here:
        remark = f"{earlier.path.name}: damaged, or for other items without {modality.name}; the next run encodes again"
    else:
        remark = f"{earlier.path.name}: fits if the model is the same{fetch}"
    return ModalityReport(*about, "stale", available, remark)


class _Earlier(NamedTuple):
    """A features file of other inputs: its header, and item -> hash of what it was encoded from."""

    path: Path
    header: dict[str, Any]
    hashes: dict[str, int]

    def compare(self, source: Source) -> str:
        """Say what has changed since; "" where nothing is seen."""
        now = _by_item(source.tokens, source.hashes)
        both = now.keys() & self.hashes.keys()
        counts = {
            "changed": sum(now[token] != self.hashes[token] for token in both),
            "new": len(now) - len(both),
            "gone": len(self.hashes) - len(both),
        }
        items = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        different = _differences(self.header, source.about)
        found = [f"settings changed: {', '.join(different)}"] if different else []
        found += [f"items with {source.modality.name}: {items}"] if items else []
        if not found and self.header["items"] != len(source.tokens):
            found = [f"{self.header['items']} items before, {len(source.tokens)} now"]
        return "; ".join(found)


def _earlier(cache_dir: Path, modality: Modality) -> _Earlier | None:
    """Return the newest readable file of a modality, one of the same encoder first."""
    found: list[tuple[bool, float, _Earlier]] = []
    for path in cache_dir.glob(f"features-{modality.name}-*.safetensors"):
        try:
            tensors, header = storage.load(path, "features")
            features = ItemFeatures._from_file(path, tensors, header)
            earlier = _Earlier(path, header, _by_item(features.tokens, tensors[f"hash.{modality.name}"]))
            found.append((header["encoder"] == modality.encoder, path.stat().st_mtime, earlier))
        except (InputError, KeyError):  # of a version before this one, or damaged: of no use either way
            continue
    return max(found, key=lambda one: one[:2])[2] if found else None


def _by_item(tokens: list[str], hashes: Tensor) -> dict[str, int]:
    return {token: number for token, number in zip(tokens, hashes.tolist(), strict=True) if number}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name what differs in the description of two encodings."""
    found: list[str] = []
    for key, value in new.items():
        before = old.get(key)
        if before == value or (value is None and key == "model"):
            continue
        if isinstance(before, dict) and isinstance(value, dict):  # versions
            names = sorted(before.keys() | value.keys())
            pairs = [(name, before.get(name), value.get(name)) for name in names]
            found += [f"{name} {earlier} -> {later}" for name, earlier, later in pairs if earlier != later]
        elif key == "model":
            found.append("the files of the model")
        elif key == "code":
            found.append("the code that encodes")
        elif key != "method":  # told by the encoder
            found.append(f"{key} {before} -> {value}")
    return found


def _images(item_file: Path, tokens: list[str], settings: FeatureSettings) -> ImageFiles | None:
    """Count image files and addresses; `None` where a data set has neither a folder for images nor addresses."""
    folder = item_file.parent / Path(settings.image_folder or "images").expanduser()
    there = images_by_token(folder) if folder.is_dir() else {}
    failed = read_failures(folder / FAILURES)
    final = {token_of(stem) for stem, one in failed.items() if not one.transient}
    to_fetch = len((addresses_of(item_file).keys() & set(tokens)) - there.keys() - final)
    if not (settings.image_folder or there or to_fetch):
        return None
    failures = Counter(one.reason.partition(":")[0] for one in failed.values())
    with_image = sum(token in there for token in tokens)
    # Images are fetched into the folder of this name; where others are meant, that is no remedy.
    command = images_command(item_file.parent) if folder == item_file.parent / "images" else ""
    return ImageFiles(folder.name, len(there), with_image, to_fetch, command, dict(sorted(failures.items())))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def describe(report: FeatureReport) -> str:
    """Return the report as a Markdown table and lines that say what to do."""
    rows = []
    for one in report.modalities:
        broken, ready = one.state == "broken", one.state == "ready"
        counts = ["", ""] if broken else [str(one.available), str(report.items - one.available)]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.written))
        file = [str(one.width), _mb(one.size), when] if ready else ["", "", ""]
        rows.append([one.name, one.encoder, one.source, *counts, one.state, *file])
    header = ["modality", "encoder", "source", "items with", "without", "state", "width", "MB", "written"]
    lines = [f"{report.dataset}: item features of {report.items} items", ""]
    lines += [markdown_table(header, rows), ""] if rows else ["no modality has an encoder: set text_encoder", ""]
    lines += [f"{one.name}: {one.remark}" for one in report.modalities if one.remark]
    if report.images is not None:
        lines += _describe_images(report.images, report)
    if report.unused and report.modalities:
        lines.append(
            f"{len(report.unused)} files and folders ({_mb(report.unused_bytes)} MB) in {report.cache_dir} are not "
            f"used by these settings and may be deleted: {', '.join(path.name for path in report.unused[:5])}"
            + (", ..." if len(report.unused) > 5 else "")
        )
    return "\n".join([*lines, *report.remarks]).rstrip()


def _describe_images(images: ImageFiles, report: FeatureReport) -> list[str]:
    lines = [f"{images.folder}: {images.files} images, {images.items} of {report.items} items have one"]
    if images.failures:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in images.failures.items())
        lines.append(f"{images.folder}/{FAILURES}: {sum(images.failures.values())} images failed: {reasons}")
    if images.to_fetch and images.command:
        lines.append(f"{images.to_fetch} items have an address but no image: {images.command} fetches them")
    return lines
