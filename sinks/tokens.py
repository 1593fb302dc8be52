"""A model call's token arrays as a row has them: on its last output item, all or none.

They stay packed until the row is encoded, one after the other: a row's thousands of numbers as
objects would not fit a processor's caches.
"""

import math
from array import array
from typing import Any

from broker.errors import WireError
from broker.messages import ModelResult, Tokens
from broker.trajectory import Item, Node, floats, ints

TokenFields = dict[str, "array[Any]"]


def token_fields(tokens: Tokens) -> TokenFields | None:
    """Gym's three token fields, or None where they are misaligned or not finite."""
    if len(tokens.generated_ids) != len(tokens.logprobs):
        return None
    try:
        prompt, generated = _array(ints(tokens.prompt_ids)), _array(ints(tokens.generated_ids))
        logprobs = _array(floats(tokens.logprobs))
    except WireError:
        return None
    # float32 values can't overflow this sum, so it is finite only if all of them are
    if _has_huge(tokens.logprobs) and not math.isfinite(sum(logprobs)):
        return None
    return {
        "prompt_token_ids": prompt,
        "generation_token_ids": generated,
        "generation_log_probs": logprobs,
    }


def listed(value: object) -> list[Any]:
    """For encoders: what a token array is in JSON. Raises TypeError for anything else."""
    if isinstance(value, array):
        return value.tolist()
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def _array(numbers: "memoryview[Any]") -> "array[Any]":
    return array(numbers.format, numbers.tobytes())


def _has_huge(packed: bytes) -> bool:
    """Whether a float32 is infinite, NaN or above 1e38, which its highest byte tells."""
    highest = packed[3::4]
    return 0x7F in highest or 0xFF in highest


def fields_of(node: Node) -> TokenFields | None:
    """The token fields of a call, or None where it has no (usable) tokens."""
    tokens = node.result.tokens if isinstance(node.result, ModelResult) else None
    return None if tokens is None else token_fields(tokens)


def output_with_tokens(node: Node) -> list[Item]:
    """What a model call wrote, its tokens on the last item."""
    output = list(node.output)
    fields = fields_of(node)
    if output and fields is not None:
        output[-1] = {**output[-1], **fields}
    return output
