"""NVIDIA NeMo Gym: a resources server with one tool, its simple agent, its vLLM model server.

It makes a virtual environment per server with `uv`. Here all three link to the one that it is
installed in, which it takes as they are (`skip_venv_if_present`).
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.peers.setup import ENVIRONMENT, SYSTEM_PROMPT, Peer, Place, Setup, question
from benchmarks.scenarios import Scenario

_AGENT: Final = "bench_agent"
_SERVERS: Final = {
    "resources_servers/bench": "resources",
    "responses_api_agents/simple_agent": "agent",
    "responses_api_models/vllm_model": "model",
}
_TOOL: Final = {
    "type": "function",
    "name": "get_weather",
    "description": "Current weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
_RESOURCES_SERVER: Final = '''\
"""One cheap tool, and a reward of 1."""

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from pydantic import BaseModel


class Asked(BaseModel):
    city: str


class Weather(BaseModel):
    city: str
    temperature_c: int = 4
    sky: str = "snow"


class Bench(SimpleResourcesServer):
    config: BaseResourcesServerConfig

    def setup_webserver(self):
        app = super().setup_webserver()
        app.post("/get_weather")(self.get_weather)
        return app

    async def get_weather(self, body: Asked) -> Weather:
        return Weather(city=body.city)

    async def verify(self, body: BaseVerifyRequest) -> BaseVerifyResponse:
        return BaseVerifyResponse(**body.model_dump(), reward=1.0)


if __name__ == "__main__":
    Bench.run_webserver()
'''


def prepare(scenario: Scenario, place: Place) -> Setup:
    """Its launcher with three servers, then its collector beside them."""
    command = str(place.venv / "bin" / "gym")
    tokens = scenario.stub.tokens
    return Setup(
        files={
            "bench.json": json.dumps(_config(place, with_tokens=bool(tokens)), indent=1),
            "resources_servers/bench/app.py": _RESOURCES_SERVER,
            "resources_servers/bench/requirements.txt": "nemo-gym\n",
            "tasks.jsonl": "".join(map(_task, range(scenario.rollouts))),
        },
        links={f"venvs/{server}/.venv": place.venv for server in _SERVERS},
        servers=[command, "env", "start", "--config", "bench.json"],
        ready=f"All {len(_SERVERS)} / {len(_SERVERS)} servers ready!",
        server_kinds=_SERVERS,
        collect=[
            *(command, "eval", "run", "--no-serve", "--config", "bench.json"),
            *("--input", "tasks.jsonl", "--output", "rows.jsonl"),
            *("--concurrency", str(scenario.concurrency)),
        ],
        environment={
            **ENVIRONMENT,
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(place.folder / "r"),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        rows="rows.jsonl",
        is_good=lambda row: _is_good(row, tokens),
    )


def _config(place: Place, *, with_tokens: bool) -> dict[str, Any]:
    agent = {
        "entrypoint": "app.py",
        "resources_server": {"type": "resources_servers", "name": "bench"},
        "model_server": {"type": "responses_api_models", "name": "policy_model"},
    }
    model = {
        "entrypoint": "app.py",
        "base_url": place.model_url,
        "api_key": "none",
        "model": "bench",
        "return_token_id_information": with_tokens,
        "uses_reasoning_parser": True,
    }
    resources = {"entrypoint": "app.py", "domain": "agent", "verified": False}
    return {
        "head_server": {"host": "127.0.0.1", "port": place.port},
        "skip_venv_if_present": True,
        "uv_venv_dir": str(place.folder / "venvs"),
        "bench": {"resources_servers": {"bench": {**resources, "description": "benchmark"}}},
        _AGENT: {"responses_api_agents": {"simple_agent": agent}},
        "policy_model": {"responses_api_models": {"vllm_model": model}},
    }


def _task(index: int) -> str:
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": question(index)},
    ]
    row = {
        "responses_create_params": {"input": messages, "tools": [_TOOL]},
        "agent_ref": {"type": "responses_api_agents", "name": _AGENT},
    }
    return json.dumps(row) + "\n"


def _is_good(row: Mapping[str, Any], tokens: int) -> bool:
    output = row["response"]["output"]
    ids = sum(len(item.get("generation_token_ids") or ()) for item in output)
    logprobs = sum(len(item.get("generation_log_probs") or ()) for item in output)
    return row["reward"] == 1.0 and ids == logprobs == tokens


NEMO_GYM: Final = Peer(name="nemo-gym", package="nemo-gym", prepare=prepare)
