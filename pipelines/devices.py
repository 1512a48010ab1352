"""What depends on where a training runs: its cores, and the buckets of DDP."""

import os

import torch
from torch import nn

from bsrnn_core.config import StftConfig


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def settle_buckets(network: nn.Module, stft: StftConfig, device: torch.device) -> None:
    """Let DDP arrange its buckets before the first step of a training, which it changes nothing of.

    DDP does so after its first backward pass. With three workers or more the order in which their
    gradients are added depends on it: a resumed run would differ from one that never stopped.
    """
    silence = torch.zeros(1, 1, stft.num_bins, 2, dtype=torch.complex64, device=device)
    network.train()
    (0 * torch.view_as_real(network(silence)).sum()).backward()
    network.zero_grad(set_to_none=True)
