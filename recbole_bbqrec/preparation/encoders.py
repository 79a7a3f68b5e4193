"""Item vectors, texts and images to matrices, by transformers models; knows neither recommenders nor RecBole.

Shapes: N rows (items) x D dimensions. Every encoder returns a matrix float32 [N, D], whether a row is known, bool [N],
and notes, plain data about the encoding. A row that is not known (a blank text, an unreadable image) is zero. The
result depends on the rows, their order and the arguments alone. Transformers models are named by their folder, see
`model_folder`; `batching` is `batch_size` and `parts`, see `encode_in_batches`.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import storage
from ..errors import InputError
from .images import decode, require_pillow

# What a model's folder is read for: settings, weights, vocabularies. Pickled weights (`.bin`) are never read.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
# Work of so many seconds is kept at a time: a kill costs no more, and writing costs next to nothing.
SECONDS_PER_PART = 10.0

Device = str | torch.device
Encoded = tuple[Tensor, Tensor, dict[str, Any]]
# What some batches gave: n rows, their features [n, D] (`zeros(0)` without any), and row -> why it has none.
Piece = tuple[list[int], Tensor, dict[int, str]]


def given(rows: Sequence[np.ndarray | None]) -> Encoded:
    """Stack vectors that were computed elsewhere, of which there is at least one."""
    nothing = np.zeros_like(next(row for row in rows if row is not None))
    matrix = torch.from_numpy(np.stack([nothing if row is None else row for row in rows]))
    return matrix, torch.tensor([row is not None for row in rows]), {}


def transformers_text(
    texts: Sequence[str], folder: Path, max_tokens: int = 128, device: Device = "cpu", **batching: Any
) -> Encoded:
    """Encode texts with a transformers model: its text tower's features (CLIP, SigLIP), else the mean of its tokens.

    Texts of more than `max_tokens`, or of the model's own limit, are cut. Notes: their number `cut_texts`, which is
    logged too, and the `token_limit`.
    """
    network, _ = _load_model(folder, device)
    tokenizer = _load(folder, "AutoTokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limit = min(max_tokens, tokenizer.model_max_length)
    if positions := getattr(network.config.get_text_config(), "max_position_embeddings", None):
        # transformers puts in a huge number for a tokenizer without a limit, such as RoBERTa's, whose network keeps the
        # first two positions for padding.
        limit = min(limit, positions - 2 if tokenizer.model_max_length >= 1 << 20 else positions)
    blocks = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
    lengths = [len(ids) for block in blocks for ids in tokenizer(list(block), verbose=False)["input_ids"]]
    cut = sum(length > limit for length in lengths)
    if cut:
        logging.getLogger().info(f"{folder}: {cut} of {len(texts)} texts cut to {limit} tokens (max_text_tokens)")
    # Texts of like length share a batch, so that little is computed for padding; `sorted` is stable.
    order = sorted((at for at, text in enumerate(texts) if text.strip()), key=lengths.__getitem__)
    # SigLIP was trained on texts padded to the full length and reads the last position.
    how = {"padding": "max_length" if "siglip" in network.config.model_type else True, "return_tensors": "pt"}

    def encode(rows: list[int]) -> Piece:
        batch = tokenizer([texts[row] for row in rows], truncation=True, max_length=limit, **how).to(device)
        if hasattr(network, "get_text_features"):
            asked = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
            found = network.get_text_features(**asked)  # a tensor or, of other versions, an output
            return rows, getattr(found, "pooler_output", found), {}
        hidden = network(**batch).last_hidden_state  # [B, T, D]
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).unsqueeze(-1).to(hidden.dtype)
        return rows, (hidden * mask).sum(1) / mask.sum(1).clamp(min=1), {}

    matrix, known, _ = encode_in_batches(order, len(texts), encode, folder, device, **batching)
    return matrix, known, {"cut_texts": cut, "token_limit": limit}


def transformers_image(paths: Sequence[Path | None], folder: Path, device: Device = "cpu", **batching: Any) -> Encoded:
    """Encode image files with a transformers vision model: its image features (CLIP, SigLIP), pooled output, or mean.

    `None` and files that are no usable image are not known; the reasons are logged. Notes: `unreadable`, kind of reason
    -> number of images.
    """
    require_pillow()
    network, untrained = _load_model(folder, device)
    processor = _load(folder, "AutoImageProcessor")
    # A pooler that is not in the weights file has been filled with random numbers.
    pooled = not any("pooler" in name for name in untrained)

    def encode(rows: list[int]) -> Piece:
        decoded = {row: decode(paths[row]) for row in rows}  # type: ignore[arg-type]  (only rows with a path)
        images = {row: image for row, (image, _) in decoded.items() if image is not None}
        bad = {row: reason for row, (image, reason) in decoded.items() if image is None}
        if not images:
            return [], torch.zeros(0), bad
        batch = processor(images=list(images.values()), return_tensors="pt").to(device)
        if hasattr(network, "get_image_features"):
            found = network.get_image_features(pixel_values=batch["pixel_values"])
            return list(images), getattr(found, "pooler_output", found), bad
        output = network(**batch)
        if pooled and getattr(output, "pooler_output", None) is not None:
            return list(images), output.pooler_output.flatten(1), bad
        hidden = output.last_hidden_state  # [B, T, D] of a transformer, [B, D, height, width] of a convolution
        return list(images), hidden.mean((2, 3)) if hidden.dim() == 4 else hidden.mean(1), bad

    order = [row for row, path in enumerate(paths) if path is not None]
    matrix, known, bad = encode_in_batches(order, len(paths), encode, folder, device, **batching)
    told = [f"{paths[row]}: {reason}" for row, reason in bad.items()][:20]
    for line in [*told, f"{len(bad) - 20} more, for similar reasons"][: len(bad)]:
        logging.getLogger().warning(f"image left out: {line}")
    kinds = Counter(reason.partition(":")[0] for reason in bad.values())
    return matrix, known, {"unreadable": dict(sorted(kinds.items()))}


def model_folder(model: str, download: bool = True) -> Path | None:
    """Return the local folder of a transformers model; a name on the hub is looked up and downloaded there first.

    Only `MODEL_FILES` are fetched. Without a connection an earlier download is used. Without `download` nothing is
    fetched, and `None` stands for what is not on this machine.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith((".", "~", os.sep)) or model.count("/") > 1 or "\\" in model:
        raise InputError(f"{model}: no such folder; expected a model saved with safetensors, or a hub name")
    from huggingface_hub import snapshot_download

    files: dict[str, Any] = {"allow_patterns": list(MODEL_FILES), "ignore_patterns": ["*/*"]}
    try:
        return Path(snapshot_download(model, **files, local_files_only=not download))
    except Exception as error:  # the hub's client and its transports raise all kinds
        if not download:
            return None
        remedy = "check name, connection and HF_HUB_OFFLINE, or download it elsewhere and name its folder"
        fault = f"neither a local folder nor available from the hub ({error!r:.200})"
        raise InputError(f"{model}: {fault}; {remedy}") from error


