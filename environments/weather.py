"""Questions about the weather of cities: look it up (all cities in one step), then answer."""

import json
import random
import re
from typing import Annotated

from warren import Environment, Item, PolicyRequest, Rollout, message_text

env = Environment(
    "weather",
    system_prompt="Look the weather up with the tool. The last line of your answer is one word: "
    "the temperature in degrees Celsius as a number, or the name of the city.",
    tasks="tasks/weather.jsonl",
)

WEATHER = {
    "Oslo": (4, "snow"),
    "Lisbon": (19, "sunny"),
    "Cairo": (31, "sunny"),
    "Lima": (17, "fog"),
    "Tokyo": (12, "rain"),
    "Quito": (14, "rain"),
    "Nairobi": (23, "cloudy"),
    "Hanoi": (27, "humid"),
}


@env.tool(effect="pure")
async def get_weather(
    city: Annotated[str, "English name of the city, for example Oslo"],
) -> dict[str, object]:
    """Current weather of a city: temperature in degrees Celsius, and the sky."""
    if city.title() not in WEATHER:
        raise ValueError(f"no weather station in {city!r}; there are {', '.join(WEATHER)}")
    temperature, sky = WEATHER[city.title()]
    return {"city": city.title(), "temperature_c": temperature, "sky": sky}


@env.reward
def correct(rollout: Rollout) -> float:
    lines = rollout.answer.strip().splitlines() or [""]
    said = re.findall(r"-?\w+", lines[-1])
    return float(len(said) == 1 and said[0].lower() == str(rollout.task["expected_answer"]).lower())


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    """Asks for all cities at once; by task and repeat, some go wrong."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    question = " ".join(message_text(i) for i in request.items if i.get("role") == "user")
    outputs = [i["output"] for i in request.items if i.get("type") == "function_call_output"]
    known = [json.loads(output) for output in outputs if output.startswith("{")]
    cities = [city for city in WEATHER if city in question] or ["Atlantis"]
    if not known and len(outputs) <= len(cities):
        key = "town" if luck > 0.85 and not outputs else "city"  # not in the tool's schema
        return [
            {
                "type": "function_call",
                "name": "get_weather",
                "arguments": json.dumps({key: city}),
                "call_id": f"call_{len(outputs) + i}",
            }
            for i, city in enumerate(cities)
        ]
    if not known:
        return "I don't know."
    known.sort(key=lambda report: report["temperature_c"], reverse="coldest" not in question)
    chosen = known[-1 if luck < 0.25 else 0]  # the last is wrong, unless there is only one
    return str(chosen["city"] if len(known) > 1 else chosen["temperature_c"] + (luck < 0.25))
