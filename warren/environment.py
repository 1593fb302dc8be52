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
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from warren.checks import (
    Function,
    InvalidEnvironment,
    checked_examples,
    checked_name,
    checked_range,
    checked_requires,
    checked_text,
    function_of,
    takes,
    where,
)
from warren.declaring import reward_spec, session_spec, state_spec, tool_spec
from warren.fitting import check_session, check_state
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
        self._requires = checked_requires(name, requires or {})
        self.tasks = _beside(self.source, tasks)
        self._system_prompt = checked_text(name, "system_prompt", system_prompt)
        self._examples = checked_examples(name, examples)
        self._reward_range = checked_range(name, reward_range)
        self._judge_model = judge_model and checked_text(name, "judge_model", judge_model)
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
            spec = tool_spec(
                function_of(function, "tool"),
                self._threads,
                name=function.__name__ if name is None else name,
                effect=effect,
                timeout_s=timeout_s,
                max_output_bytes=max_output_bytes,
                isolated=isolated,
            )
            self._add_tool(function, spec)
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
            spec = reward_spec(
                function_of(function, "reward"),
                self._threads,
                name=function.__name__ if name is None else name,
                weight=weight,
                timeout_s=timeout_s,
                isolated=isolated,
            )
            self._add_reward(function, spec)
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
            function_of(function, "setup")
            self._once("setup", self._setup, function)
            self._state = state_spec(function, self._threads, timeout_s=timeout_s)
            self._setup = function
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
            function_of(function, "session", yields=True)
            self._once("session", self._session_function, function)
            self._session = session_spec(function, timeout_s=timeout_s, lease_s=lease_s)
            self._session_function = function
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
        check_state(self._setup, self._tool_functions)
        check_session(self._session_function, self._tool_functions, self._tools)
        check_session(self._session_function, self._reward_functions, self._rewards)
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

    def _add_tool(self, function: Function, spec: ToolSpec) -> None:
        if spec.name in self._tools:
            raise InvalidEnvironment(
                f"{where(function)}: there is a tool {spec.name!r} already, "
                f"at {where(self._tool_functions[spec.name])}"
            )
        self._tool_functions[spec.name] = function
        self._tools[spec.name] = spec

    def _add_reward(self, function: Function, spec: RewardSpec) -> None:
        if spec.name in self._rewards:
            raise InvalidEnvironment(
                f"{where(function)}: there is a reward {spec.name!r} already, "
                f"at {where(self._reward_functions[spec.name])}"
            )
        self._reward_functions[spec.name] = function
        self._rewards[spec.name] = spec

    def _once(self, role: str, known: Function | None, function: Function) -> None:
        if known is not None:
            raise InvalidEnvironment(
                f"{where(function)}: there is an @env.{role} already, at {where(known)}"
            )


def _calling_file() -> tuple[str, str]:
    """The file whose code constructs the Environment, and what its docstring says first."""
    module = sys._getframe(2).f_globals
    about = (module.get("__doc__") or "").strip().partition("\n")[0]
    return str(module.get("__file__") or ""), about


def _beside(source: str, tasks: str | Path | None) -> Path | None:
    return None if tasks is None else Path(source).resolve().parent / tasks
