"""One run worked on by several processes that `torchrun` has started; without it, everything here does nothing.

Callers need not know how they run: for a single process, its `share` is everything and a sum is its own value. Tensors
on a CPU go through gloo, those on GPUs through NCCL. The first process, `is_main`, is the one that writes.

Shapes: W processes, P parameters.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from .errors import InputError
from .watch import Watch

STARTED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` leaves in the environment."""
PATIENCE = timedelta(days=7)
"""Others wait for as long as the first process works alone; `Watch` finds dead ones, not a time limit."""

Parts = TypeVar("Parts", bound=Any)
_watch: Watch | None = None
_joint: list[torch.Tensor] | None = None
"""States of the generators that `joint_draws` draws from, where processes otherwise draw on their own."""


def is_asked_for() -> bool:
    """Whether this process is one of several that `torchrun` has started."""
    return all(os.environ.get(name) for name in STARTED_BY) and int(os.environ["WORLD_SIZE"]) > 1


def start() -> None:
    """Join the processes of this run; do nothing where there is only one, or when called again."""
    global _watch
    if _watch is not None or not is_asked_for():
        return
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    n_here, n_gpus = _n_here(), torch.cuda.device_count()
    if 0 < n_gpus < n_here:
        mend = f"give --nproc_per_node={n_gpus}, or compute on the CPU with CUDA_VISIBLE_DEVICES= before the command"
        raise InputError(f"torchrun: found {n_here} processes and {n_gpus} GPUs on this machine; {mend}")
    # Each process sees one GPU, which everything then calls `cuda`; it has to be chosen before CUDA is asked for.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(local)] if visible is None else visible.split(",")[local : local + 1]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0] if gpus else ""
    dist.init_process_group("cpu:gloo,cuda:nccl" if n_gpus else "gloo", timeout=PATIENCE)
    _watch = Watch(dist.get_rank(), dist.get_world_size())
    barrier()  # all are known to each other before anything else happens


def _n_here() -> int:
    """Number of this run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))


def stop() -> None:
    """Wait for the others and leave them, after work that has ended well."""
    global _watch
    if _watch is not None:
        barrier()
        _watch.leave(well=True)
        _watch = None
        dist.destroy_process_group()


def world() -> int:
    """Number W of processes that work on this run."""
    return 1 if _watch is None else _watch.size


def rank() -> int:
    """Number of this process, from 0."""
    return 0 if _watch is None else _watch.rank


def is_main() -> bool:
    """Whether this process is the one that writes files, logs and bars."""
    return rank() == 0


def gpu(asked: str) -> str:
    """The GPU of this process: as `asked` where it is alone, else its own; empty where none is asked for."""
    return os.environ["CUDA_VISIBLE_DEVICES"] if asked and world() > 1 else asked


def check_devices(kind: str) -> None:
    """Raise an `InputError` where only some processes compute on a GPU; `kind` is the device type of this one."""
    n_gpus = torch.tensor([int(kind == "cuda")])
    add(n_gpus)
    if int(n_gpus) not in (0, world()):
        mend = "start as many processes on a machine as it has GPUs, or give --use_gpu=False"
        raise InputError(f"torchrun: found {world()} processes and a GPU for {int(n_gpus)} of them; {mend}")


def check_folder(folder: Path) -> None:
    """Raise an `InputError` where a process does not see what the main one writes into a folder."""
    if world() == 1:
        return
    mark = folder / f".processes-{os.environ['MASTER_PORT']}"
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier()
    n_sees = torch.tensor([int(mark.exists())])
    add(n_sees)
    if is_main():
        mark.unlink()
    if int(n_sees) < world():
        mend = "expected a folder on a disk that all machines share; name one as checkpoint_dir"
        raise InputError(f"{folder}: found it on {int(n_sees)} of {world()} processes' disks, {mend}")


def share(parts: Parts) -> Parts:
    """Return this process's share of the parts of a work, a list or an array: every W-th one."""
    return parts[rank() :: world()]


