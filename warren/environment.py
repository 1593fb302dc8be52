"""The public API: an environment is tools, rewards and a prompt, declared in one readable file.

    from warren import Environment, Rollout

    env = Environment("weather", system_prompt="Use the tools, then answer briefly.")

    @env.tool
    async def get_weather(city: str) -> dict[str, object]:
        "Current weather of a city."
        ...

    @env.reward
    def correct(rollout: Rollout) -> float:
        return float(str(rollout.task["expected_answer"]) in rollout.answer)

Decorators give the function back unchanged, so it can be called and tested as it is. Every mistake
is an `InvalidEnvironment` when the file is loaded. Functions that are not `async` run in threads.
"""

import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, overload

from warren.calling import reward_runner, session_opener, setup_runner, tool_runner
from warren.checks import (
    Function,
    InvalidEnvironment,
    checked_examples,
    checked_name,
    checked_range,
    function_of,
    hints_of,
    one_of,
    parameters_of,
    positive,
    takes,
    type_name,
    where,
)
from warren.signatures import read_signature
from warren.state import state_codec
from workers.spec import (
    AgentFunction,
    Effect,
    EnvironmentSpec,
    Item,
    Policy,
    RewardSpec,
    SessionSpec,
    StateSpec,
    ToolSpec,
)
from workers.threads import Threads

Task = Mapping[str, Any]
"""A dataset's row, every key of it, as tools and setup get it by a parameter named `task`."""

F = TypeVar("F", bound=Function)

