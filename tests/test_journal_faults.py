"""Journals whose store dies, stalls, forgets, refuses; every wait is bounded."""

import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from broker.errors import JournalUnavailable, Unreachable
from broker.journal.base import Committed, Duplicate, Finished, Found, Go, Lost, Run, Stored, Upload
from broker.journal.redis import KEEP_S, RedisJournal
from broker.journal.redis_runs import RedisRuns
from broker.journal.runs import RunInfo, Totals
from broker.journal.sqlite import SqliteJournal, SqliteRuns
from tests.support.journals import call, new_key, taken
from tests.support.ports import free_port
from tests.support.services import Container, RedisProcess

Killable = RedisProcess | Container
_TLS = Path(__file__).parent / "support" / "tls"


@pytest.fixture
async def journal(killable_redis: Killable) -> AsyncIterator[RedisJournal]:
    journal = await RedisJournal.connect(killable_redis.url, patience_s=20.0)
    yield journal
    await journal.close()


async def command(server: Killable, *words: str | int) -> None:
    """Say something to Redis from the side."""
    client = Redis.from_url(server.url)
    await client.execute_command(*words)  # type: ignore[no-untyped-call]
    await client.aclose()


async def test_a_killed_redis_that_comes_back_empty_is_noticed_and_filled_again(
    journal: RedisJournal, killable_redis: Killable
) -> None:
    key = new_key()
    run = await taken(journal, key)
    assert isinstance(await journal.begin(call(run, key)), Go)
    assert isinstance(await journal.finish(call(run, key), b"paid"), Finished)
    await asyncio.to_thread(killable_redis.kill)
    waiting = asyncio.create_task(journal.begin(call(run, key, "1", held=1)))
    if isinstance(killable_redis, RedisProcess):
        await asyncio.to_thread(killable_redis.forget)
    else:
        await asyncio.to_thread(killable_redis.start)
        await command(killable_redis, "FLUSHALL")
    async with asyncio.timeout(20):
        assert await waiting == Lost()
    results = {"0": Stored(b"request", b"paid")}
    upload = Upload(rollout=key, epoch=run.epoch, attempt=1, inbox="inbox", results=results)
    assert await journal.upload(upload)
    assert isinstance(await journal.begin(call(run, key, "1", held=1)), Go)
    assert (await taken(journal, key)).results == results


async def test_whatever_changes_a_record_in_redis_but_a_claim_puts_its_end_off(
    journal: RedisJournal, killable_redis: Killable
) -> None:
    key = new_key()
    run = await taken(journal, key)
    assert isinstance(await journal.begin(call(run, key, "2")), Go)
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: taken(journal, key),
        lambda: journal.put_off(call(run, key, "2")),
        lambda: journal.finish(call(run, key), b"result"),
        lambda: journal.ended(key, run.epoch),
        lambda: journal.keep_first(key, "1", b"request", b"result"),
    ]
    async with Redis.from_url(killable_redis.url) as client:
        for change in changes:
            await client.expire(f"warren:{{{key}}}", 60)
            await change()
            assert await client.ttl(f"warren:{{{key}}}") >= KEEP_S


async def test_a_stall_costs_time_and_nothing_else(
    journal: RedisJournal, killable_redis: Killable
) -> None:
    key = new_key()
    run = await taken(journal, key)
    refs = [call(run, key, str(n), carrier=str(n)) for n in range(50)]
    await command(killable_redis, "CLIENT", "PAUSE", 5500, "ALL")
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        begun = [group.create_task(journal.begin(ref)) for ref in refs]
    assert all(isinstance(task.result(), Go) for task in begun)
    async with asyncio.TaskGroup() as group:
        for ref in refs:
            group.create_task(journal.finish(ref, ref.path.encode()))
    results = (await taken(journal, key)).results
    assert {path: stored.result for path, stored in results.items()} == {
        ref.path: ref.path.encode() for ref in refs
    }


async def test_a_flush_forgets_scripts_and_records_and_both_come_back(
    journal: RedisJournal, killable_redis: Killable
) -> None:
    runs = await RedisRuns.connect(killable_redis.url, patience_s=20.0)
    info = RunInfo(run="r", generation="g", environment="e", model="m", repeats=1, created_at=1.0)
    await runs.register(info)
    first = await taken(journal, "r.g/0/0")
    await command(killable_redis, "FLUSHALL")
    await command(killable_redis, "SCRIPT", "FLUSH")
    await runs.mark("r", "g", "0", [(0, 0)], Totals(completed=1))
    assert await runs.progress("r") is None
    await runs.register(info)
    progress = await runs.progress("r")
    assert progress is not None
    assert (progress.committed, progress.totals) == (1, Totals(completed=1))
    again = await taken(journal, "r.g/0/0")
    assert again.epoch != first.epoch
    await runs.close()


