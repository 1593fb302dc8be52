"""Provider texts without secrets: keys that we sent, and whatever else looks like one."""

import json
import re
from collections.abc import Iterable
from typing import Final

from broker.masking import MASK, Secret, mask_url

#: Providers quote the key they refuse, whole or with its middle starred out.
_LIKE_A_KEY: Final = re.compile(r"\b(?:sk|pk|hf|gsk|xai|key)[-_][A-Za-z0-9_*.\-]{8,}")
_BEARER: Final = re.compile(r"(?P<head>\bBearer\s+)[^\s\"',;}]+", re.IGNORECASE)
_MAX_CHARS: Final = 2000


def masked(text: str, secrets: Iterable[Secret | None] = ()) -> str:
    """`text`, cut to a readable length, with every secret in it replaced by `***`."""
    for secret in secrets:
        if secret is not None and (told := secret.reveal()):
            text = text.replace(told, MASK).replace(json.dumps(told)[1:-1], MASK)
    text = _BEARER.sub(rf"\g<head>{MASK}", _LIKE_A_KEY.sub(MASK, mask_url(text)))
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + " ..."