#: What model APIs accept as a function's name.
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Environment:
    """Collects the functions of one environment; `spec()` is what the workers get."""

    def __init__(
        self,
        name: str,
        *,
        system_prompt: str = "",
        examples: Sequence[Item] = (),
        reward_range: tuple[float, float] = (0.0, 1.0),
        judge_model: str | None = None,
        tasks: str | Path | None = None,
        sandboxed: bool = False,
        requires: Mapping[str, str] | None = None,
    ) -> None:
        """Begin an environment.

        Args:
            name: 1 to 64 of `a-z 0-9 _ -`; it stands in queue names and in every row.
            system_prompt: the first message of every rollout, unless a run or a row brings one.
            examples: few-shot items between the system prompt and the task.
            reward_range: what each reward function may return; else it has failed.
            judge_model: the model that `ctx.judge` asks.
            tasks: a JSONL file of example tasks, relative to the environment's file.
            sandboxed: it runs model-written code (`run_code`, `run_tests`, `python`, `shell`);
                workers that can't have a sandbox then refuse to start, and say why.
            requires: modules that must be installed besides Warren, and what to install for each:
                `{"math_verify": "warren[math]"}`.
        """
        self.name = checked_name(name)
        self.reference = ""
        """What it was loaded by; set by `load_environment`."""
        self.source, self.about = _calling_file()
        self.sandboxed = sandboxed
        self._requires = dict(requires or {})
        self.tasks = _beside(self.source, tasks)
        self._system_prompt = system_prompt
        self._examples = checked_examples(name, examples)
        self._reward_range = checked_range(name, reward_range)
        self._judge_model = judge_model
        self._threads = Threads()
        self._tools: dict[str, ToolSpec] = {}
        self._tool_functions: dict[str, Function] = {}
        self._rewards: dict[str, RewardSpec] = {}
        self._reward_functions: dict[str, Function] = {}
        self._agent: AgentFunction | None = None
        self._policy: Policy | None = None
        self._setup: Function | None = None
        self._state: StateSpec | None = None
        self._session_function: Function | None = None
        self._session: SessionSpec | None = None

    def __repr__(self) -> str:
        return f"Environment({self.name!r})"

    @overload
    def tool(self, function: F, /) -> F: ...
    @overload
    def tool(
        self,
        /,
        *,
        effect: Effect = "idempotent",
        timeout_s: float = 60.0,
        max_output_bytes: int = 64 * 1024,
        isolated: bool = False,
        name: str | None = None,
    ) -> Callable[[F], F]: ...
    def tool(
        self,
        function: Any = None,
        /,
        *,
        effect: Effect = "idempotent",
        timeout_s: float = 60.0,
        max_output_bytes: int = 64 * 1024,
        isolated: bool = False,
        name: str | None = None,
    ) -> Any:
        """Offer a function to the model. Its schema comes from its signature and docstring.

        Parameters named `state`, `task` (the dataset's row), `idempotency_key` (the same in every
        try of a call) and `session` are filled in by Warren and hidden from the model. What is
        returned goes to the model: text as it is, anything else as JSON. What is raised goes to
        the model too, is recorded on the rollout, and leaves `state` as it was.

        Args:
            effect: what running it twice does. `pure`: nothing, it only reads; `idempotent`: the
                same as once; `at_most_once`: harm, so after a crash the model is told "in doubt".
            timeout_s: seconds until the call has failed.
            max_output_bytes: longer outputs are cut and flagged.
            isolated: run it in a process of its own, for code that may crash or never return.
            name: what the model calls it; the function's name by default.
        """

        def add(function: F) -> F:
            self._add_tool(
                function_of(function, "tool"),
                name or function.__name__,
                effect=effect,
                timeout_s=timeout_s,
                max_output_bytes=max_output_bytes,
                isolated=isolated,
            )
            return function

        return add if function is None else add(function)

    @overload
    def reward(self, function: F, /) -> F: ...
    @overload
    def reward(
        self,
        /,
        *,
        weight: float = 1.0,
        name: str | None = None,
        timeout_s: float = 600.0,
        isolated: bool = False,
    ) -> Callable[[F], F]: ...
    def reward(
        self,
        function: Any = None,
        /,
        *,
        weight: float = 1.0,
        name: str | None = None,
        timeout_s: float = 600.0,
        isolated: bool = False,
    ) -> Any:
        """Score rollouts with a function of `rollout`, or `async` of `rollout` and `ctx`.

        One that takes `rollout` and `session` runs beside the rollout's live session. The reward
        is the sum of weight x value over all of them. What is raised becomes `reward: null` with
        the error: never return 0 for something that went wrong on our side.

        Args:
            weight: what its value is multiplied by.
            name: of its component in the row; the function's name by default.
            timeout_s: seconds until it has failed.
            isolated: run it in a process of its own, for code that may crash or never return.
        """

        def add(function: F) -> F:
            self._add_reward(
                function_of(function, "reward"),
                name or function.__name__,
                weight=weight,
                timeout_s=timeout_s,
                isolated=isolated,
            )
            return function

        return add if function is None else add(function)

    def agent(self, function: F) -> F:
        """Replace the default tool loop by `async def agent(ctx, task)`."""
        function_of(function, "agent")
        if not inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise InvalidEnvironment(f"{where(function)}: an agent must be `async def`")
        takes(function, 2, "an agent takes `ctx` and `task`")
        self._once("agent", self._agent, function)
        self._agent = function
        return function

    def policy(self, function: F) -> F:
        """A scripted model for demos and tests: `PolicyRequest` -> text, or output items."""
        function_of(function, "policy")
        takes(function, 1, "a policy takes one argument, the request")
        self._once("policy", self._policy, function)
        self._policy = function
        return function

    @overload
    def setup(self, function: F, /) -> F: ...
    @overload
    def setup(self, /, *, timeout_s: float = 60.0) -> Callable[[F], F]: ...
    def setup(self, function: Any = None, /, *, timeout_s: float = 60.0) -> Any:
        """Make the state of a rollout, from `task` or from nothing.

        What it returns (a pydantic model, a dataclass or plain JSON data, as its return
        annotation says) is stored after each call, given to tools as `state`, and to rewards as
        `rollout.state`. Tools change it in place.
        """

        def add(function: F) -> F:
            self._add_setup(function_of(function, "setup"), timeout_s)
            return function

        return add if function is None else add(function)

    @overload
    def session(self, function: F, /) -> F: ...
    @overload
    def session(
        self, /, *, timeout_s: float = 60.0, lease_s: float = 1800.0
    ) -> Callable[[F], F]: ...
    def session(
        self, function: Any = None, /, *, timeout_s: float = 60.0, lease_s: float = 1800.0
    ) -> Any:
        """Open what can't be stored (a process, a browser) for each rollout: an async generator.

        It takes `task` or nothing, yields the live object once, and closes it after the `yield`.
        One tool worker keeps it; tools and rewards get it by a parameter `session`. If that
        worker dies the rollout starts again. For what can be stored, `setup` is better.

        Args:
            timeout_s: seconds to open it.
            lease_s: it is closed when no tool was called for so many seconds; else after the
                verdict.
        """

        def add(function: F) -> F:
            checked = function_of(function, "session", yields=True)
            self._add_session(checked, timeout_s, lease_s)
            return function

        return add if function is None else add(function)

    def missing(self) -> str | None:
        """What must be installed before it can be used, and how; None when all is there."""
        lacks = [m for m in self._requires if importlib.util.find_spec(m) is None]
        if not lacks:
            return None
        how = " ".join(f"'{self._requires[module]}'" for module in lacks)
        return f"needs {', '.join(lacks)}: pip install {how}"

    def spec(self) -> EnvironmentSpec:
        """What the workers need. Raises InvalidEnvironment where the parts don't fit together."""
        self._check_state_users()
        self._check_session_users()
        return EnvironmentSpec(
            name=self.name,
            system_prompt=self._system_prompt,
            examples=self._examples,
            tools=dict(self._tools),
            rewards=tuple(self._rewards.values()),
            reward_range=self._reward_range,
            agent=self._agent,
            policy=self._policy,
            state=self._state,
            session=self._session,
            judge_model=self._judge_model,
            source=self.source,
            reference=self.reference,
            threads=self._threads,
        )

    def _add_tool(
        self,
        function: Function,
        name: str,
        *,
        effect: Effect,
        timeout_s: float,
        max_output_bytes: int,
        isolated: bool,
    ) -> None:
        if _TOOL_NAME.fullmatch(name) is None:
            raise InvalidEnvironment(
                f"{where(function)}: {name!r} can't name a tool; use 1 to 64 letters, digits, _ -"
            )
        if name in self._tools:
            raise InvalidEnvironment(
                f"{where(function)}: there is a tool {name!r} already, "
                f"at {where(self._tool_functions[name])}"
            )
        one_of(function, "effect", effect, get_args(Effect))
        positive(function, "timeout_s", timeout_s)
        positive(function, "max_output_bytes", max_output_bytes)
        signature = read_signature(function)
        self._tool_functions[name] = function
        self._tools[name] = ToolSpec(
            name=name,
            description=signature.description,
            parameters=signature.schema,
            run=tool_runner(function, signature, self._threads),
            effect=effect,
            timeout_s=float(timeout_s),
            max_output_bytes=max_output_bytes,
            isolated=isolated,
            needs_task="task" in signature.injected,
            needs_state="state" in signature.injected,
            needs_session="session" in signature.injected,
        )

    def _add_reward(
        self, function: Function, name: str, *, weight: float, timeout_s: float, isolated: bool
    ) -> None:
        if name in self._rewards:
            raise InvalidEnvironment(f"{where(function)}: there is a reward {name!r} already")
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InvalidEnvironment(f"{where(function)}: weight={weight!r} is not a finite number")
        positive(function, "timeout_s", timeout_s)
        self._reward_functions[name] = function
        self._rewards[name] = RewardSpec(
            name=name,
            weight=float(weight),
            run=reward_runner(function, self._threads),
            timeout_s=float(timeout_s),
            isolated=isolated,
            needs_session="session" in parameters_of(function),
        )

    def _add_session(self, function: Function, timeout_s: float, lease_s: float) -> None:
        parameters = parameters_of(function)
        if parameters.keys() - {"task"}:
            raise InvalidEnvironment(
                f"{where(function)}: a session takes `task` or nothing, "
                f"not `{', '.join(parameters)}`"
            )
        positive(function, "timeout_s", timeout_s)
        positive(function, "lease_s", lease_s)
        self._once("session", self._session_function, function)
        self._session_function = function
        self._session = SessionSpec(
            open=session_opener(function, "task" in parameters),
            timeout_s=float(timeout_s),
            lease_s=float(lease_s),
        )

    def _add_setup(self, function: Function, timeout_s: float) -> None:
        parameters = parameters_of(function)
        if parameters.keys() - {"task"}:
            raise InvalidEnvironment(
                f"{where(function)}: setup takes `task` or nothing, not `{', '.join(parameters)}`"
            )
        hint = hints_of(function).get("return")
        if hint is None:
            raise InvalidEnvironment(
                f"{where(function)}: say what state it returns: a pydantic model, a dataclass or "
                "JSON data, for example `-> dict[str, int]`"
            )
        positive(function, "timeout_s", timeout_s)
        self._once("setup", self._setup, function)
        codec = state_codec(function, hint)
        self._setup = function
        self._state = StateSpec(
            setup=setup_runner(function, "task" in parameters, self._threads),
            pack=codec.pack,
            unpack=codec.unpack,
            timeout_s=float(timeout_s),
        )

    def _once(self, role: str, known: Function | None, function: Function) -> None:
        if known is not None:
            raise InvalidEnvironment(
                f"{where(function)}: there is an @env.{role} already, at {where(known)}"
            )

    def _check_session_users(self) -> None:
        users = [
            (self._tool_functions[name], tool.isolated, tool.needs_session)
            for name, tool in self._tools.items()
        ]
        users += [
            (self._reward_functions[name], reward.isolated, reward.needs_session)
            for name, reward in self._rewards.items()
        ]
        for function, isolated, needs_session in users:
            if needs_session and self._session is None:
                raise InvalidEnvironment(
                    f"{where(function)}: takes `session`, but there is no @env.session that opens "
                    "one"
                )
            if needs_session and isolated:
                raise InvalidEnvironment(
                    f"{where(function)}: takes `session`, which lives in the tool worker's "
                    "process: it can't be isolated"
                )

    def _check_state_users(self) -> None:
        made = hints_of(self._setup).get("return") if self._setup else None
        for function in self._tool_functions.values():
            if "state" not in inspect.signature(function).parameters:
                continue
            if self._setup is None:
                raise InvalidEnvironment(
                    f"{where(function)}: takes `state`, but there is no @env.setup that makes one"
                )
            taken = hints_of(function).get("state", made)
            if taken not in (made, Any, object):
                raise InvalidEnvironment(
                    f"{where(function)}: takes `state: {type_name(taken)}`, "
                    f"but {where(self._setup)} returns `{type_name(made)}`"
                )


def _calling_file() -> tuple[str, str]:
    """The file whose code constructs the Environment, and what its docstring says first."""
    module = sys._getframe(2).f_globals
    about = (module.get("__doc__") or "").strip().partition("\n")[0]
    return str(module.get("__file__") or ""), about


def _beside(source: str, tasks: str | Path | None) -> Path | None:
    return None if tasks is None else Path(source).resolve().parent / tasks
