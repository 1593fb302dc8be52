"""Where everything goes: exchanges, queues and their arguments, as data.

Limits are queue *arguments*, since AMQP cannot set policies and a missing policy on a fresh broker
would drop poison silently. An argument that must change needs a new `VERSION`: queue names carry
it, so that a new release never meets an old queue with other arguments (406).

Kinds of queue (facts and sources: ../shared/reference/queues.md, sections 2 and 5):

* quorum, for what no timeout can recover: tasks, trajectories, results, ladders, dead letters;
* durable classic, for what the journal and the owner's sweep recover: calls and replies. Their
  messages are transient: a broker that is restarted has forgotten them, and owners notice.

Every process declares what it uses; `WARREN_TOPOLOGY=external` forbids it (least privilege).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from broker.names import escape

VERSION: Final = "v1"

Lane = Literal["resume", "normal", "bulk", "suspect"]
#: The lanes that ordinary workers consume, in the order of their claim on slots: moved and
#: given-back rollouts go on at once; `enqueue` without --wait does not delay an interactive run.
LANES: Final[tuple[Lane, ...]] = ("resume", "normal", "bulk")

#: Waits longer than 2 s are spent in these queues, not in a slot. One fixed TTL per queue: messages
#: expire head-first, so mixed TTLs would block each other.
LADDER_S: Final[Mapping[str, float]] = {"5s": 5.0, "30s": 30.0, "5m": 300.0}

#: Standing sinks consume this many queues; fixed, since another number would route ids elsewhere.
SINK_SHARDS: Final = 4

#: Returned deliveries raise a quorum queue's count up to RabbitMQ 4.2, and fate is shared by all
#: that a crashed worker held; poison is decided by Warren's own counts, so this is only a backstop.
TASK_DELIVERY_LIMIT: Final = 1000
WORK_DELIVERY_LIMIT: Final = 20
RESULT_DELIVERY_LIMIT: Final = 1_000_000
MAX_READY: Final = 200_000

#: A copy in a held queue that nobody holds goes back to its tasks after this long.
HELD_TTL_S: Final = 10.0
#: An unused held queue expires with its messages *not* dead-lettered, so far beyond any outage.
HELD_EXPIRES_S: Final = 86_400.0

ExchangeType = Literal["direct", "topic", "fanout"]
Argument = str | int | bool


@dataclass(frozen=True, slots=True)
class ExchangeSpec:
    """A durable exchange."""

    name: str
    type: ExchangeType = "direct"


@dataclass(frozen=True, slots=True)
class Binding:
    """`queue` gets what `exchange` receives under `key`."""

    exchange: ExchangeSpec
    key: str = ""

    def takes(self, exchange: str, key: str) -> bool:
        """Whether what is published to `exchange` under `key` gets there."""
        if self.exchange.name != exchange:
            return False
        if self.exchange.type == "topic":
            return topic_matches(self.key.split("."), key.split("."))
        return self.exchange.type == "fanout" or self.key == key


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """AMQP's topic rule: `*` is one word, `#` any number of them."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(topic_matches(pattern[1:], words[i:]) for i in range(len(words) + 1))
    return bool(words) and pattern[0] in {"*", words[0]} and topic_matches(pattern[1:], words[1:])


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A durable queue, how it is bound, and every exchange that its arguments name."""

    name: str
    bindings: tuple[Binding, ...]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    needs: tuple[ExchangeSpec, ...] = ()
    """Exchanges that must exist though nothing of this queue is bound to them (dead letters)."""


def _exchange(stage: str, type_: ExchangeType = "direct") -> ExchangeSpec:
    return ExchangeSpec(f"warren.x.{VERSION}.{stage}", type_)


TASK: Final = _exchange("task")
HELD: Final = _exchange("held")
MODEL: Final = _exchange("model")
TOOL: Final = _exchange("tool")
REPLY: Final = _exchange("reply")
VERIFY: Final = _exchange("verify")
RESULT: Final = _exchange("result", "topic")
DEAD: Final = _exchange("dead", "topic")
KEPT: Final = _exchange("kept")
CONTROL: Final = _exchange("control", "fanout")

Stage = Literal["task", "model", "tool", "verify"]
STAGES: Final[Mapping[Stage, ExchangeSpec]] = {
    "task": TASK,
    "model": MODEL,
    "tool": TOOL,
    "verify": VERIFY,
}


_OWN: Final = frozenset({"held", "session", "inbox", "result", "control"})


def queue_name(*words: str) -> str:
    """`warren.q.v1.task.normal.calculator`; words must be free of dots."""
    return ".".join(("warren.q", VERSION, *words))


def is_own(queue: QueueSpec) -> bool:
    """Whether a process makes it for itself or its run, so that nobody can have declared it."""
    return queue.name.split(".")[3] in _OWN


def ladder_exchange(stage: Stage, delay: str) -> ExchangeSpec:
    """Where a message of `stage` is published to come back after `delay` under its own key."""
    return _exchange(f"retry.{stage}.{delay}", "fanout")


def _quorum(dead: ExchangeSpec | None, **arguments: Argument) -> dict[str, Argument]:
    base: dict[str, Argument] = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    if dead is not None:
        base["x-dead-letter-exchange"] = dead.name
        base["x-dead-letter-strategy"] = "at-least-once"
    return base | {"x-" + k.replace("_", "-"): v for k, v in arguments.items()}


def _kept() -> dict[str, Argument]:
    """People look at these and give them back; 4.x would drop a message at the 20th look."""
    return _quorum(None, delivery_limit=RESULT_DELIVERY_LIMIT)


def _classic(**arguments: Argument) -> dict[str, Argument]:
    named = {"x-" + k.replace("_", "-"): v for k, v in arguments.items()}
    return {"x-queue-type": "classic"} | named


def task_key(lane: Lane, environment: str) -> str:
    """Routing key of a task."""
    return f"{lane}.{environment}"


def model_key(lane: Lane, model: str) -> str:
    """Routing key of a model call."""
    return f"{lane}.{escape(model)}"


def call_queue(exchange: str, key: str) -> str:
    """Name of the queue for a call that is published so: a model's, a tool's or a session's."""
    own = key.startswith("session.")
    return queue_name(key) if own else f"{exchange.replace('.x.', '.q.', 1)}.{key}"


