"""In which numbers the network computes, and which a device is fast in."""

import torch

from bsrnn_core.errors import BadInput


def has_bf16(device: torch.device) -> bool:
    """Whether the LSTMs run in bfloat16 there at all: oneDNN refuses them on CPUs without
    AVX-512."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: when asked, or with "auto" where the hardware is fast in it.

    Raises BadInput when it is asked for on a CPU that cannot.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cpu._is_avx512_bf16_supported()
    if precision == "bf16" and not has_bf16(device):
        raise BadInput("precision bf16: this CPU cannot compute in it; use float32 or auto")
    return precision == "bf16"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which the network computes as ``use_bf16`` says, which may raise BadInput."""
    bf16 = use_bf16(precision, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
