"""What several processes of one training must agree on; in one process every function is the identity.

Each process holds the whole batch's queries, encodes its own share of the documents, and computes the loss of
the whole batch. The backward pass of a collective adds the gradients of all processes and
DistributedDataParallel then takes their mean, so what arrives is the gradient of one process with the whole
batch.

Letters: Q queries and D documents of the whole batch, W processes.
"""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


def backend() -> str:
    """Name the library that the processes talk through."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def device() -> torch.device:
    """Name the device that this process trains on."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def start() -> None:
    """Join the other processes if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=not torch.cuda.is_available(), backend=backend())


def leave() -> None:
    """End this process, if it is one of several, when all of them are done.

    Exit handlers run; the interpreter is not torn down: a thread of gloo that lets go of its last tensor only
    then asks for the interpreter's lock and is aborted, and the finished run would count as failed.
    """
    if world_size() == 1:
        return
    dist.barrier()
    dist.destroy_process_group()
    atexit._run_exitfuncs()  # what multiprocessing's children do, too
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def world_size() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def share(n: int, part: int, parts: int) -> slice:
    """Cut n items into contiguous parts whose sizes differ by one at most; give the slice of one part."""
    size, rest = divmod(n, parts)
    start = part * size + min(part, rest)
    return slice(start, start + size + (part < rest))


def own_share(n: int) -> slice:
    """Give the slice of n items that is this process's part."""
    return share(n, rank(), world_size())


class _Sum(torch.autograd.Function):
    """Add up over all processes, forwards and backwards.

    torch.distributed.nn.functional is deprecated, and its all_gather gives wrong gradients under gloo where
    a gradient comes transposed: it receives into memory laid out like that. So both are written out here.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """Give the sum of the processes' tensors."""
        return _added(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Give the sum of the processes' gradients."""
        return _added(grad)


class _Gather(torch.autograd.Function):
    """Collect one block of each process; a block's gradient is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx, block: Tensor) -> Tensor:
        """Stack the blocks: [...] -> [W, ...]."""
        blocks = block.new_empty((world_size(), *block.shape))
        dist.all_gather(list(blocks), block.contiguous())
        return blocks

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Give this process's block of the summed gradients."""
        return _added(grad)[rank()]


def _added(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def sum_over_processes(x: Tensor) -> Tensor:
    """Add a tensor over all processes; gradients are added as well."""
    return _Sum.apply(x) if world_size() > 1 else x


def gather_columns(scores: Tensor) -> Tensor:
    """Put the processes' blocks of columns side by side.

    Args:
        scores: [Q, D_own] against the documents of `own_share`.

    Returns:
        [Q, D] on every process, in the order of the documents.
    """
    if world_size() == 1:
        return scores
    widths = torch.tensor([scores.shape[1]], device=scores.device)
    sizes = [torch.zeros_like(widths) for _ in range(world_size())]
    dist.all_gather(sizes, widths)
    sizes = [int(size) for size in sizes]
    padded = torch.nn.functional.pad(scores, (0, max(sizes) - scores.shape[1]))  # collectives want one shape
    blocks = _Gather.apply(padded)
    return torch.cat([block[:, :size] for block, size in zip(blocks, sizes, strict=True)], dim=1)


def gather_rows(reps: Tensor) -> Tensor:
    """Put the processes' rows [N_own, V] under one another: [N, V] on every process."""
    return gather_columns(reps.T).T


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let process 0 run the block alone, and the others after it."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()
