"""What is said to RabbitMQ so that queues are there, with all that they need."""

from collections.abc import Iterable
from typing import Any

from pamqp import base, commands

from broker.topology import QueueSpec, is_own


def declarations(queues: Iterable[QueueSpec], declares: bool) -> list[base.Frame]:
    """Everything that these queues need, exchanges first; of others' queues only that they exist.

    The exchanges of our own must exist too then: binding to one that does not is refused.
    """
    requests: list[base.Frame] = []
    if not declares:
        others = [q.name for q in queues if not is_own(q)]
        requests += [commands.Queue.Declare(queue=name, passive=True) for name in others]
        queues = [q for q in queues if is_own(q)]
    queues = list(queues)
    exchanges = {e for q in queues for e in (*q.needs, *(b.exchange for b in q.bindings))}
    requests += [
        commands.Exchange.Declare(exchange=e.name, exchange_type=e.type, durable=True)
        for e in sorted(exchanges, key=lambda e: e.name)
        if declares
    ]
    for queue in queues:
        arguments: dict[str, Any] = dict(queue.arguments)
        requests.append(commands.Queue.Declare(queue=queue.name, durable=True, arguments=arguments))
        requests += [
            commands.Queue.Bind(queue=queue.name, exchange=b.exchange.name, routing_key=b.key)
            for b in queue.bindings
        ]
    return requests
