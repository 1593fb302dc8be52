"""A model call's token arrays as a row has them: lists on its last output item, all or none."""

import math

from broker.errors import WireError
from broker.messages import ModelResult, Tokens
from broker.trajectory import Item, Node, floats, ints

TokenFields = dict[str, list[int] | list[float]]


def token_fields(tokens: Tokens) -> TokenFields | None:
    """Gym's three token fields, or None where they are misaligned or not finite."""
    if len(tokens.generated_ids) != len(tokens.logprobs):
        return None
    try:
        prompt, generated = ints(tokens.prompt_ids).tolist(), ints(tokens.generated_ids).tolist()
        logprobs = floats(tokens.logprobs).tolist()
    except WireError:
        return None
    # float32 values can't overflow this sum, so it is finite only if all of them are
    if not math.isfinite(sum(logprobs)):
        return None
    return {
        "prompt_token_ids": prompt,
        "generation_token_ids": generated,
        "generation_log_probs": logprobs,
    }


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
