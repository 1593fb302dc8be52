"""One AMQP channel of ours: asks and gets its answers in order, and puts messages together.

A channel dies whole: by the broker's word (an error of somebody on it), or with its link. Then all
that waits on it learns why, at once; there is nothing to repair, only a new one to open.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from pamqp import base, commands, frame

from broker import amqp_frames as frames
from broker.amqp_link import Link
from broker.base import Outgoing

_CONTENT: Final = frozenset({frames.BASIC_DELIVER, frames.BASIC_RETURN})
_CONFIRMS: Final = frozenset({frames.BASIC_ACK, frames.BASIC_NACK})


class ChannelDied(Exception):
    """The broker closed the channel, or the link was lost (`code` 0)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.code = code
        self.text = text


class Channel:
    """Opened by its first frame; closed by `close`."""

    def __init__(self, link: Link) -> None:
        self.died: ChannelDied | None = None
        self._link = link
        self._wire = link.wire
        self._closing = False
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._content: tuple[int, bytes] | None = None
        self._header: bytes | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        try:
            self.number = link.new_channel(self)
        except OSError as e:
            raise ChannelDied(0, str(e)) from e
        self._open = self._send(commands.Channel.Open())

    async def ask(self, *requests: base.Frame) -> Sequence[Any]:
        """Send all, wait for all answers. Raises ChannelDied."""
        futures = [self._open, *[self._send(request) for request in requests]]
        return [await future for future in futures][1:]

    def _send(self, request: base.Frame) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.died is not None:
            answer.set_exception(self.died)
            answer.exception()  # nobody may be waiting for this one of several
            return answer
        self._answers.append(answer)
        self._wire.write([frame.marshal(request, self.number)])
        return answer

    def say(self, request: base.Frame) -> None:
        """Send what has no answer."""
        if self.died is None:
            self._wire.write([frame.marshal(request, self.number)])

    def publish(self, message: Outgoing, message_id: bytes, *, mandatory: bool) -> None:
        """Send a message. Raises ValueError where it can't be put into frames."""
        frame_max = self._link.frame_max
        self._wire.write(
            frames.publish(
                self.number, message, message_id, mandatory=mandatory, frame_max=frame_max
            )
        )

    def close(self) -> None:
        """Close without waiting: what is unsettled goes back to its queue."""
        if self.died is None and not self._closing:
            self._closing = True
            self._send(commands.Channel.Close(200, "done", 0, 0))

    def on_frame(self, type_: int, payload: bytes) -> None:
        if type_ == frames.METHOD:
            self._on_method(frames.method_of(payload), payload)
        elif type_ == frames.HEADER:
            self._header = payload
            self._missing = frames.body_size(payload)
            if not self._missing:
                self._complete(b"")
        elif type_ == frames.BODY:
            self._missing -= len(payload)
            if self._missing > 0 or self._parts:
                self._parts.append(payload)
            if self._missing <= 0:
                parts, self._parts = self._parts, []
                self._complete(b"".join(parts) if parts else payload)

    def _on_method(self, method: int, payload: bytes) -> None:
        if method in _CONTENT:
            self._content = (method, payload)
        elif method in _CONFIRMS:
            tag, multiple = frames.confirmation(payload)
            self.on_confirm(tag, multiple, method == frames.BASIC_ACK)
        elif method == frames.CHANNEL_CLOSE:
            self._on_close(self._unmarshal(payload))
        elif method == frames.BASIC_CANCEL:
            self.on_cancelled()
        elif method == frames.CHANNEL_FLOW:
            self.say(commands.Channel.FlowOk(active=True))
        else:
            self._on_answer(self._unmarshal(payload))

    def _unmarshal(self, payload: bytes) -> Any:
        return frame.unmarshal(frames.method_frame(self.number, payload))[2]

    def _on_answer(self, answer: Any) -> None:
        future = self._answers.popleft()
        if not future.done():
            future.set_result(answer)
        if isinstance(answer, commands.Channel.CloseOk):
            self._die(ChannelDied(0, "the channel was closed"))

    def _on_close(self, reason: Any) -> None:
        self.say(commands.Channel.CloseOk())
        self._die(ChannelDied(int(reason.reply_code), str(reason.reply_text)))

    def _complete(self, body: bytes) -> None:
        if self._content is None or self._header is None:
            return
        (method, payload), header = self._content, self._header
        self._content, self._header = None, None
        if method == frames.BASIC_DELIVER:
            self.on_deliver(payload, header, body)
        else:
            self.on_return(header)

    def on_lost(self) -> None:
        self._die(ChannelDied(0, "the connection was lost"))

    def _die(self, why: ChannelDied) -> None:
        if self.died is not None:
            return
        self.died = why
        self._wire.channels.pop(self.number, None)
        answers, self._answers = self._answers, deque()
        for answer in answers:
            if not answer.done():
                answer.set_exception(why)
                answer.exception()  # nobody may be waiting any more
        self.on_died(why)

    def collect(self) -> bytes:
        """Nothing gathers here; consumers gather their settlements."""
        return b""

    def on_deliver(self, payload: bytes, header: bytes, body: bytes) -> None:
        """A message came."""

    def on_return(self, header: bytes) -> None:
        """A mandatory message found no queue."""

    def on_confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """The broker took messages over, or refused them."""

    def on_cancelled(self) -> None:
        """The broker ended our consumer: its queue was deleted, or moved."""

    def on_died(self, why: ChannelDied) -> None:
        """The channel is gone."""