async def test_a_read_only_redis_is_waited_for(
    journal: RedisJournal, killable_redis: Killable
) -> None:
    key = new_key()
    await command(killable_redis, "REPLICAOF", "127.0.0.1", free_port())
    waiting = asyncio.create_task(journal.take(key, "a"))
    await asyncio.wait([waiting], timeout=0.5)
    assert not waiting.done()
    await command(killable_redis, "REPLICAOF", "NO", "ONE")
    async with asyncio.timeout(20):
        assert isinstance(await waiting, Run)


async def test_a_redis_that_stays_away_is_unavailable_in_time(killable_redis: Killable) -> None:
    journal = await RedisJournal.connect(killable_redis.url, patience_s=0.5)
    await asyncio.to_thread(killable_redis.kill)
    began = time.monotonic()
    with pytest.raises(JournalUnavailable, match="Redis at"):
        await journal.take(new_key(), "a")
    assert time.monotonic() - began < 5
    await journal.close()
    with pytest.raises(JournalUnavailable, match="closed"):
        await journal.take(new_key(), "a")


async def test_a_cancelled_operation_leaves_the_others_alone(journal: RedisJournal) -> None:
    key = new_key()
    cancelled = asyncio.create_task(journal.take(new_key(), "a"))
    other = asyncio.create_task(journal.take(key, "a"))
    await asyncio.sleep(0)
    cancelled.cancel()
    async with asyncio.timeout(10):
        assert isinstance(await other, Run)
    assert cancelled.cancelled()


async def test_nobody_at_the_address_is_said_without_the_password() -> None:
    url = f"redis://user:geheim@127.0.0.1:{free_port()}/0"
    with pytest.raises(Unreachable, match=r"\*\*\*@127.0.0.1.*is it running") as refused:
        await RedisJournal.connect(url)
    assert "geheim" not in str(refused.value)


async def test_a_redis_that_loads_its_data_is_waited_for() -> None:
    said: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while command := await reader.read(4096):
                said.append(command)
                loading = b"-LOADING Redis is loading the data\r\n"
                said_back = b"+PONG\r\n" if len(said) > 4 else loading
                writer.write(said_back * command.count(b"*"))

    async with await asyncio.start_server(answer, "127.0.0.1", port := free_port()):
        journal = await RedisJournal.connect(f"redis://127.0.0.1:{port}/0", patience_s=30)
        await journal.close()
        said.clear()
        with pytest.raises(Unreachable, match="LOADING"):
            await RedisJournal.connect(f"redis://127.0.0.1:{port}/0", patience_s=0.01)


async def test_a_wrong_password_is_refused_at_once(killable_redis: Killable) -> None:
    port = urlsplit(killable_redis.url).port
    with pytest.raises(Unreachable, match="check user and password") as refused:
        await RedisRuns.connect(f"redis://user:geheim@127.0.0.1:{port}/0")
    assert "geheim" not in str(refused.value)


async def test_what_is_no_redis_url_is_said() -> None:
    with pytest.raises(Unreachable, match="not a Redis URL"):
        await RedisJournal.connect("http://127.0.0.1/")


WRITER = """
import asyncio, sys
from broker.journal.base import CallRef
from broker.journal.sqlite import SqliteJournal

async def main():
    journal = await SqliteJournal.open(sys.argv[1])
    await journal.renew_lease("dead")
    run = await journal.take("r.g/0/0", "dead")
    async def one(n):
        ref = CallRef(rollout="r.g/0/0", epoch=run.epoch, path=str(n), carrier="c",
                      request_hash=b"h", held=0)
        await journal.begin(ref)
        await journal.finish(ref, b"x" * 1000)
        sys.stdout.write(f"{n}\\n")
        sys.stdout.flush()
    for start in range(0, 1000000, 20):
        async with asyncio.TaskGroup() as group:
            for n in range(start, start + 20):
                group.create_task(one(n))

asyncio.run(main())
"""


