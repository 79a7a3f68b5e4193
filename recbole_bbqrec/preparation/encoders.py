"""Raw item texts, codes and images to matrices; knows neither models nor RecBole.

Shapes: N rows (items) x D dimensions. Every encoder returns `Encoded(matrix, known, notes)`: float32 [N, D], bool [N]
and plain data about the encoding. A row that is not known (a blank text, an unreadable image) is zero. The result
depends on the rows, their order and the arguments alone.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .encoding_parts import Encoded, Parts, assemble, in_batches
from .images import decode, require_pillow

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What a model's folder is read for: settings, weights, vocabularies. Pickled weights (`.bin`) are never read."""

_ONLY: dict[str, Any] = {"allow_patterns": list(MODEL_FILES), "ignore_patterns": ["*/*"]}


def tfidf(texts: Sequence[str], dim: int, seed: int) -> Encoded:
    """Weigh words and word pairs by TF-IDF and reduce them to at most `dim` dimensions by truncated SVD.

    Terms of one text only say nothing about other items and are left out, unless there are no others. A text without
    any term counts as unknown. With fewer terms than `dim` the matrix is as wide as there are terms.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    for min_df in (2, 1):
        # Titles are short: one-letter words ("5 x 7") are telling, and a repeated word is hardly twice as important.
        vectorizer = TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=min_df, token_pattern=r"(?u)\b\w+\b", strip_accents="unicode"
        )
        try:
            return _reduce(vectorizer.fit_transform(texts), dim, seed)
        except ValueError as error:  # how scikit-learn says that no term is left
            if not any(words in str(error) for words in ("empty vocabulary", "no terms remain", "max_df corresponds")):
                raise
    return Encoded(torch.zeros(len(texts), 0), torch.zeros(len(texts), dtype=torch.bool), {})


def codes(rows: Sequence[str], dim: int, seed: int) -> Encoded:
    """One-hot vectors of code columns such as `A_154 B_106 C_221`, one dimension per (position, code).

    They are exact where that takes at most `dim` dimensions and reduced to `dim` by truncated SVD otherwise.
    """
    from scipy.sparse import csr_matrix

    split = [row.split() for row in rows]
    column = {key: at for at, key in enumerate(sorted({pair for row in split for pair in enumerate(row)}))}
    where = [(at, column[pair]) for at, row in enumerate(split) for pair in enumerate(row)]
    row_at, column_at = zip(*where, strict=True) if where else ((), ())
    return _reduce(csr_matrix((np.ones(len(where)), (row_at, column_at)), shape=(len(rows), len(column))), dim, seed)


def _reduce(matrix: Any, dim: int, seed: int) -> Encoded:
    """Dense form of a sparse [N, terms] matrix with at most `dim` columns."""
    from sklearn.decomposition import TruncatedSVD

    known = torch.from_numpy(np.diff(matrix.tocsr().indptr) > 0)
    if matrix.shape[1] <= dim:
        dense = matrix.toarray()
    else:
        # No more dimensions than rows that say something: beyond the rank there is nothing but rounding errors.
        width = max(1, min(dim, int(known.sum())))
        with np.errstate(divide="ignore", invalid="ignore"):  # its share of variance, where there is no variance
            dense = TruncatedSVD(width, random_state=seed).fit_transform(matrix)
    return Encoded(torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32)), known, {})


def transformers_text(
    texts: Sequence[str],
    model: str,
    batch_size: int = 32,
    max_tokens: int = 128,
    device: str | torch.device = "cpu",
    parts: Parts | None = None,
) -> Encoded:
    """Encode texts with a transformers model: its text tower's features (CLIP, SigLIP), else the mean of its tokens.

    Parameters
    ----------
    model : name on the hub, or a local folder with `config.json`, the tokenizer and `model.safetensors`.
    max_tokens : longer texts are cut, and their number is logged; the model's own limit holds too.
    parts : where an interrupted encoding leaves what it has done, and goes on from.

    Returns
    -------
    With the notes `cut_texts`, their number, and `token_limit`.
    """
    folder = model_folder(model)
    network, _ = _load_model(folder, device)
    tokenizer = _load(folder, lambda auto: auto.AutoTokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limit = _token_limit(network.config, tokenizer, max_tokens)
    lengths = _token_counts(texts, tokenizer)
    cut = int((lengths > limit).sum())
    if cut:
        logging.getLogger().info(f"{model}: {cut} of {len(texts)} texts cut to {limit} tokens (max_text_tokens)")
    given = [at for at, text in enumerate(texts) if text.strip()]
    # Texts of like length share a batch, so that little is computed for padding; `sorted` is stable.
    order = sorted(given, key=lambda at: int(lengths[at]))
    # SigLIP was trained on texts padded to the full length and reads the last position.
    padding = "max_length" if "siglip" in network.config.model_type else True

    def encode(rows: list[int]) -> tuple[list[int], Tensor, dict[int, str]]:
        batch = tokenizer(
            [texts[row] for row in rows], padding=padding, truncation=True, max_length=limit, return_tensors="pt"
        ).to(device)
        return rows, _text_features(network, batch), {}

    matrix, known, _ = assemble(in_batches(order, batch_size, encode, model, device, parts), len(texts))
    return Encoded(matrix, known, {"cut_texts": cut, "token_limit": limit})


def _token_limit(config: Any, tokenizer: Any, max_tokens: int) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if tokenizer.model_max_length < 1 << 20:  # else unknown: transformers puts in a huge number
        return min(max_tokens, tokenizer.model_max_length, positions or max_tokens)
    return min(max_tokens, (positions or max_tokens + 2) - 2)  # RoBERTa's kind keeps the first two for padding


def _token_counts(texts: Sequence[str], tokenizer: Any) -> np.ndarray:
    """Tokens per text before cutting."""
    counts: list[int] = []
    for start in range(0, len(texts), 1024):
        ids = tokenizer(list(texts[start : start + 1024]), padding=False, truncation=False, verbose=False)["input_ids"]
        counts += map(len, ids)
    return np.array(counts, dtype=np.int64)


def _text_features(network: Any, batch: Any) -> Tensor:
    if hasattr(network, "get_text_features"):
        names = ("input_ids", "attention_mask")
        found = network.get_text_features(**{name: batch[name] for name in names if name in batch})
        return found if isinstance(found, Tensor) else found.pooler_output
    hidden = network(**batch).last_hidden_state  # [B, T, D]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def transformers_image(
    paths: Sequence[Path | None],
    model: str,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    parts: Parts | None = None,
) -> Encoded:
    """Encode image files with a transformers vision model.

    The image features of models that have them (CLIP, SigLIP), else the pooled output, else the mean over the last
    layer. `None` and files that are no usable image are not known; the reasons are logged.

    Parameters
    ----------
    parts : where an interrupted encoding leaves what it has done, and goes on from.

    Returns
    -------
    With the note `unreadable`: kind of reason -> number of images.
    """
    require_pillow()
    folder = model_folder(model)
    network, untrained = _load_model(folder, device)
    processor = _load(folder, lambda auto: auto.AutoImageProcessor)
    # A pooler that is not in the weights file has been filled with random numbers.
    pooled = not any("pooler" in name for name in untrained)

    def encode(rows: list[int]) -> tuple[list[int], Tensor | None, dict[int, str]]:
        decoded = {row: decode(paths[row]) for row in rows}  # type: ignore[arg-type]  (only rows with a path)
        images = {row: image for row, (image, _) in decoded.items() if image is not None}
        bad = {row: reason for row, (image, reason) in decoded.items() if image is None}
        if not images:
            return [], None, bad
        batch = processor(images=list(images.values()), return_tensors="pt").to(device)
        return list(images), _image_features(network, batch, pooled), bad

    order = [row for row, path in enumerate(paths) if path is not None]
    matrix, known, bad = assemble(in_batches(order, batch_size, encode, model, device, parts), len(paths))
    for row in list(bad)[:20]:
        logging.getLogger().warning(f"image left out: {paths[row]}: {bad[row]}")
    if len(bad) > 20:
        logging.getLogger().warning(f"image left out: {len(bad) - 20} more, for the like reasons")
    kinds = Counter(reason.partition(":")[0] for reason in bad.values())
    return Encoded(matrix, known, {"unreadable": dict(sorted(kinds.items()))})


def _image_features(network: Any, batch: Any, pooled: bool) -> Tensor:
    if hasattr(network, "get_image_features"):
        found = network.get_image_features(pixel_values=batch["pixel_values"])
        return found if isinstance(found, Tensor) else found.pooler_output
    output = network(**batch)
    if pooled and getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state  # [B, T, D] of a transformer, [B, D, height, width] of a convolution
    return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden.mean(1)


def _refuse_path(model: str) -> None:
    if model.startswith((".", "~", os.sep)) or model.count("/") > 1 or "\\" in model:
        raise InputError(
            f"{model}: no such folder; expected a transformers model saved with safetensors, or a hub name"
        )


def local_model(model: str) -> Path | None:
    """Return the folder of a transformers model that is on this machine; `None` for a hub name still to be downloaded.

    Raises
    ------
    InputError : a path that is no folder.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    _refuse_path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True, **_ONLY))
    except Exception:  # the hub's client raises all kinds where it has nothing
        return None