def model_fingerprint(folder: Path) -> str:
    """Fingerprint of the files of a model that are read."""
    return storage.fingerprint({path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern)})


def _load(folder: Path, part: str, **options: Any) -> Any:
    """Load one part of a model; whatever goes wrong lies in the folder."""
    try:
        import transformers

        # The folder decides what is built, never which code runs.
        return getattr(transformers, part).from_pretrained(str(folder), trust_remote_code=False, **options)
    except Exception as error:  # transformers raises all kinds for one and the same broken folder
        expected = "config.json, model.safetensors and the tokenizer or image processor, as save_pretrained writes them"
        remedy = f"expected {expected}; if a package is missing, pip install 'recbole-bbqrec[images]'"
        raise InputError(f"{folder}: not a model that can be loaded ({error!r:.200}); {remedy}") from error


def _load_model(folder: Path, device: Device) -> tuple[Any, list[str]]:
    """Return the network ready for use and the names of the weights that its file lacks."""
    # Weights that the file lacks are drawn at random first; a later run that reads the cache would not draw them.
    with torch.random.fork_rng(devices=[]):
        network, report = _load(folder, "AutoModel", use_safetensors=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if needed := [name for name in missing if "pooler" not in name]:
        lacks = f"the weights file lacks {len(needed)} weights ({needed[0]}, ...), which would be random"
        remedy = "expected the file that belongs to config.json, download or save the model again"
        raise InputError(f"{folder}: {lacks}; {remedy}")
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    return network.to(device=device, dtype=torch.float32).eval(), missing


def encode_in_batches(
    order: list[int],
    n_rows: int,
    encode: Callable[[list[int]], Piece],
    model: Path,
    device: Device,
    batch_size: int = 32,
    parts: Path | None = None,
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Encode the rows `order` of `n_rows`: features [n_rows, D], whether a row has them [n_rows], row -> why not.

    Batches depend on the items alone, never on where an encoding began, so that one in several goes ends with the same
    numbers as one in a single go. On the way pieces are kept in the folder `parts`, which is named by all that the
    encoding depends on; `None` keeps nothing. `model`, its folder, is for messages.
    """
    pieces = read_parts(parts) if parts else []
    done = {row for rows, _, bad in pieces for row in (*rows, *bad)}
    starts = range(0, len(order), batch_size)
    todo = [start for start in starts if order[start] not in done]
    kept, began = len(pieces), time.monotonic()
    bar = tqdm(todo, f"encode with {model.name}", len(starts), initial=len(starts) - len(todo), disable=not starts)
    kind = torch.device(device).type
    # Half precision pays on a GPU only; autocast keeps the sums that need it in full precision.
    with bar, torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=kind == "cuda"):
        try:
            for start in bar:
                if (seconds := time.monotonic() - began) > SECONDS_PER_PART:
                    _keep(pieces[kept:], parts, seconds)
                    kept, began = len(pieces), time.monotonic()
                rows, features, bad = encode(order[start : start + batch_size])
                if not torch.isfinite(features).all():
                    raise InputError(f"{model}: its features are not finite; use another model or device")
                pieces.append((rows, features.float().cpu(), bad))
        except BaseException:
            _keep(pieces[kept:], parts, time.monotonic() - began)
            raise
    # What is left is not kept as a part: the whole is written next.
    filled = [(rows, features) for rows, features, _ in pieces if rows]
    matrix = torch.zeros(n_rows, filled[0][1].shape[1] if filled else 0)
    known = torch.zeros(n_rows, dtype=torch.bool)
    for rows, features in filled:
        matrix[rows], known[rows] = features, True
    return matrix, known, dict(sorted((row, why) for *_, bad in pieces for row, why in bad.items()))


def read_parts(folder: Path) -> list[Piece]:
    """Return the pieces in `folder` that can be trusted; what is damaged, or of another folder, is computed again."""
    pieces: list[Piece] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors, header = storage.load(path, "encoding part")
            bad = {int(row): why for row, why in header["bad"].items()}
            if path.stem == storage.fingerprint(folder.name, tensors["rows"], tensors["features"], bad):
                pieces.append((tensors["rows"].tolist(), tensors["features"], bad))
                continue
        except (InputError, KeyError, ValueError, AttributeError):
            pass
        logging.getLogger().warning(f"{path}: not a part of this encoding, or damaged; it is computed again")
    return pieces


def seconds_of_parts(folder: Path) -> float | None:
    """Return the seconds that the pieces in `folder` took; none where a file does not tell."""
    try:
        headers = [storage.load(path, "encoding part")[1] for path in folder.glob("*.safetensors")]
        return sum(header["seconds"] for header in headers)
    except (InputError, KeyError):
        return None


def _keep(pieces: Sequence[Piece], folder: Path | None, seconds: float) -> None:
    """Write pieces and their seconds as one file, called by the fingerprint of its content; a failure ends nothing."""
    if not folder or not pieces:
        return
    rows = torch.tensor([row for rows, *_ in pieces for row in rows], dtype=torch.long)
    features = torch.cat([features for _, features, _ in pieces])
    bad = {row: why for *_, reasons in pieces for row, why in reasons.items()}
    path = folder / f"{storage.fingerprint(folder.name, rows, features, bad)}.safetensors"
    try:
        storage.save(path, "encoding part", {"rows": rows, "features": features}, {"bad": bad, "seconds": seconds})
    except OSError as error:
        logging.getLogger().warning(f"{folder}: a part of the encoding could not be kept ({error.strerror or error})")
