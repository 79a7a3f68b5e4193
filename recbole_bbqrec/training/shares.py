"""Training steps of several processes: each takes a share of a batch, and all step as one process would with the
whole."""

from collections.abc import Callable
from typing import Any

import torch

from .. import distributed
from ..data.dataloader import WindowDataLoader


def joint_loss(model: Any) -> Callable[[Any], torch.Tensor]:
    """Return a model's loss of shares of batches, see `WindowDataLoader`; its gradients are those of whole batches.

    A model's loss is a mean over the targets it is shown, so it counts by the share of the targets. Once `backward`
    returns, gradients have been added up over the processes, before anything clips, scales or looks at them.
    """

    def reduce() -> None:
        distributed.add_gradients(model.parameters())

    def loss(batch: Any) -> torch.Tensor:
        own = model.calculate_loss(batch) * batch[WindowDataLoader.SHARE][0]
        engine: Any = torch.autograd.Variable._execution_engine  # runs callbacks once all gradients are there
        own.register_hook(lambda _: engine.queue_callback(reduce))
        return own

    return loss