def result_key(who: str, run: str, shard: int) -> str:
    """Routing key of a finished rollout for one audience: `collect`, `sink` or a trainer's name."""
    return f"{who}.{run}.{shard}"


def task_queue(lane: Lane, environment: str) -> QueueSpec:
    """Tasks of one environment and lane; `suspect` holds what may have killed its worker."""
    return QueueSpec(
        queue_name("task", lane, environment),
        (Binding(TASK, task_key(lane, environment)),),
        _quorum(DEAD, delivery_limit=TASK_DELIVERY_LIMIT, max_length=MAX_READY),
        needs=(DEAD,),
    )


def held_queue(worker_id: str, environment: str) -> QueueSpec:
    """Copies of the rollouts that this worker runs; unheld ones go on in the `resume` lane."""
    return QueueSpec(
        queue_name("held", worker_id, environment),
        (Binding(HELD, f"{worker_id}.{environment}"),),
        _quorum(
            TASK,
            dead_letter_routing_key=task_key("resume", environment),
            message_ttl=int(HELD_TTL_S * 1000),
            expires=int(HELD_EXPIRES_S * 1000),
        ),
        needs=(TASK,),
    )


def model_queue(lane: Lane, model: str) -> QueueSpec:
    """Model calls, one queue per model and lane, for the gateways that know the model."""
    return QueueSpec(
        queue_name("model", lane, escape(model)),
        (Binding(MODEL, model_key(lane, model)),),
        _classic(dead_letter_exchange=DEAD.name, max_length=MAX_READY, overflow="reject-publish"),
        needs=(DEAD,),
    )


