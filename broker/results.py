"""Results on the wire: a large trajectory stays in them as it came, compressed once for two hops.

The verifier puts the agent's compressed bytes into the result, and whoever reads that unpacks them.
"""

import msgspec

from broker import codec
from broker.messages import Result


def encode_result(result: Result) -> bytes:
    """The body of a result, whose trajectory may still be compressed. Raises TooLarge."""
    bulk_is_compressed = codec.is_compressed(result.trajectory) and not result.verdict.calls
    return codec.encode(result, compress=not bulk_is_compressed)


def read_result(body: bytes, kind: str | None = None) -> Result:
    """A result with its trajectory unpacked. Raises TooLarge, Undecodable."""
    result = codec.decode(Result, body, kind)
    packed = codec.decompress(result.trajectory)
    if packed is result.trajectory:
        return result
    return msgspec.structs.replace(result, trajectory=packed)
