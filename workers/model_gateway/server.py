"""A model server, as every backend that speaks to it by hand sees it.

Errors are the gateway's, secrets are masked in them, answers are bounded. It goes straight there:
proxies that the environment names are for the `openai` SDK.
"""

import re
from collections.abc import Callable
from types import TracebackType
from typing import Final, TypeVar
from urllib.parse import urlsplit

from broker.deadlines import Deadline, Deadlines
from workers.model_gateway.asgi import Asks
from workers.model_gateway.backend import Retryable
from workers.model_gateway.config import ModelConfig
from workers.model_gateway.failures import status_error
from workers.model_gateway.http import Body
from workers.model_gateway.http_client import HttpClient
from workers.model_gateway.http_connection import Answer
from workers.model_gateway.masking import masked

T = TypeVar("T")

_OWNED_BY: Final = re.compile(r'"owned_by"\s*:\s*"([^"]*)"')


class ModelServer:
    """One base URL of one model. Paths begin with `base` (.../v1) or `root` (without it)."""

    def __init__(self, config: ModelConfig, base_url: str, inside: Asks | None = None) -> None:
        """`inside`: the server is in this process."""
        self._secrets = config.secrets
        self._deadlines = Deadlines()
        self._http = inside or HttpClient(base_url, config.api_key)
        self.base = urlsplit(base_url).path.rstrip("/")
        self.root = self.base.removesuffix("/v1")

    @property
    def resent(self) -> int:
        """Requests sent twice (http_client.HttpClient)."""
        return self._http.resent

    async def post(self, path: str, body: bytes) -> Body:
        """The answer's body, if its status is 2xx. Raises BackendErrors, ConnectionError."""
        return self._checked(await self._http.request("POST", path, body))

    async def post_and_read(self, path: str, body: bytes, read: Callable[[Body], T]) -> T:
        """What `read` makes of the answer's body, the moment that it is there."""
        return await self._http.ask("POST", path, body, lambda answer: read(self._checked(answer)))

    async def get(self, path: str) -> Body:
        """The same, without a request body."""
        return self._checked(await self._http.request("GET", path))

    async def owners(self, timeout_s: float) -> set[str]:
        """Who owns the models listed there; empty where none are. Raises BackendErrors."""
        with self.within(timeout_s):
            answer = await self._http.request("GET", f"{self.base}/models")
        if answer.status in {400, 404}:  # there, but lists no models
            return set()
        return owners_in(self._checked(answer).decode(errors="replace"))

    def within(self, timeout_s: float) -> "Within":
        """Cuts off what is asked inside; its time and connection errors are Retryable."""
        return Within(self, self._deadlines.within(timeout_s), timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def masked(self, text: str) -> str:
        """Without our secrets, and whatever else looks like one."""
        return masked(text, self._secrets)

    def _checked(self, answer: Answer) -> Body:
        if 200 <= answer.status < 300:
            return answer.body
        text = self.masked(answer.body.decode(errors="replace"))
        raise status_error(answer.status, text, answer.headers)


def owners_in(listed: str) -> set[str]:
    """Who owns the models in an answer of /models, whatever else it says."""
    return set(_OWNED_BY.findall(listed))


class Within:
    """`ModelServer.within`; a class, since a generator costs three times as much per call."""

    __slots__ = ("_deadline", "_server", "_timeout_s")

    def __init__(self, server: ModelServer, deadline: Deadline, timeout_s: float) -> None:
        self._server = server
        self._deadline = deadline
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._deadline.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self._deadline.__exit__(kind, error, at)
        except TimeoutError:
            raise Retryable(f"no answer within {self._timeout_s:g} s") from None
        if isinstance(error, ConnectionError):
            why = self._server.masked(f"{type(error).__name__}: {error}")
            raise Retryable(f"the connection failed: {why}") from None
