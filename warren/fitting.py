"""Do an environment's parts fit together? What takes a state or a session needs who makes it.

Asked when all is declared, since functions may stand in any order in a file.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from warren.checks import Function, InvalidEnvironment, hints_of, type_name, where
from workers.spec import RewardSpec, ToolSpec


def check_state(setup: Function | None, tools: Mapping[str, Function]) -> None:
    """Tools take the state that setup makes. Raises InvalidEnvironment."""
    made = hints_of(setup).get("return") if setup else None
    for function in tools.values():
        if "state" not in inspect.signature(function).parameters:
            continue
        if setup is None:
            raise InvalidEnvironment(
                f"{where(function)}: takes `state`, but there is no @env.setup that makes one"
            )
        taken = hints_of(function).get("state", made)
        if taken not in (made, Any, object):
            raise InvalidEnvironment(
                f"{where(function)}: takes `state: {type_name(taken)}`, "
                f"but {where(setup)} returns `{type_name(made)}`"
            )


def check_session(
    opener: Function | None,
    functions: Mapping[str, Function],
    specs: Mapping[str, ToolSpec] | Mapping[str, RewardSpec],
) -> None:
    """What takes a session runs where one is. Raises InvalidEnvironment."""
    for name, spec in specs.items():
        if not spec.needs_session:
            continue
        if opener is None:
            raise InvalidEnvironment(
                f"{where(functions[name])}: takes `session`, but there is no @env.session that "
                "opens one"
            )
        if spec.isolated:
            raise InvalidEnvironment(
                f"{where(functions[name])}: takes `session`, which lives in the tool worker's "
                "process: it can't be isolated"
            )
