"""From a dataset's row and an environment to what the policy model is given first."""

from collections.abc import Mapping
from typing import Any

from broker import codec
from broker.messages import Task
from workers.spec import EnvironmentSpec, Item

#: Keys of `responses_create_params` that go to the model as they are; the rest of the row is data.
_FORWARDED = (
    "parallel_tool_calls",
    "tool_choice",
    "text",
    "reasoning",
    "metadata",
    "top_logprobs",
    "truncation",
    "include",
    "max_tool_calls",
    "service_tier",
    "store",
    "user",
)
_SAMPLED = ("temperature", "top_p", "max_output_tokens")
#: What most rows have.
_NO_OPTIONS = frozenset({"input", "tools", "instructions"})


def params_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row's `responses_create_params`, or an empty mapping."""
    params = row.get("responses_create_params")
    return params if isinstance(params, dict) else {}


def row_items(row: Mapping[str, Any]) -> list[Item]:
    """The task's own items: `input`, or the shorthands `prompt` (text) and `messages`."""
    given = params_of(row).get("input", row.get("prompt", row.get("messages")))
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []


def prompt_items(spec: EnvironmentSpec, task: Task, row: Mapping[str, Any]) -> list[Item]:
    """System prompt, few-shot examples, then the task's items.

    The run's system prompt wins over the row's (`instructions` or a leading system message), which
    wins over the environment's; the run's examples win over the environment's.
    """
    examples = spec.examples if task.examples is None else codec.unpack(task.examples)
    items = row_items(row)
    own = bool(items) and items[0].get("role") in ("system", "developer")
    instructions = params_of(row).get("instructions")
    if task.system_prompt is not None:
        system, items = task.system_prompt, items[1:] if own else items
    elif own:
        return [items[0], *examples, *items[1:]]
    else:
        system = instructions if isinstance(instructions, str) else spec.system_prompt
    head = [{"role": "system", "content": system}] if system else []
    return [*head, *examples, *items]


def offered_tools(spec: EnvironmentSpec, row: Mapping[str, Any]) -> bytes:
    """The environment's tools, and those that only the row names, as the row has them; packed.

    A row's definition of a tool that the environment has is left out: the code's is the true one.
    """
    given = params_of(row).get("tools")
    if not isinstance(given, list):
        return spec.offered
    foreign = [t for t in given if isinstance(t, dict) and t.get("name") not in spec.tools]
    offered = [*(tool.definition() for tool in spec.tools.values()), *foreign]
    return codec.pack(offered) if offered else b""


def model_options(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """Request fields besides conversation and tools; the run's sampling wins over the row's."""
    params = params_of(row)
    options: dict[str, Any] = {}
    if not params.keys() <= _NO_OPTIONS:
        options = {k: params[k] for k in (*_FORWARDED, *_SAMPLED) if params.get(k) is not None}
    sampling = task.sampling
    chosen = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_output_tokens,
        "seed": sampling.seed,
    }
    return options | {k: v for k, v in chosen.items() if v is not None}
