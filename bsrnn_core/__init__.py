"""Band-Split RNN: the model and the audio mathematics, for use in a notebook or a pipeline."""

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
