"""Operations of training, written for a CPU; times are those of one core, where a step of BBQRec takes 150 ms."""

from collections.abc import Callable
from types import MethodType
from typing import Any, cast

import torch
from recbole.model.layers import FMFirstOrderLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

STEPS = 2**16  # dropout probabilities are rounded to multiples of 1 / STEPS


class Dropout(nn.Module):
    """Dropout as torch has it; on a CPU one 64-bit draw decides over four entries, `p` in steps of 1 / `STEPS`.

    torch draws one number per entry: forward and backward of attention weights [128, 2, 50, 50] take it 7.6 ms, this
    2.1 ms.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries at random and scale up the others in training; otherwise change nothing."""
        threshold = round(self.p * STEPS)
        if not self.training or not threshold:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        kept = draws.view(torch.int16)[: x.numel()] >= threshold - STEPS // 2
        return x * kept.view(x.shape).to(x.dtype).mul_(STEPS / (STEPS - threshold))


class SampledCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of n targets, each among itself and m negatives that all of them share.

    One [n, m] buffer holds the scores, then the probabilities, then the gradient of the scores: forward and backward of
    1,024 targets and negatives take 12.6 ms; torch's operations, which make a tensor each, 17.3 ms.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, negatives: Tensor, positive: Tensor, excluded: Tensor) -> Tensor:
        """Return the mean loss of states `hidden` [n, H], whose dot products with `negatives` [m, H] are scores.

        `positive` [n] is the score of each state's own target, `excluded` [n, m] says where a negative does not count
        for a target, as where it is that target.
        """
        scores = hidden @ negatives.T
        ctx.precision = scores.dtype  # of matrix products: bfloat16 under autocast
        exact = torch.promote_types(scores.dtype, torch.float32)
        scores, positive = scores.to(exact).masked_fill_(excluded, -torch.inf), positive.to(exact)
        top = torch.maximum(scores.amax(dim=1), positive)
        shares = scores.sub_(top.unsqueeze(1)).exp_()
        total = shares.sum(dim=1) + (positive - top).exp()
        ctx.save_for_backward(hidden, negatives, shares, total)
        loss = total.log() + top - positive
        ctx.lost = -torch.expm1(-loss)  # what the softmax gives to the negatives of each target
        return loss.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `hidden`, `negatives` and `positive`."""
        hidden, negatives, shares, total = ctx.saved_tensors
        each = gradients[0] / len(hidden)
        slopes = (shares * (each / total).unsqueeze(1)).to(ctx.precision)
        of_hidden = slopes @ negatives.to(ctx.precision)
        of_negatives = slopes.T @ hidden.to(ctx.precision)
        return of_hidden.to(hidden.dtype), of_negatives.to(negatives.dtype), -each * ctx.lost, None


sampled_cross_entropy = cast(Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], SampledCrossEntropy.apply)
"""See `SampledCrossEntropy.forward`."""


class SymmetricGraph:
    """A fixed symmetric sparse matrix [N, N] that stands in for RecBole's in `torch.sparse.mm` alone.

    RecBole keeps matrices of graphs as coordinates, which torch transposes for every gradient. With compressed rows,
    and the matrix as its own transpose, a layer of LightGCN on Beauty takes 33 ms forward and backward instead of 79,
    and gives the same bits.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.rows = matrix.coalesce().to_sparse_csr()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: tuple = (), named: Any = None) -> Tensor:
        if function is not torch.sparse.mm:
            return NotImplemented
        graph, dense = arguments
        return _GraphProduct.apply(graph.rows, dense)


class _GraphProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dense: Tensor) -> Tensor:
        ctx.rows = rows
        return rows @ dense

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.rows @ gradients[0]


GRAPHS = {"LightGCN": "norm_adj_matrix", "NCL": "norm_adj_mat"}
"""Where RecBole's models keep such a matrix, if all they do with it is multiply."""


def speed_up_graph(model: nn.Module) -> None:
    """Let a model of RecBole on a CPU multiply by a `SymmetricGraph`, if it is one of `GRAPHS`."""
    name = GRAPHS.get(type(model).__name__)
    if name and (matrix := getattr(model, name)).device.type == "cpu":
        setattr(model, name, SymmetricGraph(matrix))


def speed_up_vectors(model: nn.Module, prefix: str) -> None:
    """Let a context-aware model of RecBole read vectors by a matrix product, where its columns of vectors are our own.

    Their names begin with `prefix`, see `data.code_fields.weighted_vectors`. RecBole makes a row of H numbers for each
    of a vector's C numbers and takes the mean of the C rows: [B, C, H] in memory for a linear map of the vector.
    """
    for module in model.modules():
        owner: Any = module
        names = getattr(owner, "float_seq_field_names", None)
        if isinstance(names, list) and names and all(name.startswith(prefix) for name in names):
            # A bound method, unlike a closure, follows the model through copy.deepcopy.
            owner.embed_float_seq_fields = MethodType(
                _summed if isinstance(owner, FMFirstOrderLinear) else _mapped, owner
            )


def _mapped(owner: Any, fields: list[Tensor]) -> Tensor:
    """Embeddings [B, F, H] of F columns of vectors [B, C, 2]."""
    tables = owner.float_seq_embedding_table
    found = [field[..., 0] @ table.weight[1:] / field.shape[1] for field, table in zip(fields, tables, strict=True)]
    return torch.stack(found, dim=1)


def _summed(owner: Any, fields: list[Tensor]) -> Tensor:
    """What columns of vectors add to a first-order score [B, 1, 1]."""
    return _mapped(owner, fields).sum(dim=1, keepdim=True)
