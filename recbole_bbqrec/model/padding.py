"""RecBole's own sequential models on trimmed batches: same batches, same loss, no work on padding.

RecBole pads every history to `MAX_ITEM_LIST_LENGTH`; on sparse data nearly nine columns out of ten are padding, and a
random batch always holds one long history, so trimming the whole batch gains nothing. Here the rows of a batch go
through the model's `forward` in a few groups of similar length, each trimmed to its longest history, and come back in
their order. BERT4Rec pads its masked places too, to a fifth of the columns: its loss is taken at the real ones.

Shapes: B histories of the batch, L padded columns, M padded masked places, K distinct lengths.
"""

import inspect
from types import MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Model = TypeVar("Model", bound=nn.Module)

LENGTH_INDEPENDENT = {"BERT4Rec", "CORE", "FDSA", "GCSAN", "GRU4Rec", "GRU4RecF", "NARM", "SASRec", "SASRecF", "SRGNN"}
"""RecBole models whose scores, loss and gradients a test has shown not to depend on how far histories are padded.

Not in it, although they do not depend on padding either: FPMC, HRM and TransRec, which read the last items only and so
have no work to save. All others read padding (a state at the last column, a sum over unmasked columns) or have
parameters shaped by the number of columns.
"""

MAX_GROUPS = 6  # most groups a batch is cut into
CALL_COST = 256  # padded positions that cost as much as one more call of `forward`; keeps small batches in few groups
HISTORY_NAMES = ("item_seq", "seq_item")  # what RecBole's models call [B, L] histories among the arguments of `forward`


def trim(item_seq: Tensor, lengths: Tensor) -> Tensor:
    """Cut right-padded histories [B, L] to the longest of `lengths` [B]; at least one column stays."""
    return item_seq[:, : max([1, *lengths.tolist()])]


def group_by_length(model: Model) -> Model:
    """Make `model.forward` run in length groups, and BERT4Rec's loss at masks alone; in place, and return the model.

    Only this instance changes; copies of it and of its weights stay valid. It is for models in `LENGTH_INDEPENDENT`:
    every tensor given to `forward` has one row per history, one of them is named as in `HISTORY_NAMES`, and the result
    is one tensor with one row per history, [B, H], or one state per position, [B, L, H]. States at padding, which those
    models never read, are zero.
    """
    # A bound method, unlike a closure, follows the model through copy.deepcopy: RecBole copies models to count flops.
    model.forward = MethodType(_grouped_forward, model)
    if type(model).__name__ == "BERT4Rec" and model.loss_type == "CE":
        bert4rec: Any = model
        bert4rec.calculate_loss = MethodType(_loss_at_masks, model)
    return model


def _grouped_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    forward = type(model).forward
    given = inspect.signature(forward).bind(model, *args, **kwargs).arguments
    history = next(name for name in given if name in HISTORY_NAMES)
    width = given[history].size(1)
    lengths = history_lengths(given[history]).cpu().numpy()
    order = np.argsort(lengths, kind="stable")
    ends = group_ends(lengths[order]) or [0]
    if len(ends) == 1:
        order = np.arange(len(order))
    on_device = torch.from_numpy(order).to(given[history].device)
    outputs = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        rows = on_device[start:end]
        group = {name: value[rows] if isinstance(value, Tensor) else value for name, value in given.items()}
        group[history] = group[history][:, : lengths[order[start:end]].max(initial=1)]
        output = forward(**group)
        if output.dim() == 3:  # states per position, [rows, columns of the group, H]
            output = functional.pad(output, (0, 0, 0, width - output.size(1)))
        outputs.append(output)
    return torch.cat(outputs)[torch.argsort(on_device)]


def _loss_at_masks(model: Any, interaction: Any) -> Tensor:
    """BERT4Rec's mean cross-entropy over all items, without scores at the padded ones of its [B, M] masked places.

    Nine places in ten are padding on sparse data, and RecBole scores the whole catalogue at each to multiply the loss
    there by zero. Like RecBole, it takes place 0 in the history for padding.
    """
    places = interaction[model.MASK_INDEX]
    rows, slots = torch.nonzero(places > 0, as_tuple=True)
    states = model.forward(interaction[model.MASK_ITEM_SEQ])[rows, places[rows, slots]]
    scores = states @ model.item_embedding.weight[: model.n_items].T + model.output_bias
    return functional.cross_entropy(scores, interaction[model.POS_ITEMS][rows, slots])


def history_lengths(item_seq: Tensor) -> Tensor:
    """Length [B] of right-padded histories [B, L]: the last column that is not padding, and at least 1."""
    columns = torch.arange(1, item_seq.size(1) + 1, device=item_seq.device)
    return ((item_seq != 0) * columns).amax(dim=1).clamp(min=1)


def group_ends(lengths: np.ndarray) -> list[int]:
    """Cut ascending `lengths` [B] into at most `MAX_GROUPS` runs with the least padded positions in sum.

    A group costs rows x longest + `CALL_COST`. Its best borders lie between distinct lengths, so the exact optimum is a
    small dynamic programme over a K x K table, below a millisecond. Returned are the groups' ends, exclusive; the last
    is B.
    """
    longest, counts = np.unique(lengths, return_counts=True)
    borders = np.r_[0, counts.cumsum()]  # [K + 1] rows before each distinct length
    rows = borders[None, 1:] - borders[:-1, None]  # [first, last] rows of a group from one length to another
    cost = np.where(rows > 0, rows * longest[None, :] + CALL_COST, np.inf)
    # best[j]: least cost of the lengths before j; starts[j]: where the last group of them starts, by number of groups.
    best, starts = np.r_[0.0, cost[:1].ravel()], [np.zeros(len(longest), int)]
    for _ in range(min(MAX_GROUPS, len(longest)) - 1):
        total = best[:-1, None] + cost
        starts.append(total.argmin(axis=0))
        best = np.r_[0.0, total.min(axis=0)]
    ends, end = [], len(longest)
    while end:
        ends.append(int(borders[end]))
        end = int(starts.pop()[end - 1])
    return ends[::-1]
