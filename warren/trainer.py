"""The online trainer's door: feed tasks, consume rewarded rollouts or whole groups, acknowledge.

    async with TrainerClient.open(run="r1", environment="calculator", model="m", repeats=8) as c:
        await c.submit({"prompt": "What is 2 + 3?", "expected_answer": "5"})
        async for group in c.groups():
            train(group)
            await c.ack(group)  # only now it never comes back

Workers serve the run as they serve every other; see producers/trainer.py for the promises.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

from broker.errors import UsageError
from broker.messages import Limits, Sampling
from broker.names import is_name
from broker.topology import LANES, ladder_queues, model_queue, tool_queue
from producers import trainer
from warren.connections import connect
from warren.models import model_of
from warren.settings import load


class TrainerClient(trainer.TrainerClient):
    """A run that a trainer feeds and consumes. Open it by URLs."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        run: str,
        environment: str,
        model: str,
        broker: str | None = None,
        redis: str | None = None,
        name: str = "trainer",
        repeats: int = 1,
        window: int = 256,
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        judge_model: str | None = None,
        files: bool = False,
    ) -> AsyncGenerator[Self, None]:
        """Connect and begin the run, or go on with it: what was not acked comes again.

        Args:
            run: 1 to 64 of `a-z 0-9 _ -`; the same name goes on after a crash of the trainer.
            environment: its name, as its workers know it.
            model: as its gateways know it; `scripted` is the environment's own policy.
            broker: AMQP URL; None: WARREN_BROKER or warren.toml. `redis` likewise.
            repeats: rollouts per task: the size of a group.
            window: at most so many rollouts are submitted or in hand, and not acked.
            judge_model: judges in the place of the environment's judge_model; a gateway must serve
                it too. `scripted` is the environment's own policy.
            files: standing sink workers write the rows too.

        Raises: UsageError, Unreachable, RunConflict.
        """
        given = {"broker": broker, "redis": redis}
        settings = load({k: v for k, v in given.items() if v is not None}).settings
        if settings.broker is None:
            raise UsageError("a trainer needs a broker: broker=URL, or WARREN_BROKER")
        for what in (run, environment, name):
            if not is_name(what):
                raise UsageError(f"{what!r}: only a-z, 0-9, _ and -, at most 64 characters")
        served = model_of(model, environment)
        judge = model_of(judge_model or model, environment)
        calls = [model_queue(lane, name) for name in {served, judge} for lane in LANES]
        waits = [*ladder_queues("model"), *ladder_queues("tool")]
        async with connect(settings) as at:
            await at.broker.declare([*calls, tool_queue(environment), *waits])
            async with cls.connect(
                at.broker,
                at.journal,
                at.runs,
                run=run,
                environment=environment,
                model=served,
                name=name,
                repeats=repeats,
                window=window,
                sampling=sampling,
                limits=limits,
                judge_model=judge_model,
                files=files,
                shared=at.shared,
            ) as client:
                yield client
