"""Round trips, and bodies that somebody hostile or broken sent: bounded memory, a typed error."""

import functools
import tracemalloc
from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import codec
from broker.errors import TooLarge, Undecodable, WireError
from broker.messages import Limits, ModelCall, Reply, Result, Sampling, Task, Trajectory, Verdict

texts = st.text(max_size=40)
blobs = st.binary(max_size=200)
floats = st.floats(allow_nan=False, allow_infinity=False)

tasks = st.builds(
    Task,
    run=texts,
    generation=texts,
    task_index=st.integers(0, 2**31),
    repeat=st.integers(0, 1000),
    environment=texts,
    model=texts,
    row=blobs,
    sampling=st.builds(
        Sampling, temperature=st.none() | floats, seed=st.none() | st.integers(0, 9)
    ),
    limits=st.builds(Limits, max_steps=st.integers(1, 99), max_total_tokens=st.none()),
    audiences=st.lists(texts, max_size=3).map(tuple),
    lane=st.sampled_from(["resume", "normal", "bulk", "suspect"]),
    system_prompt=st.none() | texts,
)
replies = st.builds(
    Reply,
    rollout=texts,
    epoch=texts,
    path=texts,
    kind=st.sampled_from(["result", "journal_lost", "gone", "mismatch"]),
    result=blobs,
)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | floats | texts | blobs,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
TASK = Task(run="r", generation="g", task_index=0, repeat=0, environment="e", model="m", row=b"{}")


@given(message=tasks | replies)
def test_every_message_comes_back_as_it_was(message: Task | Reply) -> None:
    type_ = type(message)
    assert codec.decode(type_, codec.encode(message), codec.kind_of(type_)) == message


@given(value=plain)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    assert codec.unpack(codec.pack(value)) == value


@given(value=plain)
def test_what_was_read_from_json_is_packed_to_the_same_bytes_as_other_plain_data(
    value: Any,
) -> None:
    assert codec.pack_json(value) == codec.pack(value)


@given(values=st.lists(plain, max_size=20))
def test_values_packed_one_by_one_come_back_at_once(values: list[Any]) -> None:
    assert codec.unpack_each([codec.pack(value) for value in values]) == values


@pytest.mark.parametrize(
    "bodies",
    [[b""], [b"\x01", b""], [b"\x01\x02"], [b"\x91"], [b"\x91" * 40 + b"\x01", b"\x01"]],
)
def test_what_is_not_one_value_each_is_refused(bodies: list[bytes]) -> None:
    with pytest.raises(Undecodable):
        codec.unpack_each(bodies)


@pytest.mark.parametrize(
    "body",
    [
        b"\x81\xa1a\x91\x81\x01\x02",  # a key that is no text
        b"\x81\xa1a\x91\xd6\xff\x00\x00\x00\x00",  # a date
        b"\x81\xa1a\x91\xc7\x01\x05x",  # an extension type
        b"\x91" * 40 + b"\x01",
        b"\xdf\x00\x01\x11\x70" + b"".join(msgpack.packb(str(n)) + b"\x01" for n in range(70_000)),
    ],
)
def test_data_that_is_not_plain_is_refused_wherever_it_stands(body: bytes) -> None:
    with pytest.raises(Undecodable):
        codec.unpack(body)


@given(size=st.integers(0, 200_000))
@settings(max_examples=20)
def test_a_large_body_is_compressed_and_comes_back(size: int) -> None:
    task = msgspec.structs.replace(TASK, row=b"a" * size)
    body = codec.encode(task)
    assert len(body) < codec.COMPRESS_ABOVE_BYTES + 1024
    assert codec.decode(Task, body) == task


@given(body=st.binary(max_size=2000))
@settings(max_examples=300)
def test_any_bytes_give_a_message_or_a_wire_error(body: bytes) -> None:
    for type_ in (Task, ModelCall, Reply, Trajectory, Result):
        try:
            codec.decode(type_, body)
        except WireError:
            continue


@given(message=tasks, at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=300)
def test_a_flipped_bit_gives_a_message_or_a_wire_error(message: Task, at: int, bit: int) -> None:
    body = bytearray(codec.encode(message))
    body[at % len(body)] ^= 1 << bit
    try:
        codec.decode(Task, bytes(body))
    except WireError:
        return


@given(message=tasks, keep=st.integers(0, 10_000))
def test_a_body_that_was_cut_is_undecodable(message: Task, keep: int) -> None:
    body = codec.encode(message)
    with pytest.raises(WireError):
        codec.decode(Task, body[: keep % len(body)])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G elements
        b"\xdf\xff\xff\xff\xff",  # a map of 4 G
        b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes
        b"\xdb\xff\xff\xff\xff",  # 4 GB of text
        b"\xc9\x00\x00\x00\x04\x01abcd",  # an extension type
        b"\xdd\x00\x0f\xff\xff" * 200,  # nested arrays that each ask for 1 M
        b"\xdc\xff\xff" * 200,  # and for as many as two bytes can say
        b"\x9f" + (b"\xdc\xff\xff" * 4 + b"\x01") * 14,
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\x81\x01\x02",  # a key that is no text
        b"\xa2\xff\xfe",  # text that is no UTF-8
        msgpack.packb([1]) + b"rest",
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd" + b"\x00" * 50,
    ],
)
def test_a_hostile_body_is_refused_in_bounded_memory(body: bytes) -> None:
    tracemalloc.start()
    for read in (functools.partial(codec.decode, Task), codec.unpack):
        with pytest.raises(WireError):
            read(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 1024 * 1024


def test_a_compression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(codec.MAX_UNPACKED_BYTES + 1))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        codec.decode(Task, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


def test_a_bomb_that_hides_its_size_is_refused() -> None:
    streamed = zstandard.ZstdCompressor().compressobj()
    bomb = streamed.compress(bytes(1 << 20)) + streamed.flush()
    with pytest.raises(WireError):
        codec.decode(Task, bomb)


def test_a_body_above_the_limit_is_refused_both_ways() -> None:
    with pytest.raises(TooLarge):
        codec.decode(Task, bytes(codec.MAX_BODY_BYTES + 1))
    noise = b"".join(hash((i, 7)).to_bytes(8, "big", signed=True) for i in range(2_200_000))
    with pytest.raises(TooLarge):
        codec.encode(msgspec.structs.replace(TASK, row=noise))


def test_another_version_is_never_guessed_at() -> None:
    with pytest.raises(Undecodable, match=r"task\.v2"):
        codec.decode(Task, codec.encode(TASK), "task.v2")
    with pytest.raises(Undecodable):
        codec.decode(Task, codec.encode(TASK), codec.kind_of(Reply))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Undecodable, match="generation"):
        codec.decode(Task, codec.pack({"run": "r"}))


def test_what_is_no_message_cannot_be_packed() -> None:
    with pytest.raises(Undecodable):
        codec.pack({"when": object()})


@dataclass(frozen=True)
class _Deep:
    inner: object


def test_nesting_is_bounded_when_packing_too() -> None:
    value: object = 0
    for _ in range(5000):
        value = [value]
    with pytest.raises(Undecodable):
        codec.pack(_Deep(value))


def test_a_verdict_keeps_its_null_reward() -> None:
    verdict = Verdict(reward=None)
    assert codec.read(Verdict, codec.pack(verdict)) == verdict
