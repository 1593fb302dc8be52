"""The endpoints of one model: a rollout stays with one, so that its prefix is cached there."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.messages import ModelResult
from workers.model_gateway.backend import Backend, BackendRequest


@dataclass(slots=True)
class Endpoint:
    """One replica and its slots."""

    url: str
    backend: Backend
    limit: int
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.limit)

    def rank(self, sticky: str) -> bytes:
        """Rendezvous hashing: whoever ranks highest serves, and others keep theirs if it goes."""
        return hashlib.blake2b(f"{self.url}\0{sticky}".encode(), digest_size=8).digest()


class EndpointPool:
    """A backend made of the endpoints of one model."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    async def generate(self, request: BackendRequest) -> ModelResult:
        """Ask the rollout's endpoint once (backend.Backend)."""
        endpoint = max(self._endpoints, key=lambda e: e.rank(request.rollout))
        async with endpoint.slots:
            return await endpoint.backend.generate(request)

    async def close(self) -> None:
        """Close every endpoint."""
        for endpoint in self._endpoints:
            await endpoint.backend.close()
