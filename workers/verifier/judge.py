"""A verifier's calls: judge models over the model queue, journaled like an agent's.

Each call has a path `verify.<n>` that depends only on what the reward functions ask for, in which
order; never on which vote was answered first. A replay therefore finds every finished call.
"""

import asyncio
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker import codec
from broker.messages import CallRecord, Failure, ModelCall, ModelResult, Task, waited_too_long
from broker.topology import MODEL, model_key, model_queue
from workers.owner import Owner
from workers.rewards import cause_of
from workers.spec import Combine, Item, JudgeVerdict, Vote, message_text
from workers.verifier.verdicts import Malformed, combined, complaint, question, read_vote
from workers.waiting import Ask


class JudgeFailed(Exception):
    """The judge model could not answer, or gave no usable verdict."""


@dataclass(frozen=True, slots=True)
class _Ballot:
    """One vote to be had: what is asked, and the paths of its tries."""

    model: str
    asked: str
    criteria: Mapping[str, str]
    paths: Sequence[str]
    options: Mapping[str, Any]


class Judge:
    """What reward functions get as `ctx`: see `VerifierContext`."""

    def __init__(self, owner: Owner, task: Task, model: str | None) -> None:
        """`model` is the environment's judge; the task's, if its run named one, stands before."""
        self._owner = owner
        self._task = task
        self._model = task.judge_model or model
        self._next = 0
        self._records: dict[str, CallRecord | None] = {}
        self._verdicts: dict[bytes, JudgeVerdict] = {}

    @property
    def records(self) -> tuple[bytes, ...]:
        """The finished calls, packed, in the order of their paths."""
        return tuple(codec.pack(record) for record in self._records.values() if record is not None)

    async def judge(
        self, prompt: str | Sequence[Item], *, model: str | None = None, **options: Any
    ) -> str:
        """See VerifierContext. Raises JudgeFailed."""
        items = [_message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        [path] = self._claim(1)
        return await self._ask(path, self._name(model), items, options)

    async def verdict(
        self,
        template: str,
        fields: Mapping[str, object],
        *,
        criteria: Mapping[str, str],
        votes: int = 1,
        combine: Combine = "mean",
        retries: int = 2,
        model: str | None = None,
        **options: Any,
    ) -> JudgeVerdict:
        """See VerifierContext. Raises JudgeFailed, and ValueError for a bad template."""
        if votes < 1 or retries < 0:
            raise ValueError(f"votes={votes} must be 1 or more, retries={retries} 0 or more")
        asked = question(template, fields, criteria)
        name = self._name(model)
        key = codec.digest(codec.pack([asked, list(criteria), name, votes, combine, options]))
        if key not in self._verdicts:
            paths = self._claim(votes * (retries + 1))
            ballots = [
                _Ballot(name, asked, criteria, paths[n::votes], options) for n in range(votes)
            ]
            self._verdicts[key] = combined(await self._poll(ballots), combine)
        return self._verdicts[key]

    async def _poll(self, ballots: Sequence[_Ballot]) -> list[Vote]:
        """All votes. None is cut short by another's failure: what was paid for is recorded."""
        try:
            async with asyncio.TaskGroup() as group:
                polled = [group.create_task(self._vote(ballot)) for ballot in ballots]
        except BaseExceptionGroup as e:
            raise cause_of(e) from e
        votes = [task.result() for task in polled]
        for vote in votes:
            if isinstance(vote, JudgeFailed):
                raise vote
        return [vote for vote in votes if isinstance(vote, Vote)]

    async def _vote(self, ballot: _Ballot) -> Vote | JudgeFailed:
        items = [_message("user", ballot.asked)]
        problem = ""
        for path in ballot.paths:
            try:
                text = await self._ask(path, ballot.model, items, ballot.options)
                return read_vote(text, ballot.criteria)
            except JudgeFailed as e:
                return e
            except Malformed as e:
                problem = str(e)
                items += [_message("assistant", text), _message("user", complaint(e))]
        tries = len(ballot.paths)
        return JudgeFailed(f"{ballot.model!r} gave no usable verdict in {tries} tries: {problem}")

    def _name(self, model: str | None) -> str:
        name = model or self._model
        if name is None:
            raise JudgeFailed("the environment names no judge_model, and no --judge-model is given")
        return f"scripted/{self._task.environment}" if name == "scripted" else name

    def _claim(self, count: int) -> list[str]:
        """The next paths, taken before anything is awaited."""
        first, self._next = self._next, self._next + count
        paths = [f"verify.{n}" for n in range(first, self._next)]
        self._records |= dict.fromkeys(paths)
        return paths

    async def _ask(
        self, path: str, model: str, items: Sequence[Item], options: Mapping[str, Any]
    ) -> str:
        packed = tuple(codec.pack(item) for item in items)
        result = await self._call(path, model, packed, codec.pack(dict(options)))
        if result.error is not None:
            raise JudgeFailed(result.error.message)
        output: list[Item] = codec.unpack(result.items) if result.items else []
        return "".join(message_text(i) for i in output if i.get("type") == "message")

    async def _call(
        self, path: str, model: str, items: tuple[bytes, ...], options: bytes
    ) -> ModelResult:
        started_at = time.time()
        limit_s = self._task.limits.call_timeout_s
        result = await self._owner.call(
            Ask(
                path=path,
                request_hash=codec.digest(model.encode(), options, *items),
                exchange=MODEL.name,
                key=model_key(self._task.lane, model),
                message=functools.partial(
                    ModelCall,
                    run=self._task.run,
                    environment=self._task.environment,
                    lane=self._task.lane,
                    model=model,
                    input=items,
                    options=options,
                    sticky=f"{self._task.rollout_id}/verify",
                ),
                timeout_s=limit_s,
                on_timeout=functools.partial(_no_answer, model, limit_s),
                wait_s=self._task.limits.waits.model_s,
                on_wait=functools.partial(_late, self._task.limits.waits.model_s),
                queue=model_queue(self._task.lane, model),
            )
        )
        self._records[path] = CallRecord(
            path=path,
            kind="model",
            new_items=items,
            name=model,
            request=options,
            result=result,
            started_at=started_at,
            finished_at=time.time(),
        )
        return codec.read(ModelResult, result)


def _message(role: str, text: str) -> Item:
    return {"role": role, "content": text}


def _late(wait_s: float | None) -> bytes:
    return codec.pack(ModelResult(error=waited_too_long("model", wait_s)))


def _no_answer(model: str, timeout_s: float) -> bytes:
    message = f"no answer from judge model {model!r} within {timeout_s:g} s"
    return codec.pack(ModelResult(error=Failure(kind="infra", message=message)))
