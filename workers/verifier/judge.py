"""A verifier's calls: judge models over the model queue, journaled like an agent's."""

import functools
import time
from collections.abc import Sequence
from typing import Any

from broker import codec
from broker.messages import CallRecord, Failure, ModelCall, ModelResult, Task
from broker.topology import MODEL, model_key
from workers.owner import Ask, Owner
from workers.spec import Item, message_text


class JudgeFailed(Exception):
    """The judge model could not answer."""


class Judge:
    """What reward functions get as `ctx`: `await ctx.judge(...)`."""

    def __init__(self, owner: Owner, task: Task, model: str | None) -> None:
        self._owner = owner
        self._task = task
        self._model = model
        self._next = 0
        self._records: list[CallRecord] = []

    @property
    def records(self) -> tuple[bytes, ...]:
        """The calls made, packed."""
        return tuple(codec.pack(record) for record in self._records)

    async def judge(
        self, prompt: str | Sequence[Item], *, model: str | None = None, **options: Any
    ) -> str:
        """Ask the judge model; the text of its answer. Raises JudgeFailed."""
        name = model or self._model
        if name is None:
            raise JudgeFailed("the environment names no judge_model")
        items = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        path = f"verify.{self._next}"
        self._next += 1
        packed = tuple(codec.pack(item) for item in items)
        result = await self._ask(path, name, packed, codec.pack(options))
        if result.error is not None:
            raise JudgeFailed(result.error.message)
        output: list[Item] = codec.unpack(result.items) if result.items else []
        return "".join(message_text(i) for i in output if i.get("type") == "message")

    async def _ask(
        self, path: str, name: str, items: tuple[bytes, ...], options: bytes
    ) -> ModelResult:
        started_at = time.time()
        limit_s = self._task.limits.call_timeout_s
        result = await self._owner.call(
            Ask(
                path=path,
                request_hash=codec.digest(name.encode(), options, *items),
                exchange=MODEL.name,
                key=model_key(self._task.lane, name),
                message=functools.partial(
                    ModelCall,
                    model=name,
                    input=items,
                    options=options,
                    sticky=f"{self._task.rollout_id}/verify",
                ),
                fields={
                    "run": self._task.run,
                    "environment": self._task.environment,
                    "lane": self._task.lane,
                },
                timeout_s=limit_s,
                on_timeout=functools.partial(_no_answer, name, limit_s),
            )
        )
        self._records.append(
            CallRecord(
                path=path,
                kind="model",
                new_items=items,
                name=name,
                request=options,
                result=result,
                started_at=started_at,
                finished_at=time.time(),
            )
        )
        return codec.read(ModelResult, result)


def _no_answer(model: str, timeout_s: float) -> bytes:
    message = f"no answer from judge model {model!r} within {timeout_s:g} s"
    return codec.pack(ModelResult(error=Failure(kind="infra", message=message)))
