"""Names on the wire: reversible, one word, stable."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import names


@given(text=st.text(max_size=80))
def test_escaping_is_reversible_and_leaves_one_word(text: str) -> None:
    word = names.escape(text)
    assert names.unescape(word) == text
    assert not set(word) & set("./#* ")
    assert word.isascii()


@given(one=st.text(max_size=20), other=st.text(max_size=20))
def test_two_names_never_share_a_word(one: str, other: str) -> None:
    assert (names.escape(one) == names.escape(other)) == (one == other)


def test_plain_names_stay_readable() -> None:
    assert names.escape("gpt-4o_mini") == "gpt-4o_mini"
    assert names.escape("Qwen/Qwen2.5") == "Qwen:2fQwen2:2e5"


@pytest.mark.parametrize("text", ["calculator", "a", "run-1_b", "x" * 64])
def test_a_name_may_be(text: str) -> None:
    assert names.is_name(text)


@pytest.mark.parametrize("text", ["", "A", "a.b", "a b", "x" * 65, "é", "a\n", "a/b"])
def test_a_name_may_not_be(text: str) -> None:
    assert not names.is_name(text)


@given(rollout=st.text(max_size=50), shards=st.integers(1, 64))
def test_a_shard_is_in_range_and_always_the_same(rollout: str, shards: int) -> None:
    shard = names.shard_of(rollout, shards)
    assert 0 <= shard < shards
    assert shard == names.shard_of(rollout, shards)


def test_a_rollout_keeps_its_shard_in_every_version() -> None:
    found = [names.shard_of(names.rollout_id("run", i, 0), 4) for i in range(8)]
    assert found == SHARDS_OF_V1


SHARDS_OF_V1 = [0, 1, 0, 0, 1, 2, 0, 0]


def test_shards_fill_evenly() -> None:
    counts = [0] * 4
    for i in range(4000):
        counts[names.shard_of(f"run/{i}/0", 4)] += 1
    assert min(counts) > 850


def test_worker_ids_are_unique() -> None:
    ids = {names.new_worker_id("agent") for _ in range(100)}
    assert len(ids) == 100
    assert all(names.is_name(worker) for worker in ids)


def test_a_new_generation_is_another_rollout_to_the_journal() -> None:
    assert names.journal_key("run", "g1", 3, 0) != names.journal_key("run", "g2", 3, 0)


def test_ids_never_come_again_whatever_is_seeded() -> None:
    made = set()
    for _ in range(1000):
        random.seed(1)
        made.add(names.new_id())
    assert len(made) == 1000
    assert all(len(one) == 32 and int(one, 16) < 1 << 128 for one in made)


def test_a_forked_child_makes_other_ids() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, names.new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 32).decode() != names.new_id()
    os.close(reading)
    os.close(writing)
