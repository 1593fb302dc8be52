"""Results on the wire: what the agent compressed is compressed once, unpacked by who reads it."""

import random
from typing import Final

import msgspec
import pytest

from broker import codec
from broker.errors import Undecodable
from broker.messages import Result, Task, Trajectory, Verdict
from broker.results import encode_result, read_result
from tests.support.rollouts import result
from workers.verifier.worker import results_for

#: What nothing can compress, with something that repeats.
NOISE: Final = random.Random(7).randbytes(60_000)
CALLS: Final = (NOISE[:1000] * 200,)


def large() -> Result:
    trajectory = codec.read(Trajectory, result().trajectory)
    grown = msgspec.structs.replace(trajectory, state=NOISE + bytes(20_000))
    return msgspec.structs.replace(result(), trajectory=codec.pack(grown))


@pytest.mark.parametrize("made", [result(), large()])
@pytest.mark.parametrize("calls", [(), CALLS])
def test_a_trajectory_comes_out_as_it_was_packed(made: Result, calls: tuple[bytes, ...]) -> None:
    trajectory = codec.read(Trajectory, made.trajectory)
    task, body = codec.read(Task, trajectory.task), codec.encode(trajectory)
    (message,) = results_for(task, body, Verdict(reward=1.0, calls=calls))
    back = read_result(message.body, message.kind)
    assert back.trajectory == made.trajectory
    assert back.verdict.calls == calls


def test_a_large_one_stays_in_its_result_as_it_came() -> None:
    trajectory = codec.read(Trajectory, large().trajectory)
    body = codec.encode(trajectory)
    assert codec.is_compressed(body)
    task = codec.read(Task, trajectory.task)
    (message,) = results_for(task, body, Verdict(reward=1.0))
    assert body in message.body
    assert not codec.is_compressed(message.body)


def test_judges_conversations_are_compressed_beside_it() -> None:
    trajectory = codec.read(Trajectory, large().trajectory)
    body, task = codec.encode(trajectory), codec.read(Task, trajectory.task)
    (message,) = results_for(task, body, Verdict(reward=1.0, calls=CALLS))
    assert len(message.body) < len(body) + len(CALLS[0]) / 2


def test_one_that_is_broken_is_undecodable() -> None:
    torn = msgspec.structs.replace(result(), trajectory=codec.encode(large())[:1000])
    with pytest.raises(Undecodable):
        read_result(encode_result(torn))
