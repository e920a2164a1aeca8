"""The processes that share a training: what each adds, and how they stay of one mind."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is. Each trains on its share of the slots; gradients are averaged over all."""

    rank: int = 0
    count: int = 1

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in place of each tensor, in one exchange."""
        if self.count > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            flat /= self.count
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Ranks()


def join(device: str) -> tuple[Ranks, str]:
    """The processes that torchrun started, joined, and the device of this one; outside torchrun, this process alone.

    Raises:
        ValueError: If several processes would share one accelerator.

    Example:
        >>> join("cpu")
        (Ranks(rank=0, count=1), 'cpu')
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE, device
    if device.startswith("cuda:"):
        raise ValueError(f"`train` got --device {device} for {count} processes. Each has an accelerator of its own. Use --device cuda.")
    on_gpus = device == "cuda"
    if on_gpus:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    return Ranks(distributed.get_rank(), count), device


def part() -> None:
    """Leave the processes that `join` joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
