"""The HTTP client under the gateway: what servers send, and what becomes of a request then."""

import asyncio
import contextlib
import gzip
import random
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.masking import Secret
from tests.support import provider
from tests.support.ports import free_port
from workers.model_gateway.backend import Retryable
from workers.model_gateway.http_client import HttpClient
from workers.model_gateway.http_connection import Answer, Broken

TLS = Path(__file__).parent / "support" / "tls"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def sends(data: bytes, *, then: str = "waits", pause_s: float = 0.0) -> provider.Behaviour:
    """Send these bytes, all at once or one by one, then wait, close or reset."""

    async def behave(_: provider.Seen, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for piece in [data] if not pause_s else [data[n : n + 1] for n in range(len(data))]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        if then == "resets":
            provider.reset(writer)
        elif then == "closes":
            writer.close()

    return behave


@contextlib.asynccontextmanager
async def client(
    *script: provider.Behaviour,
) -> AsyncIterator[tuple[HttpClient, provider.FakeProvider]]:
    """A client of a server that does this, then answers `ok`."""
    async with provider.running(sends(OK), script) as server:
        http = HttpClient(server.url)
        try:
            yield http, server
        finally:
            await http.close()


async def ask(*script: provider.Behaviour) -> Answer:
    async with client(*script) as (http, _), asyncio.timeout(10):
        return await http.request("POST", "/v1/x", b"{}")


@pytest.mark.parametrize("pause_s", [0.0, 0.0001])
@pytest.mark.parametrize(
    "data",
    [
        OK,
        b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK,
        CHUNKED + b"1\r\no\r\n1;x=y\r\nk\r\n0\r\ntrailer: 1\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length:2\r\n\r\nok",
        b"HTTP/1.1 200 \r\ncontent-length: 22\r\ncontent-encoding: gzip\r\n\r\n"
        + gzip.compress(b"ok", mtime=0),
    ],
)
async def test_an_answer_is_read_in_every_form_however_it_is_cut(
    data: bytes, pause_s: float
) -> None:
    answer = await ask(sends(data, pause_s=pause_s))
    assert (answer.status, answer.body) == (200, b"ok")


LARGE = random.Random(0).randbytes(300_000)


def large_head(*more: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"content-length: 300000", *more, b"\r\n"])


async def test_large_answers_are_whole_and_leave_their_connection_fit_for_the_next() -> None:
    head = large_head()
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    async with client(*[sends(early + head + LARGE), sends(OK)] * 3) as (http, server):
        connections = counting(server)
        for _ in range(3):
            assert (await http.request("POST", "/v1/x")).body == LARGE
            assert (await http.request("POST", "/v1/x")).body == b"ok"
        assert connections() == 1


async def test_large_answers_at_a_time_do_not_mix() -> None:
    answers = [bytes([n]) * 300_000 for n in range(1, 9)]
    async with client(*(sends(large_head() + answer) for answer in answers)) as (http, _):
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(http.request("POST", "/v1/x")) for _ in answers]
        assert sorted(bytes(task.result().body) for task in asked) == answers


async def test_a_large_answer_that_its_server_ends_with_is_its_connections_last() -> None:
    last = large_head(b"connection: close") + LARGE
    async with client(sends(last, then="waits")) as (http, server):
        assert (await http.request("POST", "/v1/x")).body == LARGE
        connections = counting(server)
        async with asyncio.timeout(5):
            while connections():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_what_follows_a_large_answer_unasked_is_no_answer_to_the_next_request() -> None:
    async with client(sends(large_head() + LARGE + OK.replace(b"ok", b"no"))) as (http, _):
        assert (await http.request("POST", "/v1/x")).body == LARGE
        assert (await http.request("POST", "/v1/x")).body == b"ok"


async def test_a_large_answer_that_is_compressed_is_unpacked() -> None:
    packed = gzip.compress(LARGE, mtime=0)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    assert (await ask(sends(head + packed))).body == LARGE


@pytest.mark.parametrize("then", ["closes", "resets"])
async def test_a_large_answer_that_breaks_off_is_none(then: str) -> None:
    with pytest.raises(Broken, match="broke off after"):
        await ask(sends(large_head() + LARGE[:-1], then=then))


