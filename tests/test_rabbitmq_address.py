"""Addresses of RabbitMQ: which are understood, and what is said of one that does not work."""

from typing import Any

import pytest

from broker.amqp_address import parse_urls
from broker.errors import Unreachable
from broker.rabbitmq import RabbitBroker
from tests.support.ports import free_port


@pytest.fixture
def url(rabbitmq: Any) -> str:
    text: str = rabbitmq.url
    return text


async def test_nobody_listening_is_said_with_the_masked_url() -> None:
    port = free_port()
    with pytest.raises(Unreachable) as raised:
        await RabbitBroker.connect(f"amqp://me:s3cret@127.0.0.1:{port}/")
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert "running" in str(raised.value)


async def test_a_wrong_password_is_said_without_it(url: str) -> None:
    wrong = str(parse_urls(url)[0].with_user("guest").with_password("s3cret"))
    with pytest.raises(Unreachable, match="refuses us") as raised:
        await RabbitBroker.connect(wrong)
    assert "s3cret" not in str(raised.value)


async def test_an_unknown_virtual_host_is_said(url: str) -> None:
    with pytest.raises(Unreachable, match="virtual host"):
        await RabbitBroker.connect(str(parse_urls(url)[0].with_path("/nowhere")))


async def test_the_second_of_two_hosts_is_used_when_the_first_is_down(url: str) -> None:
    broker = await RabbitBroker.connect(f"amqp://guest:guest@127.0.0.1:{free_port()},{url}")
    assert broker.connected
    await broker.close()


@pytest.mark.parametrize(
    "text", ["", "http://host/", "amqp://", "amqps://host/?no_verify_ssl=1", "amqp://h:x/"]
)
def test_a_url_that_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(Unreachable):
        parse_urls(text)


def test_what_a_later_host_leaves_out_it_has_from_the_first() -> None:
    urls = [str(u) for u in parse_urls("amqp://u:p@a:1,b:2,amqps://v:q@c/prod")]
    assert urls == ["amqp://u:p@a:1/prod", "amqp://u:p@b:2/prod", "amqps://v:q@c/prod"]
