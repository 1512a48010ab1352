"""What depends on where a training runs: cores, number formats, and the buckets of DDP."""

import os

import torch
from torch import nn

from bsrnn_core.config import StftConfig


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: when asked, or with "auto" where the hardware has it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def settle_buckets(network: nn.Module, stft: StftConfig, device: torch.device) -> None:
    """Let DDP arrange its buckets before the first step of a training, which it changes nothing of.

    DDP does so after its first backward pass. With three workers or more the order in which their
    gradients are added depends on it: a resumed run would differ from one that never stopped.
    """
    silence = torch.zeros(1, 1, stft.num_bins, 2, dtype=torch.complex64, device=device)
    network.train()
    (0 * torch.view_as_real(network(silence)).sum()).backward()
    network.zero_grad(set_to_none=True)