async def test_what_the_reader_of_an_answer_raises_is_raised_and_costs_no_connection() -> None:
    async with client(sends(OK), sends(large_head() + LARGE)) as (http, server):
        connections = set()
        for body in (b"ok", LARGE):
            with pytest.raises(Odd) as raised:
                await http.ask("POST", "/v1/x", b"", odd)
            assert raised.value.args == (body,)
            connections |= server._connections
        assert await http.ask("POST", "/v1/x", b"", lambda answer: answer.status) == 200
        assert len(connections | server._connections) == 1
        assert len(server.seen) == 3


class Odd(Exception):
    """What a reader found."""


def odd(answer: Answer) -> None:
    raise Odd(bytes(answer.body))


async def test_a_request_that_is_cancelled_takes_its_connection_along() -> None:
    async with client(sends(b"HTTP/1.1 200 OK\r\n"), sends(OK)) as (http, server):
        asked = asyncio.create_task(http.ask("POST", "/v1/x", b"", odd))
        await server.requests(1)
        asked.cancel()
        await asyncio.wait([asked])
        assert (await http.request("POST", "/v1/x")).body == b"ok"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    answer = await ask(sends(b"HTTP/1.1 500 X\r\nRetry-After: 3\r\n\r\nlong", then="closes"))
    assert (answer.status, answer.headers) == (500, {"retry-after": "3"})
    assert answer.body == b"long"


@pytest.mark.parametrize(
    ("data", "then", "why"),
    [
        (b"", "closes", "without an answer"),
        (b"", "resets", "without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", "closes", "broke off after 40 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", "resets", "broke off"),
        (b"HTTP/1.1 200 OK\r\n\r\nok", "resets", "broke off"),
        (CHUNKED + b"5\r\nok", "closes", "broke off"),
        (CHUNKED + b"zz\r\nok\r\n", "waits", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "closes", "broke off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "waits", "no HTTP"),
        (b"HTTP/1.1 101 X\r\nupgrade: y\r\nconnection: upgrade\r\n\r\n", "waits", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "waits", "head is larger"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "waits", "head is larger"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            "waits",
            "no HTTP",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-encoding: br\r\n\r\nok",
            "waits",
            "nobody asked for",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-encoding: gzip\r\n\r\nok",
            "waits",
            "its body",
        ),
    ],
)
async def test_what_is_no_whole_answer_is_an_error_that_says_so(
    data: bytes, then: str, why: str
) -> None:
    with pytest.raises(Broken, match=why):
        await ask(sends(data, then=then))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 20000000\r\n\r\n",
        CHUNKED + (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 20,
    ],
)
async def test_an_answer_that_is_too_large_is_read_no_further(data: bytes) -> None:
    with pytest.raises(Retryable, match="larger than"):
        await ask(sends(data))


async def test_an_answer_above_what_is_read_in_place_is_whole() -> None:
    body = LARGE * 10  # 3 MB
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert (await ask(sends(head + body))).body == body


async def test_servers_that_promise_much_and_send_nothing_take_no_memory() -> None:
    promise = sends(b"HTTP/1.1 200 OK\r\ncontent-length: 12000000\r\n\r\n{")
    async with client(*[promise] * 20) as (http, server):
        tracemalloc.start()
        try:
            asked = [asyncio.create_task(http.request("POST", "/v1/x")) for _ in range(20)]
            await server.requests(20)
            assert (await http.request("POST", "/v1/x")).body == b"ok"  # what came before was read
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)
    assert peak_bytes < 12_000_000


async def test_a_compressed_answer_that_would_become_too_large_is_none() -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024), 9)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    with pytest.raises(Broken, match="too large"):
        await ask(sends(head + bomb))


def counting(server: provider.FakeProvider) -> Callable[[], int]:
    """How many connections the server has now."""
    return lambda: len(server._connections)


async def test_connections_are_kept_and_requests_at_a_time_have_their_own() -> None:
    async with client() as (http, server):
        connections = counting(server)
        for _ in range(3):
            await http.request("GET", "/v1/x")
        assert connections() == 1
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(http.request("POST", "/v1/x"))
        assert connections() == 5
        await http.close()
        async with asyncio.timeout(5):
            while connections():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    closes = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    two = OK + OK
    async with client(sends(closes), sends(two)) as (http, server):
        for _ in range(3):
            answer = await http.request("POST", "/v1/x")
            assert answer.body == b"ok"
        assert len(server.seen) == 3
        assert http.resent == 0