def tool_queue(environment: str) -> QueueSpec:
    """Tool calls of one environment."""
    return QueueSpec(
        queue_name("tool", environment),
        (Binding(TOOL, environment),),
        _classic(dead_letter_exchange=DEAD.name, max_length=MAX_READY, overflow="reject-publish"),
        needs=(DEAD,),
    )


def session_queue(worker_id: str) -> QueueSpec:
    """Tool calls addressed to the one worker that owns a sticky session."""
    return QueueSpec(
        queue_name("session", worker_id),
        (Binding(TOOL, f"session.{worker_id}"),),
        _classic(
            dead_letter_exchange=DEAD.name,
            max_length=MAX_READY,
            overflow="reject-publish",
            expires=600_000,
        ),
        needs=(DEAD,),
    )


def inbox(worker_id: str) -> QueueSpec:
    """Replies to one worker. They are hints, so the oldest may be dropped and all may expire.

    Durable and non-exclusive with an expiry: exclusive queues of a fixed name race with their own
    deletion at a reconnect, transient ones are refused by RabbitMQ 4.3.
    """
    return QueueSpec(
        queue_name("inbox", worker_id),
        (Binding(REPLY, worker_id),),
        _classic(expires=600_000, message_ttl=600_000, max_length=20_000, overflow="drop-head"),
    )


def verify_queue(environment: str) -> QueueSpec:
    """Trajectories to score."""
    return QueueSpec(
        queue_name("verify", environment),
        (Binding(VERIFY, environment),),
        _quorum(DEAD, delivery_limit=WORK_DELIVERY_LIMIT * 50, max_length=MAX_READY),
        needs=(DEAD,),
    )


def sink_queue(shard: int) -> QueueSpec:
    """One standing sink shard, for all runs. Its single active consumer is an optimisation only."""
    return QueueSpec(
        queue_name("sink", str(shard)),
        (Binding(RESULT, f"sink.*.{shard}"),),
        _quorum(DEAD, delivery_limit=RESULT_DELIVERY_LIMIT, single_active_consumer=True),
        needs=(DEAD,),
    )


def run_results_queue(who: str, run: str) -> QueueSpec:
    """All finished rollouts of one run for one audience: its collector or a trainer."""
    return QueueSpec(
        queue_name("result", who, run),
        (Binding(RESULT, f"{who}.{run}.*"),),
        _quorum(DEAD, delivery_limit=RESULT_DELIVERY_LIMIT),
        needs=(DEAD,),
    )


def ladder_queues(stage: Stage) -> Sequence[QueueSpec]:
    """The waiting rooms of one stage; a message comes back to it under the key it was sent with."""
    return [
        QueueSpec(
            queue_name("retry", stage, delay),
            (Binding(ladder_exchange(stage, delay)),),
            _quorum(STAGES[stage], message_ttl=int(seconds * 1000)),
            needs=(STAGES[stage],),
        )
        for delay, seconds in LADDER_S.items()
    ]


def dead_queue() -> QueueSpec:
    """What nobody could handle, until a sink or collector has settled its account."""
    return QueueSpec(queue_name("dead"), (Binding(DEAD, "#"),), _kept())


def kept_queue() -> QueueSpec:
    """Raw settled dead letters, for `warren dlq`."""
    return QueueSpec(queue_name("kept"), (Binding(KEPT, "kept"),), _kept())


def control_queue(worker_id: str) -> QueueSpec:
    """Broadcasts (pause, policy update): hints to look at the record in the journal now."""
    return QueueSpec(
        queue_name("control", worker_id),
        (Binding(CONTROL),),
        _classic(expires=300_000, message_ttl=60_000, max_length=100, overflow="drop-head"),
    )
