"""The item tokenizers by name, and the one that wrote a file."""

import os

from .. import storage
from ..errors import InputError
from .aligned import AlignedTokenizer
from .base import KIND, ItemTokenizer
from .features import ResidualKMeansTokenizer, RQVAETokenizer
from .fit import BehaviorBindTokenizer

TOKENIZERS: dict[str, type[ItemTokenizer]] = {
    kind.name: kind for kind in (BehaviorBindTokenizer, RQVAETokenizer, AlignedTokenizer, ResidualKMeansTokenizer)
}


def load(path: str | os.PathLike) -> ItemTokenizer:
    """Read the tokenizer that `ItemTokenizer.save` wrote, as what it was; on the CPU."""
    tensors, state = storage.load(path, KIND)
    name = state.get("tokenizer", BehaviorBindTokenizer.name)
    if name not in TOKENIZERS:
        raise InputError(f"{path}: found a {name} tokenizer, expected one of {', '.join(TOKENIZERS)}")
    try:
        return TOKENIZERS[name].restore(tensors, state)
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: not a whole tokenizer ({error}); delete it and run again") from error