@pytest.mark.parametrize("then", ["closes", "resets"])
async def test_a_kept_connection_that_ends_unheard_costs_one_more_request(then: str) -> None:
    async with client(sends(OK), sends(b"", then=then)) as (http, server):
        await http.request("POST", "/v1/x")
        assert (await http.request("POST", "/v1/x", b"again")).body == b"ok"
        assert http.resent == 1
        assert [seen.body for seen in server.seen] == [b"", b"again", b"again"]


async def test_a_kept_connection_that_ends_after_a_byte_costs_none() -> None:
    async with client(sends(OK), sends(b"H", then="closes")) as (http, server):
        await http.request("POST", "/v1/x")
        with pytest.raises(Broken, match="broke off after 1 bytes"):
            await http.request("POST", "/v1/x")
        assert (http.resent, len(server.seen)) == (0, 2)


async def test_a_server_that_died_of_a_request_is_not_sent_it_again_unasked() -> None:
    async def dies_later(_: provider.Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.1)
        writer.close()

    async with client(sends(OK), dies_later) as (http, server):
        await http.request("POST", "/v1/x")
        with pytest.raises(Broken, match="without an answer"):
            await http.request("POST", "/v1/x")
        assert (http.resent, len(server.seen)) == (0, 2)


async def test_who_must_not_repeat_himself_does_not_and_is_always_heard() -> None:
    async with provider.running(sends(OK), [sends(OK, then="closes"), provider.resets]) as server:
        http = HttpClient(server.url, keeps=False)
        await http.request("POST", "/v1/x")
        with pytest.raises(Broken):
            await http.request("POST", "/v1/x")
        await http.request("POST", "/v1/x")
        assert (http.resent, len(server.seen)) == (0, 3)
        async with asyncio.timeout(5):
            while counting(server)():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await http.close()


async def test_a_request_that_is_cut_takes_its_connection_along() -> None:
    async with client(provider.hangs_after_headers) as (http, server):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await http.request("POST", "/v1/x")
        assert (await http.request("POST", "/v1/x")).body == b"ok", "not the late answer"
        assert len(server.seen) == 2


async def test_nobody_listens() -> None:
    http = HttpClient(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(Broken, match="ConnectionRefused"):
        await http.request("GET", "/v1/x")
    await http.close()


async def test_a_host_that_does_not_exist() -> None:
    http = HttpClient("http://localhost.invalid/v1")
    with pytest.raises(Broken, match="gaierror"):
        await http.request("GET", "/v1/x")
    await http.close()


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_is_spoken_and_certificates_are_checked(
    trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(large_head() + LARGE)
            await writer.drain()
        writer.close()

    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        http = HttpClient(f"https://localhost:{port}/v1")
        if trusted:
            assert (await http.request("POST", "/v1/x")).body == LARGE
        else:
            with pytest.raises(Broken, match="CERTIFICATE_VERIFY_FAILED"):
                await http.request("GET", "/v1/x")
        await http.close()


async def test_who_asks_is_said_by_key_or_url() -> None:
    async with provider.running(sends(OK)) as server:
        by_key = HttpClient(server.url, Secret("sk-1"))
        by_url = HttpClient(server.url.replace("://", "://me:p%40ss@"))
        for http in (by_key, by_url):
            await http.request("POST", "/v1/x")
            await http.close()
    bearer, basic = (seen.headers for seen in server.seen)
    assert bearer["authorization"] == "Bearer sk-1"
    assert basic["authorization"] == "Basic bWU6cEBzcw=="
    assert "@" not in basic["host"]


@pytest.mark.parametrize(
    ("url", "key", "why"),
    [
        ("gpu1:8000/v1", None, "must begin with http"),
        ("ftp://gpu1/v1", None, "must begin with http"),
        ("http://gpu1/v1", Secret("sk-1\r\nx: y"), "API key"),
    ],
)
async def test_what_no_request_can_be_made_of_is_the_users_error(
    url: str, key: Secret | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        HttpClient(url, key)