async def test_what_sqlite_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    async with asyncio.timeout(30):
        acknowledged = [int(await writer.stdout.readline()) for _ in range(500)]
        writer.kill()
        rest = await writer.stdout.read()
        await writer.wait()
    acknowledged += [int(line) for line in rest.split(b"\n")[:-1]]
    journal = await SqliteJournal.open(path)
    run = await taken(journal, "r.g/0/0", "next")  # the dead owner's lease died with it
    assert {str(n) for n in acknowledged} <= set(run.results)
    assert isinstance(await journal.begin(call(run, "r.g/0/0", "new", held=500)), Go)
    await journal.committed(["r.g/0/0"])
    await journal.close()
    journal = await SqliteJournal.open(path)
    assert await journal.take("r.g/0/0", "a") == Committed()
    await journal.close()


async def test_a_call_that_finished_ends_idle_takes_for_later_processes_too(tmp_path: Path) -> None:
    path, key = tmp_path / "journal.sqlite", new_key()
    seen = []
    for finishes in (False, False, True, False, False):
        journal = await SqliteJournal.open(path)
        run = await taken(journal, key)
        seen.append(run.idle_takes)
        if finishes:
            await journal.finish(call(run, key), b"result")
        await journal.close()
    assert seen == [1, 2, 3, 1, 2]


async def test_a_claim_that_is_not_written_holds_while_others_write(tmp_path: Path) -> None:
    path, key = tmp_path / "journal.sqlite", new_key()
    journal, others = await SqliteJournal.open(path), await SqliteRuns.open(path)
    run = await taken(journal, key)
    await journal.begin(replace(call(run, key), lasting=False))
    await others.published("any", "g", 1, complete=False)
    second = replace(call(run, key, carrier="other"), lasting=False)
    assert await journal.begin(second) == Duplicate()
    await journal.finish(call(run, key), b"result")
    assert await journal.begin(second) == Found(b"result", "inbox")
    await others.close()
    await journal.close()


async def test_the_next_process_knows_what_was_begun_where_that_matters(tmp_path: Path) -> None:
    path, key = tmp_path / "journal.sqlite", new_key()
    starts = []
    for _ in range(3):
        journal = await SqliteJournal.open(path)
        run = await taken(journal, key)
        tool, model = call(run, key, "tool"), replace(call(run, key, "model"), lasting=False)
        begun = [await journal.begin(tool), await journal.begin(model)]
        starts.append([each.starts for each in begun if isinstance(each, Go)])
        await journal.close()
    assert starts == [[1, 1], [2, 1], [3, 1]]


async def test_a_file_that_is_no_journal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(Unreachable, match="cannot open the journal"):
        await SqliteJournal.open(path)
    with pytest.raises(Unreachable, match="is its directory there"):
        await SqliteJournal.open(tmp_path / "nowhere" / "journal.sqlite")


async def test_one_impossible_operation_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    journal = await SqliteJournal.open(tmp_path / "journal.sqlite")
    key = new_key()
    run = await taken(journal, key)
    impossible = Upload(rollout=key, epoch=run.epoch, attempt=1, inbox="\ud800", results={})
    bad = asyncio.create_task(journal.upload(impossible))
    good = asyncio.create_task(journal.begin(call(run, key)))
    assert isinstance(await good, Go)
    with pytest.raises(UnicodeEncodeError):
        await bad
    await journal.close()


async def test_closing_ends_what_waits_for_a_redis_that_does_not_come_back(
    journal: RedisJournal, killable_redis: Killable
) -> None:
    await asyncio.to_thread(killable_redis.kill)
    waiting = [asyncio.create_task(journal.take(new_key(), "inbox")) for _ in range(3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await journal.close()
        await asyncio.wait(waiting)
    assert all(isinstance(task.exception(), JournalUnavailable) for task in waiting)


async def test_tls_password_and_database_come_from_the_url() -> None:
    """A listener with our own certificate hears what a client says before its first command."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_TLS / "certificate.pem", _TLS / "key.pem")
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := await reader.read(1000):
            heard.append(words)
            writer.write(b"+OK\r\n" * words.count(b"*"))
        writer.close()

    server = await asyncio.start_server(answer, "localhost", ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        base = f"rediss://me:p%40ss@localhost:{port}/3"
        journal = await RedisJournal.connect(f"{base}?ssl_ca_certs={_TLS}/certificate.pem")
        await journal.close()
        said = b"".join(heard)
        assert said.index(b"AUTH\r\n$2\r\nme\r\n$4\r\np@ss") < said.index(b"SELECT\r\n$1\r\n3")
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await RedisJournal.connect(base)