def rounded(n_parts: int) -> int:
    """Round a number of parts up to a multiple of W, so that all processes have equally many."""
    return -(-n_parts // world()) * world()


def add(values: torch.Tensor | np.ndarray) -> None:
    """Add up `values` over the processes, in place and the same on all of them."""
    if world() > 1:
        dist.all_reduce(torch.from_numpy(values) if isinstance(values, np.ndarray) else values)


def total(value: Any) -> Any:
    """The sum of a number, or of each of several, over the processes."""
    if world() == 1:
        return value
    added = np.array(value, dtype=np.float64).reshape(-1)
    add(added)
    return tuple(added.tolist()) if isinstance(value, tuple) else float(added[0])


def barrier() -> None:
    """Wait until all processes are here."""
    add(torch.zeros(1))


def agreed(ask: Callable[[], Any]) -> bool:
    """Return, on all processes, the main one's answer to a yes-or-no question; the others do not ask."""
    answer = torch.tensor([int(bool(ask())) if is_main() else 0])
    add(answer)
    return bool(answer)


def told(text: str) -> str:
    """Return, on all processes, the main one's `text`."""
    if world() == 1:
        return text
    content = torch.tensor([*text.encode()], dtype=torch.uint8)
    size = torch.tensor([len(content)])
    broadcast([size])
    if not is_main():
        content = torch.zeros(int(size), dtype=torch.uint8)
    broadcast([content])
    return bytes(content.tolist()).decode()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main process go through the block before all others, which find what it has left on the disk."""
    if not is_main():
        barrier()
        yield
    else:
        with all_threads():
            yield
        barrier()


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """Compute with the threads of all processes of this machine, while the others wait for this one."""
    own = torch.get_num_threads()
    torch.set_num_threads(own * (_n_here() if world() > 1 else 1))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes, in place, what the main one has."""
    if world() > 1:
        for tensor in tensors:
            same = tensor if tensor.is_contiguous() else tensor.contiguous()
            dist.broadcast(same, 0)
            if same is not tensor:
                tensor.copy_(same)


def gather(rows: np.ndarray) -> list[np.ndarray]:
    """Return, on the main process, the arrays of all, which differ in their number of rows alone; nothing elsewhere."""
    counts = torch.zeros(world(), dtype=torch.long)
    counts[rank()] = len(rows)
    add(counts)
    if not is_main():
        if len(rows):
            dist.send(_bytes(rows), 0)
        return []
    found = [rows]
    for sender, count in enumerate(counts.tolist()[1:], start=1):
        found.append(np.empty((count, *rows.shape[1:]), rows.dtype))
        if count:
            dist.recv(_bytes(found[-1]), sender)
    return found


def _bytes(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))


@torch.no_grad()
def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of the P parameters over the processes, the same on all.

    A parameter that no process has a gradient of keeps none.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in (one for one in trained if one.grad is not None and one.grad.is_sparse):
        parameter.grad = _added_rows(parameter.grad)
    dense = [one for one in trained if one.grad is None or not one.grad.is_sparse]
    flat = torch.cat(
        [torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten() for one in dense]
        + [dense[0].new_tensor([one.grad is not None for one in dense])]
    )
    add(flat)
    *found, has = flat.split([*(one.numel() for one in dense), len(dense)])
    for parameter, gradient, known in zip(dense, found, has.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if known else None


def _added_rows(gradient: Any) -> torch.Tensor:
    """Add up sparse gradients [N, D] over the processes, by the rows that any of them has."""
    gradient = gradient.coalesce()
    counts = torch.zeros(world(), dtype=torch.long)
    counts[rank()] = gradient.values().shape[0]
    add(counts)
    most, places, rows = int(counts.max()), gradient.indices(), gradient.values()
    mine = places.new_zeros(places.shape[0], most), rows.new_zeros(most, *rows.shape[1:])
    mine[0][:, : places.shape[1]], mine[1][: len(rows)] = places, rows
    all_places, all_rows = ([torch.empty_like(part) for _ in range(world())] for part in mine)
    dist.all_gather(all_places, mine[0])
    dist.all_gather(all_rows, mine[1])
    kept = [
        (at[:, :n], of[:n]) for at, of, n in zip(all_places, all_rows, counts.tolist(), strict=True)
    ]  # padding away
    indices, values = torch.cat([at for at, _ in kept], dim=1), torch.cat([of for _, of in kept])
    return torch.sparse_coo_tensor(indices, values, gradient.shape).coalesce()


def part_draws(seed: int) -> None:
    """Seed torch's generators for an epoch: each process draws its own numbers, and within `joint_draws` all the same.

    Those are what a single process would draw, as long as nothing else draws.
    """
    global _joint
    torch.manual_seed(seed)
    if world() > 1:
        _joint = _states()
        torch.manual_seed(int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0]))


@contextlib.contextmanager
def joint_draws() -> Iterator[None]:
    """Draw what all processes of a run need alike, such as the negatives of a batch that they share."""
    global _joint
    if _joint is None or world() == 1:
        yield
        return
    own = _states()
    _restore(_joint)
    try:
        yield
    finally:
        _joint = _states()
        _restore(own)


def _states() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def _restore(states: Sequence[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def is_first_to_say(message: str) -> bool:
    """Whether this process is the one to print an error, which others may have met as well."""
    if _watch is None:  # one process, or several that have not met yet
        return not is_asked_for() or os.environ.get("LOCAL_RANK", os.environ["RANK"]) == "0"
    return _watch.is_first_to_say(message)


def leave() -> None:
    """Leave the others, which cannot go on, after an error that has been reported."""
    if _watch is not None:
        _watch.leave(well=False)


def others_failed() -> bool:
    """Whether an error came from the end of another process, which is then reported, not from this one's own work."""
    return _watch is not None and _watch.tell_who_is_lost()
