"""Private RabbitMQ and Redis servers for tests: free ports, data in a temporary folder, killable.

Where they come from, in this order: Docker through testcontainers if an engine answers, binaries
on this machine, `apt-get install` when root on Debian or Ubuntu. Where none works, tests fail and
say what to install: a test that needs a server never passes without one.

The methods block: call them through `asyncio.to_thread` where a loop must go on.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tests.support.ports import free_port

START_S: Final = 90.0
STOP_S: Final = 20.0
RABBITMQ_IMAGE: Final = "rabbitmq:4"
REDIS_IMAGE: Final = "redis:7"
#: RabbitMQ's own is 512 MB: a test's node takes less of the disk.
TEST_WAL_BYTES: Final = 64 << 20
RABBITMQ_HOMES: Final = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")


class Server(Protocol):
    """A server process that a test may do anything to."""

    @property
    def url(self) -> str: ...
    def start(self) -> None:
        """Start it, with the data that it had, and wait until it answers."""
        ...

    def kill(self) -> None:
        """kill -9."""
        ...

    def stop(self) -> None:
        """Stop it cleanly."""
        ...

    def restart(self) -> None:
        """Kill it if it runs, then start it again on the same port with the same data."""
        ...


class RabbitProcess:
    """A RabbitMQ node from the binaries on this machine, beside any other that runs here."""

    def __init__(self, folder: Path, scripts: Path, wal_bytes: int) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self.folder = folder
        self._scripts = scripts
        self._wal_bytes = wal_bytes
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._environment = self._prepare()

    @property
    def pid(self) -> int | None:
        """Of the process whose session it runs in."""
        return None if self._node is None else self._node.pid

    def start(self) -> None:
        if self._epmd is None:
            self._epmd = _spawn([_epmd()], self._environment, self.folder / "epmd.log")
        log = self.folder / "node.log"
        command = [str(self._scripts / "rabbitmq-server")]
        self._node = _spawn(command, self._environment, log)
        _wait_until(lambda: speaks_amqp(self.port), self._node, log)

    def kill(self) -> None:
        _end_group(self._node, signal.SIGKILL)
        self._node = None

    def stop(self) -> None:
        """The launching script stops the node through rabbitmqctl."""
        _end_group(self._node, signal.SIGTERM)
        self._node = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node (about a second)."""
        command = [str(self._scripts / "rabbitmqctl"), "-q", *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def remove(self) -> None:
        """Leave nothing behind."""
        self.kill()
        _end_group(self._epmd, signal.SIGKILL)
        self._epmd = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self) -> Mapping[str, str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        conf = _rabbitmq_conf(self.port, self._wal_bytes)
        (self.folder / "rabbitmq.conf").write_text(conf, encoding="utf-8")
        (self.folder / "plugins").write_text("[].\n", encoding="utf-8")
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        idle = "+sbwt none +sbwtdcpu none +sbwtdio none -start_epmd false"
        half = max((os.cpu_count() or 1) // 2, 1)  # the other half is the workers'
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # the Erlang cookie stands there
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"warren{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{idle} {loopback} +S {half}:{half}",
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # bound, they wait for others on their core
        }


class RedisProcess:
    """A Redis server from the binary on this machine. Every write survives a kill."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process whose session it runs in."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"--port {self.port} --bind 127.0.0.1 --save --appendonly yes --dir".split()
        log = self.folder / "redis.log"
        self._process = _spawn(["redis-server", *options, str(self.folder)], os.environ, log)
        _wait_until(lambda: speaks_redis(self.port), self._process, log)

    def kill(self) -> None:
        _end_group(self._process, signal.SIGKILL)
        self._process = None

    def stop(self) -> None:
        _end_group(self._process, signal.SIGTERM)
        self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def forget(self) -> None:
        """Kill it and start it again with nothing in it."""
        self.kill()
        shutil.rmtree(self.folder)
        self.start()

    def remove(self) -> None:
        """Leave nothing behind."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Container:
    """A server in Docker, on a port of this machine that stays the same over restarts."""

    def __init__(self, image: str, port: int, url: str, speaks: Callable[[int], bool]) -> None:
        from testcontainers.core.container import DockerContainer

        self.port = free_port()
        self.url = url.format(port=self.port)
        self._speaks = speaks
        self._made: Any = DockerContainer(image).with_bind_ports(port, self.port)
        self._running: Any = None

    def start(self) -> None:
        if self._running is None:
            self._running = self._made.start().get_wrapped_container()
        else:
            self._running.start()
        _wait_until(lambda: self._speaks(self.port), None, None)

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()

    def stop(self) -> None:
        self._running.stop()

    def restart(self) -> None:
        self._running.reload()
        if self._running.status == "running":
            self.kill()
        self.start()

    def forget(self) -> None:
        """Kill it and start it again with nothing in it."""
        self.kill()
        self.remove()
        self._running = None
        self.start()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl inside."""
        code, output = self._running.exec_run(["rabbitmqctl", "-q", *arguments])
        if code:
            raise RuntimeError(f"rabbitmqctl {arguments[0]}: {output.decode()}")
        text: str = output.decode()
        return text

    def remove(self) -> None:
        """Leave nothing behind."""
        self._made.stop()


def new_rabbitmq(folder: Path, *, wal_bytes: int = TEST_WAL_BYTES) -> RabbitProcess | Container:
    """A RabbitMQ node of one's own, not started yet. (Docker's has its own Raft log.)"""
    if _docker_answers():
        return Container(RABBITMQ_IMAGE, 5672, "amqp://guest:guest@127.0.0.1:{port}/", speaks_amqp)
    return RabbitProcess(folder, _rabbitmq_scripts(), wal_bytes)


def new_redis(folder: Path) -> RedisProcess | Container:
    """A Redis server of one's own, not started yet."""
    if _docker_answers():
        return Container(REDIS_IMAGE, 6379, "redis://127.0.0.1:{port}/0", speaks_redis)
    if shutil.which("redis-server") is None:
        _apt_install("redis-server")
    return RedisProcess(folder)


