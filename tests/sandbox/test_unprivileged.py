"""The sandbox where we aren't root, and what is said where it can't be had."""

import pytest

from tests.support import sandboxes
from tests.support.sandboxes import SOCKETS
from workers.sandbox import Limits, Unavailable, run_unsafe

RUN_PROBE = "import asyncio; from workers.sandbox import probe; print(asyncio.run(probe()))"


def test_an_ordinary_user_has_a_sandbox_too() -> None:
    done = sandboxes.as_stranger(RUN_PROBE)
    assert done.stdout.startswith("Available(mode='user'"), done


def test_an_ordinary_user_is_held_to_the_limits() -> None:
    code = """
import asyncio
from workers.sandbox import Limits, run_code
FORKS = '''
import os, time
n = 0
try:
    while True:
        if os.fork() == 0: time.sleep(30)
        n += 1
except OSError:
    print(n, os.getuid())
'''
REACH = '''
import ctypes, os
print(open('/proc/1/environ').read() == '', ctypes.CDLL(None).unshare(0x10000000))
status = dict(line.split(':', 1) for line in open('/proc/1/status'))
print(status['Seccomp'].strip(), int(status['CapBnd'], 16), status['NoNewPrivs'].strip())
'''
SOCKETS = {SOCKETS!r}
GROW = 'import os, time; os.fork(); x = b"x" * (150 << 20); time.sleep(9)'
async def main():
    result = await run_code(FORKS, limits=Limits(processes=8))
    assert result.stdout.split()[0] == b'7', result
    result = await run_code(REACH)
    assert result.stdout == b'True -1\\n2 0 1\\n', result
    result = await run_code(GROW, limits=Limits(memory_bytes=256 << 20))
    assert result.killed_by == 'memory', result
    result = await run_code('while True: pass', limits=Limits(wall_s=0.5))
    assert result.killed_by == 'timeout', result
    result = await run_code(SOCKETS, limits=Limits(sockets=32))
    assert result.killed_by == 'sockets', result
    print('held')
asyncio.run(main())
""".replace("{SOCKETS!r}", repr(SOCKETS))
    done = sandboxes.as_stranger(code)
    assert done.stdout.endswith("held\n"), done


def test_where_user_namespaces_are_forbidden_the_probe_says_so() -> None:
    around = ("bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--")
    done = sandboxes.as_stranger(RUN_PROBE, *around)
    assert done.stdout.startswith("Unavailable("), done
    assert "allow user namespaces" in done.stdout


def test_without_bubblewrap_the_probe_says_how_to_get_it() -> None:
    around = ("bwrap", "--dev-bind", "/", "/", "--ro-bind", "/dev/null", "/usr/bin/bwrap", "--")
    done = sandboxes.as_stranger(RUN_PROBE, *around)
    expected = Unavailable("bwrap is missing", "get it with: apt-get install bubblewrap")
    assert done.stdout.strip() == repr(expected), done


async def test_the_unsafe_runner_is_loud_and_keeps_time(caplog: pytest.LogCaptureFixture) -> None:
    result = await run_unsafe("import sys; print(sys.stdin.read())", stdin=b"in")
    assert result.stdout == b"in\n"
    assert "WITHOUT A SANDBOX" in caplog.text
    result = await run_unsafe("sleep 60 & sleep 60", language="shell", limits=Limits(wall_s=0.5))
    assert (result.killed_by, result.exit_code) == ("timeout", 137)
