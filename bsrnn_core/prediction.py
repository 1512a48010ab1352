"""A model behind one ``predict``, as MLflow calls models of any kind ("pyfunc").

MLflow's registry keeps this package beside a checkpoint folder and calls ``_load_pyfunc`` with it
(pipelines/tracking_models.py): so a model is loaded where this project is not installed, and no
class is pickled.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float

from bsrnn_core.checkpoint import load
from bsrnn_core.config import Precision, SeparationConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.separation import separate

Stems = dict[str, Float[np.ndarray, "C N"]]
"""The estimate of every stem of a song."""

SAMPLE_RATE = "sample_rate"
"""The parameter beside those of SeparationConfig: the rate of samples given as an array."""


def default_params(model: BSRNN) -> dict[str, int | float | str]:
    """The parameters of ``predict`` with what they are when not given."""
    return {
        SAMPLE_RATE: model.config.stft.sample_rate,
        **dataclasses.asdict(SeparationConfig()),
    }


class Predictor:
    """Songs in, stems out."""

    def __init__(self, model: BSRNN) -> None:
        self.model = model

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Stems | list[Stems]:
        """The stems of one song or several, as ``separate`` gives them.

        ``data`` is a song's path or its samples, a float array [C, N]: then the answer is a dict of
        arrays [C, N], by stem. Or it is a list of paths, or a DataFrame with a column ``path``:
        then it is a list of such dicts. ``params`` are those of ``default_params``; files have a
        sample rate of their own. Raises BadInput for anything else.
        """
        options = self._options(params or {})
        if isinstance(data, np.ndarray) and data.dtype.kind != "O":
            return self._stems_of_samples(data, options)
        if isinstance(data, str | os.PathLike):
            return self._stems_of_file(data, options)
        columns = getattr(data, "columns", None)
        if columns is not None:
            if "path" not in columns:
                known = ", ".join(map(str, columns))
                raise BadInput(f"the table has no column path, but {known}: put the songs there")
            data = list(data["path"])
        if not isinstance(data, list | tuple):
            raise BadInput(
                "give a path, a list of paths, a table with a column path, or samples as a float "
                f"array [channels, samples], not a {type(data).__name__}"
            )
        for path in data:
            if not isinstance(path, str | os.PathLike):
                raise BadInput(f"a list must hold paths of songs, not a {type(path).__name__}")
        return [self._stems_of_file(path, options) for path in data]

    def _options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        # MLflow warns of other names, and may hand NumPy's numbers over.
        options = {
            name: type(default)(params.get(name, default))
            for name, default in default_params(self.model).items()
        }
        if options["precision"] not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise BadInput(f"precision must be one of {known}, not {options['precision']}")
        return options

    def _stems_of_samples(self, samples: np.ndarray, options: dict[str, Any]) -> Stems:
        if samples.dtype.kind != "f":
            raise BadInput(
                "samples must be floating-point numbers in units of full scale, not "
                f"{samples.dtype}"
            )
        sample_rate = options.pop(SAMPLE_RATE)
        if sample_rate < 1:
            raise BadInput(f"sample_rate must be positive, not {sample_rate}")
        mixture = torch.tensor(samples, dtype=torch.float32)
        stems = separate(self.model, mixture, sample_rate, SeparationConfig(**options))
        return {stem: estimate.numpy() for stem, estimate in stems.items()}

    def _stems_of_file(self, path: str | os.PathLike[str], options: dict[str, Any]) -> Stems:
        config = SeparationConfig(**{k: v for k, v in options.items() if k != SAMPLE_RATE})
        stems = separate(self.model, path, config=config)
        return {stem: estimate.numpy() for stem, estimate in stems.items()}


def _load_pyfunc(checkpoint_fp: str) -> Predictor:
    """What MLflow calls, by this name; like `bsrnn infer`, on a GPU where there is one."""
    return Predictor(load(checkpoint_fp, "cuda" if torch.cuda.is_available() else "cpu"))