def model_folder(model: str) -> Path:
    """Return the local folder of a transformers model; a name on the hub is looked up and downloaded there first.

    Only `MODEL_FILES` are fetched. Without a connection an earlier download is used.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    _refuse_path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, **_ONLY))
    except Exception as error:  # the hub's client and its transports raise all kinds
        raise InputError(
            f"{model}: neither a local folder nor to be had from the hub ({_first_line(error)}); check the name, the "
            "connection and HF_HUB_OFFLINE, or download the model elsewhere and name its folder"
        ) from error


def _load(folder: Path, which: Callable[[Any], Any], **options: Any) -> Any:
    """Load one part of a model; whatever goes wrong lies in the folder."""
    try:
        import transformers

        # The folder decides what is built, never which code runs.
        return which(transformers).from_pretrained(str(folder), trust_remote_code=False, **options)
    except Exception as error:  # transformers raises all kinds for one and the same broken folder
        raise InputError(
            f"{folder}: not a model that can be loaded ({_first_line(error)}); expected config.json, "
            "model.safetensors and the tokenizer or image processor, as save_pretrained writes them; if a package is "
            "missing, pip install 'recbole-bbqrec[images]'"
        ) from error


def _load_model(folder: Path, device: str | torch.device) -> tuple[Any, list[str]]:
    """Return the network ready for use and the names of the weights that its file lacks."""
    # Weights that the file lacks are drawn at random first; a later run that reads the cache would not draw them.
    with torch.random.fork_rng(devices=[]):
        network, report = _load(folder, lambda auto: auto.AutoModel, use_safetensors=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    needed = [name for name in missing if "pooler" not in name]
    if needed:
        raise InputError(
            f"{folder}: the weights file lacks {len(needed)} weights ({needed[0]}, ...), which would be random; "
            "expected the file that belongs to config.json, download or save the model again"
        )
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    return network.to(device=device, dtype=torch.float32).eval(), missing


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"