def _rabbitmq_conf(port: int, wal_bytes: int) -> str:
    # A private node shares the machine: no statistics, no alarm from a full disk.
    return f"""
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 2GB
raft.wal_max_size_bytes = {wal_bytes}
collect_statistics_interval = 60000
log.console = false
"""


def _rabbitmq_scripts() -> Path:
    """Debian's wrapper on the PATH changes user; the script itself runs as who we are."""
    found = _find_scripts()
    if found is None:
        _apt_install("rabbitmq-server")
        found = _find_scripts()
    if found is None:
        raise RuntimeError("rabbitmq-server was installed but its scripts were not found")
    return found


def _find_scripts() -> Path | None:
    on_path = shutil.which("rabbitmq-server")
    homes = [*RABBITMQ_HOMES, *([str(Path(on_path).resolve().parent)] if on_path else [])]
    return next((Path(h) for h in homes if (Path(h) / "rabbitmq-server").exists()), None)


def _apt_install(package: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(
            f"tests need {package}: install it (`sudo apt-get install {package}`, "
            f"`brew install {package.removesuffix('-server')}`), start Docker, or set "
            "WARREN_TEST_BROKER and WARREN_TEST_REDIS to servers that tests may fill"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", package]
    if subprocess.run(install, env=environment, check=False).returncode:
        subprocess.run(["apt-get", "update"], env=environment, check=True)
        subprocess.run(install, env=environment, check=True)


def _docker_answers() -> bool:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if address.startswith("unix://") and not Path(address.removeprefix("unix://")).exists():
        return False
    import docker  # type: ignore[import-untyped]

    try:
        client = docker.from_env(timeout=5)
    except docker.errors.DockerException:
        return False
    client.close()
    return True


def _epmd() -> str:
    found = shutil.which("epmd")
    if found is None:
        raise RuntimeError("tests need epmd, which comes with Erlang: install erlang-base")
    return found


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end_group(process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
    """Signal a process with all that it started; kill what is left after a while."""
    if process is None:
        return
    try:
        if how == signal.SIGTERM:
            process.terminate()
            process.wait(STOP_S)
        os.killpg(process.pid, signal.SIGKILL)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes] | None, log: Path | None
) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        died = process is not None and process.poll() is not None
        if died or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-4000:] if log else ""
            raise RuntimeError(f"the server {'died' if died else 'does not answer'}:\n{said}")
        time.sleep(0.05)


def speaks_amqp(port: int) -> bool:
    """Whether a RabbitMQ that has booted listens there."""
    return _answers(port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01")


def speaks_redis(port: int) -> bool:
    """Whether a Redis answers there."""
    return _answers(port, b"PING\r\n").startswith(b"+PONG")


def _answers(port: int, hello: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(hello)
            return connection.recv(64)
    except OSError:
        return b""
