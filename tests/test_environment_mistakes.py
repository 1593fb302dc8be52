"""Mistakes in an environment: each is named, with its place, when the file is loaded."""

import threading
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from warren import Environment, InvalidEnvironment, Rollout, VerifierContext


class Place(BaseModel):
    city: str


@pytest.fixture
def env() -> Environment:
    return Environment("test")


def _duplicate(env: Environment) -> None:
    @env.tool(name="look")
    def one() -> str:
        return ""

    @env.tool(name="look")
    def two() -> str:
        return ""


def _unannotated(env: Environment) -> None:
    @env.tool
    def look(city) -> str:  # type: ignore[no-untyped-def]
        return str(city)


def _unknown_effect(env: Environment) -> None:
    @env.tool(effect="twice")  # type: ignore[call-overload, untyped-decorator]
    def look() -> str:
        return ""


def _unserialisable_argument(env: Environment) -> None:
    @env.tool
    def look(lock: threading.Event) -> str:
        return ""


def _unserialisable_state(env: Environment) -> None:
    @env.setup
    def start() -> threading.Event:
        return threading.Event()


def _state_of_any_kind(env: Environment) -> None:
    @env.setup
    def start() -> object:
        return threading.Event()


def _default_that_does_not_fit(env: Environment) -> None:
    @env.tool
    def look(depth: int = None) -> str:  # type: ignore[assignment]  # noqa: RUF013
        return ""


def _default_without_json(env: Environment) -> None:
    @env.tool
    def look(depth: Any = object()) -> str:  # noqa: B008
        return ""


def _bad_pattern(env: Environment) -> None:
    @env.tool
    def look(city: Annotated[str, Field(pattern="(")]) -> str:
        return city


def _many_rewards(env: Environment) -> None:
    @env.reward
    def correct(rollout: Rollout) -> dict[str, float]:
        return {}


def _swapped_arguments(env: Environment) -> None:
    @env.reward
    async def correct(ctx: VerifierContext, rollout: Rollout) -> float:
        return 1.0


def _untyped_state(env: Environment) -> None:
    @env.setup
    def start():  # type: ignore[no-untyped-def]
        return {}


def _no_function(env: Environment) -> None:
    env.reward(0.5)  # type: ignore[call-overload]


def _star_args(env: Environment) -> None:
    @env.tool
    def look(*cities: str) -> str:
        return ""


def _text_reward(env: Environment) -> None:
    @env.reward
    def correct(rollout: Rollout) -> str:
        return "good"


def _sync_judge(env: Environment) -> None:
    @env.reward
    def correct(rollout: Rollout, ctx: VerifierContext) -> float:
        return 1.0


def _sync_agent(env: Environment) -> None:
    @env.agent
    def agent(ctx: object, task: object) -> None: ...


def _state_without_setup(env: Environment) -> None:
    @env.tool
    def look(state: dict[str, int]) -> str:
        return ""


def _another_state(env: Environment) -> None:
    @env.setup
    def start() -> dict[str, int]:
        return {}

    @env.tool
    def look(state: Place) -> str:
        return ""


def _stale_docstring(env: Environment) -> None:
    @env.tool
    def look(city: str) -> str:
        """Look.

        Args:
            town: where
        """
        return city


def _no_time(env: Environment) -> None:
    @env.tool(timeout_s=0)
    def look() -> str:
        return ""


def _odd_tool_name(env: Environment) -> None:
    @env.tool(name="look up")
    def look() -> str:
        return ""


def _generator(env: Environment) -> None:
    @env.tool
    def look() -> Any:
        yield 1


def _load(declare: Callable[[Environment], None], env: Environment) -> None:
    declare(env)
    env.spec()


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (_duplicate, "there is a tool 'look' already, at .*test_environment_mistakes.py:.*: one"),
        (_unannotated, "look: argument `city` has no type annotation; write for example"),
        (_unknown_effect, "effect='twice' is unknown; use one of 'pure', 'idempotent', 'at_most"),
        (_unserialisable_argument, "look: its arguments have no JSON form: .*Event"),
        (_unserialisable_state, "start: its state .* can't be stored"),
        (_state_of_any_kind, "start: says nothing about its state with `-> object`"),
        (_default_that_does_not_fit, "the default None of `depth` does not fit its annotation"),
        (_default_without_json, "look: its arguments have no JSON schema: Default value"),
        (_bad_pattern, "look: its arguments have no JSON form: .*regex parse error"),
        (_many_rewards, r"correct: a reward returns a float, not dict\[str, float\]"),
        (_swapped_arguments, "correct: a reward takes `rollout`, `rollout` and `ctx`"),
        (_untyped_state, "start: say what state it returns"),
        (_no_function, "@env.reward takes a function, but got 0.5"),
        (_star_args, r"look: takes `\*cities: str`"),
        (_text_reward, "correct: a reward returns a float, not str"),
        (_sync_judge, "takes `ctx` awaits it: make it `async def`"),
        (_sync_agent, "an agent must be `async def`"),
        (_state_without_setup, "takes `state`, but there is no @env.setup"),
        (_another_state, "takes `state: Place`, but .* returns `dict"),
        (_stale_docstring, "the docstring describes an argument `town` that it does not take"),
        (_no_time, "timeout_s=0 is not a number above 0"),
        (_odd_tool_name, "'look up' can't name a tool"),
        (_generator, "must return its value, not yield it"),
    ],
)
def test_a_mistake_is_named_when_the_file_is_loaded(
    env: Environment, declare: Callable[[Environment], None], said: str
) -> None:
    with pytest.raises(InvalidEnvironment, match=said) as caught:
        _load(declare, env)
    assert "test_environment_mistakes.py" in str(caught.value) or declare is _no_function


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "My Env"}, "'My Env' can't name an environment"),
        ({"reward_range": (1, 0)}, "is not .low, high. with low < high"),
        ({"reward_range": (0, float("nan"))}, "is not .low, high."),
        ({"examples": ["hello"]}, r"examples\[0\] is no Responses item"),
        ({"examples": [{"role": "user", "content": object()}]}, r"examples\[0\] is no"),
        ({"examples": "hello"}, "is not a list of Responses items"),
        ({"system_prompt": ["hello"]}, r"system_prompt=\['hello'\] is not a text"),
        ({"judge_model": 5}, "judge_model=5 is not a text"),
        ({"requires": ["numpy"]}, "is not a dict from modules"),
    ],
)
def test_an_environment_checks_what_it_is_made_of(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidEnvironment, match=said):
        Environment(**({"name": "test"} | wrong))
