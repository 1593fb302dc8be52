"""Secrets that cannot be shown by accident: in a log, an error, a row or a traceback's repr."""

import re
from typing import Final
from urllib.parse import urlsplit

MASK: Final = "***"

_USERINFO: Final = re.compile(r"(?P<head>[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/]*@", re.IGNORECASE)
_QUERY: Final = re.compile(
    r"(?P<head>[?&][^=&#\s]*(?:key|token|secret|password|sig|signature)=)[^&#\s]+", re.IGNORECASE
)


def mask_url(text: str) -> str:
    """`text` with the password of every URL in it, and every query value named as one, masked."""
    return _QUERY.sub(rf"\g<head>{MASK}", _USERINFO.sub(rf"\g<head>:{MASK}@", text))


class Secret:
    """A text that shows itself as `***`; only `reveal` gives it out."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: for the driver that needs it, never for a message."""
        return self._text

    def __str__(self) -> str:
        return MASK

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._text == self._text

    def __hash__(self) -> int:
        return hash((type(self), self._text))


class Url(Secret):
    """A URL that shows itself with its password masked."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """`amqp`, `redis`, `https`, ..."""
        return urlsplit(self._text).scheme.lower()

    @property
    def host(self) -> str:
        """Host and port without the user, or a socket's path."""
        parts = urlsplit(self._text)
        return parts.netloc.rpartition("@")[2] or parts.path

    @property
    def password(self) -> str | None:
        """What has to be masked wherever it turns up."""
        return urlsplit(self._text).password

    def __str__(self) -> str:
        return mask_url(self._text)
