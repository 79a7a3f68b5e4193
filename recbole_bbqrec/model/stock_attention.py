"""RecBole's own sequential models with similarity-enhanced attention, switched on by configuration alone.

The paper calls its attention non-invasive, and here it is taken at its word: the class of the model, its other weights
and their names, its losses and its trainer stay RecBole's.
"""

from types import MethodType
from typing import Any

from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn

from ..errors import InputError
from .attention import reweight
from .similarity import SimilarityAttention

ENCODER_OWNERS = {"BERT4Rec": "", "CORE": "net", "SASRec": "", "SASRecF": ""}
"""RecBole's models that send the items of a history, one by one, through a `trm_encoder`, and which part of the model
holds it (empty: the model itself).

BERT4Rec reads its states at mask tokens, which have no signal: in its last layer a mask gets the same bias for every
item, so an additive bias works in the layers before it only.

Not in it: FDSA and GCSAN (the encoder's inputs are attributes, or states of a graph, and not in one `trm_encoder`),
SASRecCPR (reads the state at a padded column), LightSANs and FEARec (layers of their own).
"""


class MaskAndBiases:
    """What an encoder of RecBole adds to the scores [B, A, L, L] of each layer in turn: the mask, and the layer's bias.

    It belongs to one call: the model keeps nothing of a batch, so calls may run side by side.
    """

    def __init__(self, mask: Tensor, biases: list[Tensor], mode: str) -> None:
        self.mask, self.biases, self.mode = mask, iter(biases), mode

    def __radd__(self, scores: Tensor) -> Tensor:
        return reweight(scores + self.mask, next(self.biases), self.mode)


def add_similarity(model: nn.Module, config: Any, dataset: Any) -> nn.Module:
    """Give a model of RecBole the attention that `similarity_attention` asks for, in place, and return the model.

    Only this instance changes, and with the new weights at zero it gives the stock model's scores to the last bit.
    Copies of it and of its weights stay valid, and no random number is drawn. Call it before
    `padding.group_by_length` and before the optimizer is made. `InputError` if the model has no such attention layers,
    or there is nothing to compare items by.
    """
    mode, name = config["similarity_attention"], type(model).__name__
    if mode == "off":
        return model
    owner: Any = getattr(model, ENCODER_OWNERS.get(name) or "", model)
    if name not in ENCODER_OWNERS or not isinstance(getattr(owner, "trm_encoder", None), TransformerEncoder):
        raise InputError(
            f"similarity_attention: {name} has no transformer that it can be added to; "
            f"choose one of BBQRec, {', '.join(sorted(ENCODER_OWNERS))}, or set --similarity_attention=off"
        )
    layers = owner.trm_encoder.layer
    n_heads = layers[0].multi_head_attention.num_attention_heads
    similarity = SimilarityAttention.from_dataset(config, dataset, len(layers), n_heads, config["MAX_ITEM_LIST_LENGTH"])
    if similarity is None:
        needed = "text_encoder=tfidf" if config["codes"] == "none" else "attach_semantic_ids=True"
        raise InputError(
            f"similarity_attention: found {mode!r} for {name}, but there is no signal to compare items by; "
            f"add --{needed}, or set --similarity_attention=off"
        )
    owner.similarity = similarity.to(next(model.parameters()).device)
    # A bound method, unlike a closure, follows the model through copy.deepcopy.
    owner.get_attention_mask = MethodType(_mask_and_biases, owner)
    return model


def _mask_and_biases(owner: Any, item_seq: Tensor, *args: Any, **kwargs: Any) -> MaskAndBiases:
    """Stand in for `get_attention_mask`: the one place where all these models show the history they attend over.

    It is called once before every call of the encoder, with the very columns that the encoder gets, trimmed or not.
    """
    mask = type(owner).get_attention_mask(owner, item_seq, *args, **kwargs)
    mode, biases = owner.similarity.mode, owner.similarity(item_seq)
    if mode == "multiplicative":
        # RecBole masks by adding -10000 to the scores, and a factor would reach that too.
        biases = [bias.masked_fill(mask != 0, 0.0) for bias in biases]
    return MaskAndBiases(mask, biases, mode)
