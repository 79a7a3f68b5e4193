"""The steps of an epoch: as in RecBole's trainer, but without waiting for a GPU, and with batches ready ahead."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from ..errors import InputError

CHECKED_EVERY = 50
"""Steps from one look at the loss to the next; on a GPU each look waits for everything before it."""
AHEAD = 4
"""Batches that stand ready for a GPU."""


def one_cycle(at: int, n_steps: int) -> float:
    """Share of the rate at step `at` of a cycle, the first being 1: it rises over a tenth, then falls towards 0."""
    rise = max(n_steps // 10, 1)
    return at / rise if at <= rise else (n_steps - at + 1) / (n_steps - rise + 1)


def take_steps(
    trainer: Any,
    batches: Any,
    loss_func: Callable[[Any], Tensor],
    epoch: int,
    show_progress: bool,
    before_step: Callable[[int], None] = lambda at: None,
) -> float:
    """Train a RecBole trainer's model for one epoch and return the sum of the losses.

    `before_step` is told the number of each step in the epoch, from 1. A loss that is not finite is an `InputError`,
    at most `CHECKED_EVERY` steps late and before anything is kept.
    """
    trainer.model.train()
    device, optimizer = trainer.device, trainer.optimizer
    scaler = torch.amp.GradScaler(device.type, enabled=trainer.enable_scaler)
    total = torch.zeros((), dtype=torch.float64, device=device)
    known = f", best {trainer.best_valid_score:.4f}" if trainer.state.evaluate_seconds else ""
    title = f"epoch {epoch + 1}{known}"
    bar = tqdm(total=len(batches), ncols=100, desc=title, disable=not show_progress, leave=False)
    with bar:
        for at, batch in enumerate(on_device(batches, device), 1):
            before_step(at)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=trainer.enable_amp):
                loss = loss_func(batch)
            scaler.scale(loss).backward()
            if trainer.clip_grad_norm:
                scaler.unscale_(optimizer)
                clip_grad_norm_(trainer.model.parameters(), **trainer.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()
            if at % CHECKED_EVERY == 0:
                check_finite(total)
            bar.update()
    return check_finite(total)


def check_finite(total: Tensor) -> float:
    """Return the sum of losses as a number; one that is not finite is an `InputError`."""
    if not torch.isfinite(total):
        raise InputError("the training loss is not finite; lower learning_rate or set clip_grad_norm")
    return float(total.detach())


def on_device(batches: Iterable[Interaction], device: torch.device) -> Iterator[Interaction]:
    """Yield the batches on a device; those for a GPU are made ready ahead by a thread, in pinned memory."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    for batch in ahead(batches, lambda batch: _each(batch, torch.Tensor.pin_memory)):
        yield _each(batch, lambda values: values.to(device, non_blocking=True))


def _each(batch: Interaction, change: Callable[[Tensor], Tensor]) -> Interaction:
    return Interaction({name: change(values) for name, values in batch.interaction.items()})


def ahead(batches: Iterable[Any], prepare: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield all of `batches` in order, `prepare`d by a thread that runs up to `AHEAD` of them ahead.

    What goes wrong in the thread is raised here; it ends when nobody takes any more.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(AHEAD)
    ended = threading.Event()

    def put(found: tuple[bool, Any]) -> None:
        while not ended.is_set():
            try:
                return ready.put(found, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put((True, prepare(batch)))
                if ended.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            is_batch, found = ready.get()
            if is_batch:
                yield found
            elif found is None:
                return
            else:
                raise found
    finally:
        ended.set()
        thread.join()
