"""The public API: schemas from signatures, checked calls, rewards and state as their types."""

import dataclasses
import enum
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, cast

import pytest
from pydantic import BaseModel, Field

from broker.messages import Usage
from warren import Environment, Rollout, VerifierContext
from workers.spec import BadArguments, ToolRun

NOBODY = cast(VerifierContext, None)


@pytest.fixture
def env() -> Environment:
    return Environment("test")


async def run(env: Environment, name: str, state: object = None, **arguments: object) -> object:
    tool = env.spec().tools[name]
    return await tool.run(ToolRun(arguments=arguments, idempotency_key="key", state=state))


def rollout(answer: str) -> Rollout:
    message = {"type": "message", "role": "assistant", "content": answer}
    return Rollout(
        rollout_id="r/0/0",
        task={"expected_answer": "4"},
        prompt=[],
        output=[message],
        status="completed",
        error=None,
        state=None,
        session=None,
        steps=1,
        usage=Usage(),
    )


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Place(BaseModel):
    city: str
    country: str = "NO"


def test_a_schema_has_types_descriptions_defaults_and_nothing_made_up(env: Environment) -> None:
    @env.tool
    def look(
        city: str,
        days: Annotated[int, Field(ge=1, le=7)] = 1,
        unit: Unit = Unit.C,
        kind: Annotated[Literal["sky", "sea"], "what to look at"] = "sky",
        tags: list[str] | None = None,
    ) -> str:
        """Look at a place.

        It may rain.

        Args:
            city (str): English name,
                as on a map
            days: how far ahead
        Returns:
            what there is
        """
        return city

    definition = env.spec().tools["look"].definition()
    assert definition["description"].startswith("Look at a place.\n\nIt may rain.")
    assert "English name" not in definition["description"]
    schema = definition["parameters"]
    assert schema["required"] == ["city"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert not any("title" in each for each in properties.values())
    assert properties["city"] == {"type": "string", "description": "English name, as on a map"}
    assert properties["days"]["maximum"] == 7
    assert properties["days"]["description"] == "how far ahead"
    assert properties["days"]["default"] == 1
    assert properties["kind"]["enum"] == ["sky", "sea"]
    assert properties["kind"]["description"] == "what to look at"
    assert properties["tags"]["default"] is None


async def test_arguments_reach_the_function_as_its_types(env: Environment) -> None:
    @env.tool
    async def look(places: list[Place], unit: Unit = Unit.C) -> Any:
        return [(place.city, place.country) for place in places], unit

    got = await run(env, "look", places=[{"city": "Oslo"}], unit="fahrenheit")
    assert got == ([("Oslo", "NO")], Unit.F)
    with pytest.raises(BadArguments, match=r"places\.0\.city: Field required"):
        await run(env, "look", places=[{}])


async def test_any_argument_name_works(env: Environment) -> None:
    @env.tool
    def odd(json: int, copy: int, model_config: int, schema: int = 4) -> int:
        return json + copy + model_config + schema

    assert await run(env, "odd", json=1, copy=2, model_config=3) == 10


async def test_injected_arguments_are_hidden_from_the_model(env: Environment) -> None:
    @env.setup
    def start() -> dict[str, int]:
        return {"n": 1}

    @env.session
    async def live() -> AsyncIterator[object]:
        yield object()

    @env.tool
    def count(by: int, state: dict[str, int], task: Any, idempotency_key: str, session: Any) -> Any:
        state["n"] += by
        return idempotency_key

    assert set(env.spec().tools["count"].parameters["properties"]) == {"by"}
    state = {"n": 1}
    assert await run(env, "count", state, by=2) == "key"
    assert state == {"n": 3}
    with pytest.raises(BadArguments, match="Extra inputs"):
        await run(env, "count", state, by=2, idempotency_key="mine")


async def test_sync_functions_run_off_the_loop_and_async_ones_on_it(env: Environment) -> None:
    @env.tool
    def off() -> int:
        return threading.get_ident()

    @env.tool
    async def on() -> int:
        return threading.get_ident()

    assert await run(env, "off") != threading.get_ident()
    assert await run(env, "on") == threading.get_ident()


async def test_rewards_may_be_sync_or_async_and_have_names_and_weights(env: Environment) -> None:
    @env.reward
    def correct(rollout: Rollout) -> float:
        return float(rollout.answer == rollout.task["expected_answer"])

    @env.reward(weight=0.5, name="style")
    async def judged(r: Rollout, ctx: VerifierContext) -> float:
        return 0.25

    rewards = env.spec().rewards
    assert [(each.name, each.weight) for each in rewards] == [("correct", 1.0), ("style", 0.5)]
    assert [await each.run(rollout("4"), NOBODY) for each in rewards] == [1.0, 0.25]


def test_decorators_give_the_function_back(env: Environment) -> None:
    @env.tool(effect="pure")
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8


@dataclasses.dataclass
class Board:
    cells: list[tuple[int, int]]
    names: set[str] = dataclasses.field(default_factory=set)


async def test_state_comes_back_as_its_type(env: Environment) -> None:
    @env.setup
    def start(task: Any) -> Board:
        return Board([(1, 2)], {str(task["name"])})

    state = env.spec().state
    assert state is not None
    made = await state.setup({"name": "Ada"})
    assert state.unpack(state.pack(made)) == Board([(1, 2)], {"Ada"})


async def test_state_that_would_change_when_stored_is_refused(env: Environment) -> None:
    @env.setup
    def start() -> dict[str, Any]:
        return {"seen": {1: "one"}}

    state = env.spec().state
    assert state is not None
    with pytest.raises(ValueError, match=r"can't be stored as .*start is annotated"):
        state.pack(await state.setup({}))
    assert state.pack({"tuple": (1, 2)}) == b'{"tuple":[1,2]}'
    with pytest.raises(ValueError, match="would come back as"):
        state.pack({"nan": float("nan")})
