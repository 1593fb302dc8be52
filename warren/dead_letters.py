"""What `warren dlq` works on: the raw messages that are kept after their account was settled.

Reading takes every kept message in hand and gives all of them back, so nothing is changed by
looking. A rollout is run again as a new attempt: its task, or the task inside its trajectory or
result, is published once more, confirmed, before the kept message goes.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from broker import codec
from broker.base import Broker, Delivery
from broker.errors import UsageError, WireError
from broker.messages import ModelCall, Result, Task, ToolCall, Trajectory
from broker.results import read_result
from broker.serve import QUEUE_HEADER, REASON_HEADER, publish_patiently
from broker.topology import kept_queue
from producers.publisher import queues_for, task_message

#: More are never taken in hand at once.
MAX_LETTERS: Final = 10_000
_IDLE_S: Final = 2.0

_TYPES: Final[Mapping[str, type[Any]]] = {
    codec.kind_of(type_): type_ for type_ in (Task, ModelCall, ToolCall, Trajectory, Result)
}


@dataclass(frozen=True, slots=True)
class Letter:
    """A kept message."""

    id: str
    """Made from its bytes: the same each time that it is looked at."""
    kind: str
    reason: str
    queue: str
    run: str
    rollout: str
    """The rollout's id or journal key, where the message could be read."""
    body: bytes
    delivery: Delivery
    message: Any
    """The message, or None where it can't be read."""

    def summary(self) -> dict[str, str]:
        """What `list` shows."""
        kind = self.kind.partition(".")[0]
        fields = {"id": self.id, "kind": kind, "run": self.run, "rollout": self.rollout}
        return fields | {"queue": self.queue, "reason": self.reason}


@asynccontextmanager
async def letters(broker: Broker) -> AsyncGenerator[list[Letter], None]:
    """All kept messages, in hand while the context is open; unsettled ones are given back."""
    queue = kept_queue()
    await broker.declare([queue])
    depth = await broker.depth(queue.name)
    expected = min(depth.ready if depth is not None else 0, MAX_LETTERS)
    taken: list[Delivery] = []
    arrived = asyncio.Event()

    def take(delivery: Delivery) -> None:
        taken.append(delivery)
        arrived.set()

    try:
        async with broker.consume(queue.name, max(expected, 1), take):
            await _until(lambda: len(taken) >= expected, arrived)
        yield [_letter(delivery) for delivery in taken]
    finally:
        for delivery in reversed(taken):  # each goes to the front: their order stays
            if delivery.live:
                delivery.give_back()


async def _until(enough: Any, arrived: asyncio.Event) -> None:
    """Wait while messages keep coming."""
    try:
        while not enough():
            arrived.clear()
            async with asyncio.timeout(_IDLE_S):
                await arrived.wait()
    except TimeoutError:
        return


def _letter(delivery: Delivery) -> Letter:
    message = _read(delivery)
    run, rollout = _names(message)
    return Letter(
        id=codec.digest(delivery.kind.encode(), delivery.body).hex()[:12],
        kind=delivery.kind,
        reason=str(delivery.headers.get(REASON_HEADER, "unknown")),
        queue=str(delivery.headers.get(QUEUE_HEADER, "")),
        run=run,
        rollout=rollout,
        body=delivery.body,
        delivery=delivery,
        message=message,
    )


def _read(delivery: Delivery) -> Any:
    type_ = _TYPES.get(delivery.kind)
    if type_ is None:
        return None
    try:
        if type_ is Result:
            return read_result(delivery.body, delivery.kind)
        return codec.decode(type_, delivery.body, delivery.kind)
    except WireError:
        return None


def _names(message: Any) -> tuple[str, str]:
    match message:
        case Task() | Result():
            return message.run, message.rollout_id
        case ModelCall() | ToolCall():
            return message.run, f"{message.rollout}:{message.path}"
        case Trajectory():
            task = task_of(message)
            return (task.run, task.rollout_id) if task else ("", message.rollout)
    return "", ""


def task_of(message: Any) -> Task | None:
    """The task inside a message; None where there is none (calls) or it can't be read."""
    try:
        match message:
            case Task():
                return message
            case Trajectory():
                return codec.read(Task, message.task)
            case Result():
                return task_of(codec.read(Trajectory, message.trajectory))
    except WireError:
        return None
    return None


async def replay(broker: Broker, letter: Letter) -> None:
    """Run the letter's rollout again as a new attempt. Raises UsageError where that can't be."""
    task = task_of(letter.message)
    if task is None:
        raise UsageError(
            f"{letter.id}: holds no task, so there is nothing to run again; its rollout went on "
            "with an error result"
        )
    if task.audiences != ("sink",):
        raise UsageError(
            f"{letter.id}: {task.rollout_id} belongs to {', '.join(task.audiences)}: run "
            "`warren collect ... --retry-failed` there"
        )
    again = msgspec.structs.replace(
        task, attempt=task.attempt + 1, lane="normal", enqueued_at=time.time()
    )
    await broker.declare(queues_for(task.environment, task.run, task.audiences))
    await publish_patiently(broker, task_message(again))
    letter.delivery.ack()


def readable(letter: Letter) -> dict[str, Any]:
    """What `show` prints: the message in full, bytes as text where they are that."""
    return letter.summary() | {"message": _plain(letter.message, letter.body)}


def _plain(message: Any, body: bytes) -> Any:
    if message is None:
        return {"bytes": len(body), "begins": body[:200].hex()}
    fields = msgspec.structs.asdict(message)
    return {name: _text(value) for name, value in fields.items()}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"<{len(value)} bytes>"
    if isinstance(value, msgspec.Struct):
        return {name: _text(v) for name, v in msgspec.structs.asdict(value).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_text(each) for each in value]
    return value
