"""Processes of one measurement: started, watched through /proc, ended by their ids."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_END_S: Final = 15.0
_LOOK_S: Final = 0.02


@dataclass(slots=True)
class Watched:
    """A process, with its session: all that it starts."""

    kind: str
    """What its work is called: agent, model, rabbitmq, ..."""
    pid: int
    process: subprocess.Popen[bytes] | None = None
    peak_bytes: int = 0
    cpu_s: float = 0.0
    starved: float = 0.0
    """Of the time in which its main thread wanted a CPU, the share in which it had none."""

    def look(self) -> float:
        """Read /proc: the CPU seconds used so far, by what lives and by children that ended."""
        living = list(session(self.pid))
        if living:
            self._look_at_queue()
            self.cpu_s = sum(map(cpu_s, living))
            self.peak_bytes = max(self.peak_bytes, sum(map(peak_bytes, living)))
        return self.cpu_s

    def wait(self) -> int:
        """Wait for its end; the exit code. What it used in all is known then."""
        assert self.process is not None
        while not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._look_at_queue()
            self.peak_bytes = max(self.peak_bytes, peak_bytes(self.pid))
            time.sleep(_LOOK_S)
        _, status, used = os.wait4(self.pid, 0)  # not its ru_maxrss: that begins with our memory
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = used.ru_utime + used.ru_stime
        return self.process.returncode

    def _look_at_queue(self) -> None:
        with contextlib.suppress(OSError, ZeroDivisionError):
            ran, waited = map(int, Path(f"/proc/{self.pid}/schedstat").read_bytes().split()[:2])
            self.starved = waited / (ran + waited)

    def end(self) -> None:
        """SIGTERM, then SIGKILL for the whole session."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
        for pid in session(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def start(
    kind: str,
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    listen: bool = False,
) -> Watched:
    """Start it in a session of its own; what it says goes to `log`, or with `listen` to a pipe."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if listen else output,
            stderr=output,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
    return Watched(kind, process.pid, process)


def session(leader: int) -> Iterator[int]:
    """The processes that live in it."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(name)) == leader:
                    yield int(name)


def cpu_s(pid: int) -> float:
    """CPU seconds that it and its ended children used; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def peak_bytes(pid: int) -> int:
    """Its peak resident memory; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
