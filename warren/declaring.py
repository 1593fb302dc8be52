"""A declared function becomes the spec that workers get; an author's mistake is named at once.

Used by the decorators of `Environment`. Everything here raises InvalidEnvironment.
"""

import math
import re
from typing import Final, get_args

from warren.calling import reward_runner, session_opener, setup_runner, tool_runner
from warren.checks import (
    Function,
    InvalidEnvironment,
    hints_of,
    one_of,
    parameters_of,
    positive,
    where,
)
from warren.signatures import read_signature
from warren.state import state_codec
from workers.spec import Effect, RewardSpec, SessionSpec, StateSpec, ToolSpec
from workers.threads import Threads

#: What model APIs accept as a function's name.
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def tool_spec(
    function: Function,
    threads: Threads,
    *,
    name: str,
    effect: Effect,
    timeout_s: float,
    max_output_bytes: int,
    isolated: bool,
) -> ToolSpec:
    """What the model is offered, and how a call of it runs."""
    if _TOOL_NAME.fullmatch(name) is None:
        raise InvalidEnvironment(
            f"{where(function)}: {name!r} can't name a tool; use 1 to 64 letters, digits, _ -"
        )
    one_of(function, "effect", effect, get_args(Effect))
    positive(function, "timeout_s", timeout_s)
    positive(function, "max_output_bytes", max_output_bytes)
    signature = read_signature(function)
    return ToolSpec(
        name=name,
        description=signature.description,
        parameters=signature.schema,
        run=tool_runner(function, signature, threads),
        effect=effect,
        timeout_s=float(timeout_s),
        max_output_bytes=int(max_output_bytes),
        isolated=isolated,
        needs_task="task" in signature.injected,
        needs_state="state" in signature.injected,
        needs_session="session" in signature.injected,
    )


def reward_spec(
    function: Function,
    threads: Threads,
    *,
    name: str,
    weight: float,
    timeout_s: float,
    isolated: bool,
) -> RewardSpec:
    """A named part of the reward."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise InvalidEnvironment(f"{where(function)}: weight={weight!r} is not a finite number")
    positive(function, "timeout_s", timeout_s)
    return RewardSpec(
        name=name,
        weight=float(weight),
        run=reward_runner(function, threads),
        timeout_s=float(timeout_s),
        isolated=isolated,
        needs_session="session" in parameters_of(function),
        needs_ctx=len(parameters_of(function)) > 1 and "session" not in parameters_of(function),
    )


def session_spec(function: Function, *, timeout_s: float, lease_s: float) -> SessionSpec:
    """How the live object of a rollout is opened and closed."""
    takes_task = _takes_task(function, "a session")
    positive(function, "timeout_s", timeout_s)
    positive(function, "lease_s", lease_s)
    return SessionSpec(
        open=session_opener(function, takes_task),
        timeout_s=float(timeout_s),
        lease_s=float(lease_s),
    )


def state_spec(function: Function, threads: Threads, *, timeout_s: float) -> StateSpec:
    """How the state of a rollout is made, and stored by its return annotation."""
    takes_task = _takes_task(function, "setup")
    hints = hints_of(function)
    if "return" not in hints:
        raise InvalidEnvironment(
            f"{where(function)}: say what state it returns: a pydantic model, a dataclass or "
            "JSON data, for example `-> dict[str, int]`"
        )
    positive(function, "timeout_s", timeout_s)
    codec = state_codec(function, hints["return"])
    return StateSpec(
        setup=setup_runner(function, takes_task, threads),
        pack=codec.pack,
        unpack=codec.unpack,
        timeout_s=float(timeout_s),
    )


def _takes_task(function: Function, role: str) -> bool:
    parameters = parameters_of(function)
    if parameters.keys() - {"task"}:
        raise InvalidEnvironment(
            f"{where(function)}: {role} takes `task` or nothing, not `{', '.join(parameters)}`"
        )
    return "task" in parameters
