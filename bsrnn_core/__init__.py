"""Band-Split RNN: the model and the audio mathematics, for use in a notebook or a pipeline.

The names below are imported when they are first used: reading a configuration, as every command
does before it knows its task, then needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsrnn_core.checkpoint import load
    from bsrnn_core.config import STEMS, BsrnnConfig, ModelConfig, StftConfig
    from bsrnn_core.errors import BadInput
    from bsrnn_core.model import BSRNN
    from bsrnn_core.separation import separate

__all__ = [
    "BSRNN",
    "STEMS",
    "BadInput",
    "BsrnnConfig",
    "ModelConfig",
    "StftConfig",
    "load",
    "separate",
]

_MODULES = {
    "BSRNN": "model",
    "STEMS": "config",
    "BadInput": "errors",
    "BsrnnConfig": "config",
    "ModelConfig": "config",
    "StftConfig": "config",
    "load": "checkpoint",
    "separate": "separation",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
