"""verifiers of Prime Intellect, v0's `ToolEnv` and `vf-eval`: one process does everything."""

from typing import Final

from benchmarks.peers.setup import ENVIRONMENT, SYSTEM_PROMPT, Peer, Place, Setup, question
from benchmarks.scenarios import Scenario

_ENVIRONMENT: Final = '''\
"""One cheap tool, and a reward of 1."""

import verifiers as vf
from datasets import Dataset


async def get_weather(city: str) -> dict:
    """Current weather of a city.

    Args:
        city: Which one.
    """
    return {{"city": city, "temperature_c": 4, "sky": "snow"}}


async def answered(completion) -> float:
    return 1.0


def load_environment() -> vf.Environment:
    questions = [{question!r}.format(index) for index in range({rollouts})]
    return vf.ToolEnv(
        tools=[get_weather],
        eval_dataset=Dataset.from_list([{{"question": each, "answer": ""}} for each in questions]),
        rubric=vf.Rubric(funcs=[answered]),
        system_prompt={system!r},
    )
'''


def prepare(scenario: Scenario, place: Place) -> Setup:
    """`vf-eval` without its environment server. Raises ValueError where tokens are asked for."""
    if scenario.stub.tokens:
        raise ValueError("vf-eval keeps no token ids: measure nemo-gym with tokens")
    return Setup(
        files={
            "bench_env.py": _ENVIRONMENT.format(
                question=question(0).replace("00000000", "{:08d}"),
                rollouts=scenario.rollouts,
                system=SYSTEM_PROMPT,
            )
        },
        collect=[
            *(str(place.venv / "bin" / "vf-eval"), "bench_env", "-m", "bench"),
            *("-b", place.model_url, "-k", "BENCH_KEY", "-n", str(scenario.rollouts)),
            *("-r", "1", "-c", str(scenario.concurrency), "--disable-env-server"),
            *("--save-results", "-o", "out", "--disable-tui", "--abbreviated-summary"),
        ],
        environment={
            **ENVIRONMENT,
            "BENCH_KEY": "none",
            "HF_HOME": str(place.folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(place.folder),
        },
        rows="out/**/results.jsonl",
        is_good=lambda row: row["reward"] == 1.0,
    )


VERIFIERS: Final = Peer(name="verifiers", package="verifiers", prepare=prepare)
