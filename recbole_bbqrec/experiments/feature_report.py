"""What item features there are for a data set, and what the next run would have to encode; nothing is encoded here."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

from ..data.dataset import MultiModalSequentialDataset
from ..data.feature_sources import Source, gather, item_file, modalities, read_texts
from ..data.features import cache_file, read_file
from ..errors import InputError
from ..evaluation.report import markdown_table
from ..preparation.encoders import read_parts
from ..preparation.image_download import FAILURES, addresses_of, images_command, read_failures
from ..preparation.images import images_by_token, token_of

HEADER = ("modality", "encoder", "source", "items with", "without", "state")


def feature_report(config: Any) -> str:
    """Return a Markdown table of a data set's item features by modality, and lines that say what to do.

    Nothing is encoded, trained or downloaded. A modality whose source is missing or broken has a row that says so.
    """
    plain = copy.copy(config)
    without = {"attach_item_features": False, "attach_semantic_ids": False, "similarity_attention": "off"}
    plain.final_config_dict = config.final_config_dict | without
    dataset = MultiModalSequentialDataset(plain)  # its items are those that a run sees
    tokens, folder = sorted(dataset.catalogue.tokens[1:]), dataset.cache_dir
    unused = set(folder.glob("features-*")) if modalities(config) else set()
    rows, lines = [], []
    for name, encoder in modalities(config).items():
        perhaps = set(folder.glob(f"features-{name}-*"))
        try:
            source = gather(name, config, read_texts(config, tokens, [name]), tokens, download=False)
        except InputError as error:
            rows.append([name, encoder, str(config[f"{name}_folder"] or config[f"{name}_fields"]), "", "", "broken"])
            lines.append(f"{name}: {error}")
            unused -= perhaps  # any of them may belong to the source once it is mended
            continue
        file = cache_file(folder, source)
        unused -= perhaps if source.model_is_missing else {file, file.with_suffix(".parts")}
        state, remark = _state(source, file, config["encode_batch_size"])
        have = source.available
        rows.append([name, encoder, source.place.name, str(have), str(len(tokens) - have), state])
        lines += [f"{name}: {remark}"] if remark else []
    table = markdown_table(HEADER, rows) if rows else "no modality has an encoder: set text_encoder"
    lines = [f"{config['dataset']}: item features of {len(tokens)} items", "", table, "", *lines]
    lines += _images(config, tokens)
    if unused:
        names = ", ".join(sorted(path.name for path in unused))
        lines.append(f"{folder}: not used by these settings and may be deleted: {names}")
    return "\n".join(lines).rstrip()


def _state(source: Source, file: Path, batch_size: int) -> tuple[str, str]:
    """Return the state of a modality and what is to be known or done, "" where nothing is."""
    available = source.available
    if cached := read_file(file, source.inputs):
        failed = available - cached[1]["present"]
        return "ready", f"{failed} items have something that could not be encoded" if failed else ""
    if done := sum(len(rows) + len(bad) for rows, _, bad in read_parts(file.with_suffix(".parts"))):
        batches = f"{-(-done // batch_size)} of {-(-available // batch_size)} batches"
        return "begun", f"{batches} are done, the next run goes on from there"
    if not available:
        return "missing", f"{source.place}: no item has any; {source.remedy}"
    earlier = _earlier(source, file.parent)
    remark = earlier or "nothing is encoded yet, the next run does it"
    if source.model_is_missing:
        remark += f"; {source.about['encoder']} is not on this machine and is downloaded first"
    return "stale" if earlier else "missing", remark


def _earlier(source: Source, folder: Path) -> str:
    """Say how the newest file of other inputs, one of the same encoder first, differs; "" where there is none."""
    paths = folder.glob(f"features-{source.about['modality']}-*.safetensors")
    files = [read_file(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]
    found = sorted(filter(None, files), key=lambda one: one[1]["encoder"] == source.about["encoder"])
    if not found:
        return ""
    features, header, hashes = found[-1]
    about = {**source.about, **source.method, "items": len(source.tokens)}
    old, new = (plain | plain.get("versions", {}) for plain in (header, about))
    keys = [key for key in new if old.get(key) != new[key] and (key != "model" or new[key])]
    changes = [f"{key} {old.get(key)} -> {new[key]}" for key in keys if key != "versions"]
    before, now = (
        {token: one for token, one in zip(tokens, numbers.tolist(), strict=True) if one}
        for tokens, numbers in ((features.tokens, hashes), (source.tokens, source.hashes))
    )
    counts = {"changed": sum(now[token] != before[token] for token in now.keys() & before.keys())}
    counts |= {"new": len(now.keys() - before.keys()), "gone": len(before.keys() - now.keys())}
    changes += [f"{count} items {what}" for what, count in counts.items() if count]
    file = f"features-{source.about['modality']}-{header['inputs']}.safetensors"
    if not changes and source.model_is_missing:
        return f"{file}: fits if the model is the same"
    return f"{file}: {', '.join(changes) or 'for other items'}; the next run encodes all items again"


def _images(config: Any, tokens: list[str]) -> list[str]:
    """Tell of image files, addresses and failures, where a data set has a folder for images or addresses."""
    place = item_file(config).parent
    folder = place / Path(config["image_folder"] or "images").expanduser()
    there = images_by_token(folder) if folder.is_dir() else {}
    failed = read_failures(folder / FAILURES)
    final = {token_of(stem) for stem, one in failed.items() if not one.transient}
    to_fetch = len((addresses_of(item_file(config)).keys() & set(tokens)) - there.keys() - final)
    if not (config["image_folder"] or there or to_fetch):
        return []
    have = sum(token in there for token in tokens)
    lines = [f"{folder.name}: {len({*there.values()})} images, {have} of {len(tokens)} items have one"]
    if failed:
        kinds = Counter(one.reason.partition(":")[0] for one in failed.values())
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(kinds.items()))
        lines.append(f"{folder.name}/{FAILURES}: {len(failed)} images failed: {reasons}")
    if to_fetch and folder == place / "images":  # images are fetched into the folder of this name
        lines.append(f"{to_fetch} items have an address but no image: {images_command(place)} fetches them")
    return lines
