"""What failed at the bottom of a failure that Ray has wrapped, perhaps several times."""

import re
from collections.abc import Iterator
from typing import Any

from bsrnn_core.errors import BadInput


def bad_input_sentence(error: BaseException) -> str | None:
    """The sentence of the BadInput that ``error`` is or was caused by, if there is one.

    Ray wraps what a task or a worker raised, and Ray Data keeps of it no more than the printed
    traceback: so causes are followed first, then that text is searched.
    """
    wrappers: list[BaseException] = []
    for link in _links(error):
        if _is_rays(link):
            wrappers.append(link)
        elif isinstance(link, BadInput):
            return " ".join(str(link).split())
    for wrapper in wrappers:
        printed = re.findall(r"^bsrnn_core\.errors\.BadInput: (.+)$", str(wrapper), re.MULTILINE)
        if printed:
            return printed[-1].strip()
    return None


def reason(error: BaseException) -> str:
    """One line that says why: of the innermost cause, with its kind unless that is BadInput."""
    sentence = bad_input_sentence(error)
    if sentence:
        return sentence
    links = list(_links(error))
    own = [link for link in links if not _is_rays(link)]
    innermost = (own or links)[-1]
    lines = [line.strip() for line in str(innermost).splitlines() if line.strip()]
    # A wrapper's traceback ends with what it wraps; all others begin with what they say.
    if any(line.startswith("Traceback") for line in lines):
        lines.reverse()
    line = next((line for line in lines if not line.endswith(":")), "")
    kind = type(innermost).__name__
    return f"{kind}: {line}" if line else kind


def _is_rays(error: BaseException) -> bool:
    """Whether it is one of Ray's wrappers, which inherit from the class that they wrap and have a
    traceback for a message."""
    return type(error).__module__.startswith("ray.")


def _links(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it names as its causes, nearest first."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, getattr(link, "cause", None)]
        waiting.append(getattr(link, "controller_failure", None))
        waiting.append(getattr(link, "health_check_failure", None))
        failures = getattr(link, "worker_failures", None)
        waiting += list(failures.values()) if isinstance(failures, dict) else []
