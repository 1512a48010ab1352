"""The console script ``bsrnn``: one command for each thing that can be run.

    bsrnn train --part drums --musdbhq_location musdb18hq --name drums

Exit codes: 0 success, 2 bad input (one sentence on stderr, no traceback),
1 any other failure, an interrupt among them. Nothing heavy is imported before a command is chosen.
"""

import importlib
import logging
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("bsrnn")


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command's code is, as ``module:name``, to be imported when it is asked for."""

    config: str
    run: str
    help: str
    presets: bool = False
    """Takes ``--preset``."""


COMMANDS: dict[str, Command] = {
    "prep": Command(
        config="pipelines.prep:PrepCommandConfig",
        run="pipelines.prep:run",
        help="turn songs into shards of training data",
        presets=True,
    ),
    "train": Command(
        config="pipelines.config:TrainConfig",
        run="pipelines.base:run",
        help="train a model",
        presets=True,
    ),
    "mtl": Command(
        config="pipelines.config:TrainConfig",
        run="pipelines.mtl:run",
        help="train one trunk with a head for every stem",
        presets=True,
    ),
    "transfer": Command(
        config="pipelines.config:TrainConfig",
        run="pipelines.transfer:run",
        help="train a new head on the frozen trunk of a checkpoint",
        presets=True,
    ),
    "experiment": Command(
        config="pipelines.experiment_plan:ExperimentConfig",
        run="pipelines.experiment:run",
        help="compare band schemas: base, MTL and transfers, over several seeds",
        presets=True,
    ),
    "tune": Command(
        config="pipelines.tune_plan:TuneConfig",
        run="pipelines.tune:run",
        help="search sizes, band schema and any other options with Ray Tune",
        presets=True,
    ),
    "compare": Command(
        config="pipelines.compare:CompareConfig",
        run="pipelines.compare:run",
        help="set recorded runs side by side: tables and figures over seeds",
    ),
    "evaluate": Command(
        config="pipelines.evaluate:EvaluateConfig",
        run="pipelines.evaluate:run",
        help="separate and score whole songs",
    ),
    "report": Command(
        config="pipelines.report:ReportConfig",
        run="pipelines.report:run",
        help="a page to see scores and hear songs, models side by side",
    ),
    "infer": Command(
        config="pipelines.infer:InferConfig",
        run="pipelines.infer:run",
        help="separate a song into its stems",
    ),
    "export": Command(
        config="pipelines.export:ExportConfig",
        run="pipelines.export:run",
        help="write the network to an ONNX file",
    ),
    "register": Command(
        config="pipelines.register:RegisterConfig",
        run="pipelines.register:run",
        help="put a model into MLflow's model registry",
    ),
    "demo": Command(
        config="pipelines.demo:DemoConfig",
        run="pipelines.demo:run",
        help="the whole job on music made on the spot, in minutes",
    ),
    "bands": Command(
        config="pipelines.bands:BandsConfig",
        run="pipelines.bands:run",
        help="draw a band schema against the notes",
    ),
    "doctor": Command(
        config="pipelines.doctor:DoctorConfig",
        run="pipelines.doctor:run",
        help="show what this machine has and what it lacks",
    ),
}
"""The commands by name."""

GLOBAL_FLAGS = ("device", "seed")
"""Flags that may stand before the command; one that has no use for them does without."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own when None); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Torch asks once, before its first tensor. On a CPU, the kernel's work for the pages of large
    # tensors takes a sixth of a training step otherwise (benchmarks/huge_pages.py).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("bsrnn: interrupted", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 1
        from pipelines.failures import bad_input_sentence

        sentence = bad_input_sentence(error)
        if sentence is None:
            logger.exception("bsrnn failed")
            return 1
        print(f"bsrnn: {sentence}", file=sys.stderr)
        return 2


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more, as after ``bsrnn --help | head -1``."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    shared, name, rest = _split_at_command(words)
    command = COMMANDS[name]
    from pipelines.flags import parse

    presets = _load("pipelines.config:PRESETS") if command.presets else None
    config = parse(
        _load(command.config), rest, prog=f"bsrnn {name}", presets=presets, shared=shared
    )
    result = _load(command.run)(config)
    return result if isinstance(result, int) else 0


def _split_at_command(words: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """The flags before the command, the command, and the words after it."""
    from bsrnn_core.errors import BadInput
    from pipelines.config_files import nearest

    shared: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        flag, tied, value = rest.pop(0).partition("=")
        name = flag.lstrip("-").replace("-", "_")
        if name not in GLOBAL_FLAGS:
            allowed = " and ".join(f"--{known}" for known in GLOBAL_FLAGS)
            raise BadInput(f"{flag} stands before the command, where only {allowed} may")
        if not tied:
            if not rest:
                raise BadInput(f"{flag} takes one value")
            value = rest.pop(0)
        shared[name] = value
    if not rest:
        raise BadInput(f"no command is given; choose one of {', '.join(COMMANDS)}")
    if rest[0] not in COMMANDS:
        hint = nearest(rest[0], COMMANDS) or f"; choose one of {', '.join(COMMANDS)}"
        raise BadInput(f"there is no command {rest[0]}{hint}")
    return shared, rest[0], rest[1:]


def _load(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


def _overview() -> str:
    lines = ["usage: bsrnn [--device DEVICE] [--seed SEED] COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "bsrnn COMMAND --help lists the options of a command."])


if __name__ == "__main__":
    sys.exit(main())
