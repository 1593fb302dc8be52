"""Where a RabbitMQ is: the URLs that users write, and what to say when nobody answers there."""

from aio_pika.exceptions import AMQPError
from yarl import URL

from broker.errors import Unreachable
from broker.masking import mask_url


def parse_urls(text: str) -> list[URL]:
    """`amqp://u:p@a,b:5673/v`: what a later one leaves out, it has from the first. Raises
    Unreachable."""
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    try:
        urls = [URL(p if "://" in p else f"{URL(pieces[0]).scheme}://{p}") for p in pieces]
        first = urls[0]
        path = next((u.raw_path for u in urls if u.raw_path not in {"", "/"}), "/")
        urls = [_completed(url, first, path) for url in urls]
    except (ValueError, IndexError) as e:
        raise Unreachable(f"not a broker's URL: {mask_url(text)} ({e})") from e
    if any("no_verify_ssl" in url.query for url in urls):
        raise Unreachable("no_verify_ssl would let anybody read along: use ?cafile=FILE instead")
    return urls


def _completed(url: URL, first: URL, path: str) -> URL:
    if url.scheme not in {"amqp", "amqps"} or not url.host:
        raise ValueError("it must look like amqp://user:password@host:5672/")
    user = url.user or first.user or "guest"
    password = (url.password or "") if url.user else (first.password or "guest")
    completed = url.with_user(user).with_password(password)
    return completed.with_path(path, encoded=True).with_query(url.query or first.query)


def advice(url: str, error: Exception) -> str:
    """Why nobody can be reached there, and what to look at; secrets masked."""
    where = mask_url(url)
    if isinstance(error, AMQPError):
        reason = str(error) or type(error).__name__
        return (
            f"RabbitMQ at {where} refuses us: {reason}. "
            "Check user, password, the virtual host (the URL's path) and their permissions."
        )
    reason = str(error) or type(error).__name__
    return (
        f"cannot reach RabbitMQ at {where}: {reason}. Is it running, and are host and port right?"
    )
