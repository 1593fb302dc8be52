"""The benchmarks' environment: one cheap tool, one cheap reward. See README.md."""

from warren import Environment, Rollout

env = Environment("bench", system_prompt="Answer the question; look the weather up with the tool.")


@env.tool(effect="pure")
async def get_weather(city: str) -> dict[str, object]:
    """Current weather of a city."""
    return {"city": city, "temperature_c": 4, "sky": "snow"}


@env.reward
async def answered(rollout: Rollout) -> float:
    return float("It is 4 degrees" in rollout.answer)
