"""Hostile programs reach nothing, pass no limit, and leave nothing behind."""

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import sandboxes
from workers.sandbox import (
    Available,
    Limits,
    SandboxResult,
    Unavailable,
    probe,
    run_code,
    run_unsafe,
    seccomp,
)
from workers.sandbox.usage import read_usage

SHORT = Limits(wall_s=5.0)


@pytest.fixture(scope="module", autouse=True)
def bubblewrap() -> None:
    sandboxes.install_bubblewrap()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor, no zombie, no temporary directory of any test's sandboxes remains."""
    before = len(os.listdir("/proc/self/fd")), set(os.listdir("/tmp"))
    yield
    assert sandboxes.zombies() == []
    assert len(os.listdir("/proc/self/fd")) <= before[0] + 4  # the test's own event loop
    left = set(os.listdir("/tmp")) - before[1]
    assert not [name for name in left if name.startswith(("warren-unsafe-", "warren-sandbox"))]


def text(result: SandboxResult) -> str:
    assert result.killed_by is None, result
    return result.stdout.decode()


# --- what a program is given


async def test_this_machine_has_a_sandbox() -> None:
    assert isinstance(await probe(), Available)


async def test_python_runs_with_its_standard_library() -> None:
    code = "import json, sqlite3, ssl, ctypes, decimal; print(json.dumps({'a': 1}))"
    assert text(await run_code(code)) == '{"a": 1}\n'


async def test_shell_runs_with_the_usual_tools() -> None:
    result = await run_code("echo b a | tr ' ' '\\n' | sort | awk '{print $1}'", language="shell")
    assert text(result) == "a\nb\n"


async def test_a_command_line_runs_as_it_is() -> None:
    assert text(await run_code(["/usr/bin/printf", "%s|", "a b", "$HOME"])) == "a b|$HOME|"


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
async def test_exit_codes_are_the_programs_own(code: int) -> None:
    result = await run_code(f"exit({code})")
    assert (result.exit_code, result.killed_by) == (code, None)


async def test_a_signal_shows_in_the_exit_code() -> None:
    result = await run_code("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (result.exit_code, result.killed_by) == (128 + signal.SIGSEGV, None)


async def test_stdin_is_read_to_its_end_also_by_name() -> None:
    data = b"x" * 300_000
    code = "import sys; print(len(sys.stdin.buffer.read()), len(open('/dev/stdin').read()))"
    assert text(await run_code(code, stdin=data)) == "300000 300000\n"


async def test_stdin_cannot_be_used_as_storage() -> None:
    result = await run_code("import os; os.write(0, b'x')", stdin=b"abc")
    assert b"PermissionError" in result.stderr


async def test_both_outputs_can_be_opened_by_name() -> None:
    result = await run_code("echo o > /dev/stdout; echo e > /dev/stderr", language="shell")
    assert (result.stdout, result.stderr) == (b"o\n", b"e\n")


async def test_unicode_and_binary_pass_through() -> None:
    code = "import sys; print('héllo ✓ 漢字', sys.stdin.read()); sys.stdout.buffer.write(b'\\xff')"
    result = await run_code(code, stdin="né".encode())
    assert "héllo ✓ 漢字 né".encode() in result.stdout
    assert b"\xff" in result.stdout


async def test_files_lie_in_the_working_directory_and_can_be_changed() -> None:
    code = """
import os, helper
open('data/in.bin', 'ab').write(b'more'); open('data/new', 'w').write('x'); os.mkdir('sub')
print(helper.ANSWER, open('data/in.bin', 'rb').read(), sorted(os.listdir('data')))
"""
    files = {"helper.py": b"ANSWER = 42", "data/in.bin": bytes(range(4)), "data/deep/x": b""}
    result = await run_code(code, files=files)
    assert text(result) == "42 b'\\x00\\x01\\x02\\x03more' ['deep', 'in.bin', 'new']\n", result


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a\0b"])
async def test_a_file_name_cannot_lead_outside(name: str) -> None:
    with pytest.raises(ValueError, match="not a name inside"):
        await run_code("pass", files={name: b""})


async def test_runs_share_nothing() -> None:
    await run_code("open('/tmp/note', 'w').write('x'); open('/dev/shm/note', 'w').write('x')")
    code = "import os; print(os.listdir('/tmp'), os.listdir('/dev/shm'))"
    assert text(await run_code(code)) == "['work'] []\n"


# --- what it can't reach


async def test_the_network_is_out_of_reach() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        result = await run_code(code)
        assert b"ConnectionRefusedError" in result.stderr
        with pytest.raises(TimeoutError):
            server.accept()


async def test_abstract_and_virtual_machine_sockets_are_out_of_reach() -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("\0warren-test-abstract")
        server.listen()
        code = """
import socket
for family, address in ((socket.AF_UNIX, '\\0warren-test-abstract'), (40, (2, 1024))):
    try:
        socket.socket(family, socket.SOCK_STREAM).connect(address)
        print('reached')
    except OSError as error:
        print(type(error).__name__)
"""
        result = await run_code(code)
    assert text(result) == "ConnectionRefusedError\nPermissionError\n"


async def test_our_environment_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_TEST_SECRET", "hunter2-in-environment")
    code = """
import glob, os
print(sorted(os.environ))
for name in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try:
        print(name, open(name, 'rb').read())
    except OSError:
        pass
"""
    result = await run_code(code, language="python")
    assert b"hunter2" not in result.stdout
    assert b"WARREN" not in result.stdout
    parent = await run_code(f"open('/proc/{os.getpid()}/environ').read()")
    assert b"FileNotFoundError" in parent.stderr or b"PermissionError" in parent.stderr


async def test_our_files_are_out_of_reach(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2-in-a-file", "utf-8")
    secret.chmod(0o644)
    paths = [str(secret), "/etc/shadow", "/etc/passwd", "/root/.bashrc", "/root/.pyenv/version"]
    paths += [__file__, "/proc/1/root" + str(secret), "/proc/1/cwd/etc/shadow", "/proc/kcore"]
    paths += ["/sys/kernel", "/dev/vda", "/dev/mem", "/proc/1/mem", "/var/log", "/home", "/run"]
    code = f"""
import os
for path in {paths!r}:
    try:
        print('REACHED', path, os.listdir(path) if os.path.isdir(path) else open(path).read(9))
    except OSError:
        pass
os.symlink({str(secret)!r}, 'link')
os.symlink('/etc/shadow', '/tmp/link')
print(os.path.exists('link'), os.path.exists('/tmp/link'))
"""
    assert text(await run_code(code)) == "False False\n"


async def test_what_we_import_from_is_out_of_reach() -> None:
    result = await run_code("import pytest")
    assert b"ModuleNotFoundError" in result.stderr
    code = f"import os; print(os.path.exists({str(sandboxes.REPOSITORY)!r}))"
    assert text(await run_code(code)) == "False\n"


async def test_nothing_outside_can_be_written() -> None:
    code = """
import os, sys
for path in ('/x', '/etc/x', '/usr/x', '/usr/bin/env', '/dev/x', '/proc/sys/kernel/hostname',
             '/proc/sysrq-trigger', '/root/x', os.path.dirname(os.__file__) + '/x', sys.executable,
             os.path.dirname(os.__file__) + '/site-packages/x', '/home/x', '/dev/pts/x'):
    try:
        open(path, 'a').write('x')
        print('WROTE', path)
    except OSError:
        pass
"""
    assert text(await run_code(code)) == ""


async def test_a_program_has_no_rights() -> None:
    status = text(await run_code("print(open('/proc/self/status').read())"))
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    for held in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[held], 16) == 0, held
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    uids = fields["Uid"].split()
    assert len(set(uids)) == 1
    assert uids[0] != "0"
    assert set(fields["Groups"].split()) <= {uids[0]}


async def test_set_user_id_programs_give_nothing() -> None:
    assert (await run_code(["/usr/bin/su", "-c", "id"])).exit_code != 0


async def test_signals_reach_nobody_else() -> None:
    code = f"""
import os
for pid in (1, -1, {os.getpid()}):
    try:
        os.kill(pid, 0 if pid == -1 else 9)
    except OSError as error:
        print(type(error).__name__)
print('alive')
"""
    result = await run_code(code)
    assert text(result).endswith("alive\n")


FORBIDDEN = {
    "ptrace": "c.ptrace(0, 0, 0, 0)",
    "mount": "c.mount(b'/tmp', b'/tmp/work', b'', 4096, 0)",
    "new user namespace": "c.unshare(0x10000000)",
    "enter a namespace": "c.setns(os.open('/proc/self/ns/net', 0), 0)",
    "clone into a user namespace": "c.syscall(NR['clone'], 0x10000000 | 17, 0, 0, 0, 0)",
    "bpf": "c.syscall(NR['bpf'], 5, 0, 0)",
    "keyctl": "c.syscall(NR['keyctl'], 0, -3, 0)",
    "io_uring": "c.syscall(NR['io_uring'], 1, b'\\0' * 120)",
    "userfaultfd": "c.syscall(NR['userfaultfd'], 0)",
    "perf": "c.syscall(NR['perf'], b'\\0' * 120, 0, -1, -1, 0)",
    "memory file": "c.memfd_create(b'x', 0)",
    "shared memory": "c.shmget(0, 4096, 0o1600)",
    "typing into the terminal": "c.ioctl(0, 0x5412, b'x')",
    "typing, high bits set": "c.ioctl(0, ctypes.c_ulong(0xFF00005412), b'x')",
    "kernel module": "c.init_module(b'', 0, b'')",
    "chroot": "c.chroot(b'/tmp')",
}
CALLS = ("clone", "bpf", "keyctl", "io_uring", "userfaultfd", "perf")
NUMBERS = {
    "x86_64": dict(zip(CALLS, (56, 321, 250, 425, 323, 298), strict=True)),
    "aarch64": dict(zip(CALLS, (220, 280, 219, 425, 282, 241), strict=True)),
}


@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_a_forbidden_system_call_fails_for_want_of_permission(call: str) -> None:
    code = f"""
import ctypes, errno, os
NR = {NUMBERS[os.uname().machine]!r}
c = ctypes.CDLL(None, use_errno=True)
result = {call}
print(result, errno.errorcode.get(ctypes.get_errno()))
"""
    assert text(await run_code(code)) == "-1 EPERM\n"


async def test_threads_and_subprocesses_work_under_the_filter() -> None:
    code = """
import subprocess, threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pool
with ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(int, '1234')))
print(subprocess.run(['echo', 'hi'], capture_output=True).stdout)
if __name__ == '__main__':
    with Pool(2) as pool:
        print(pool.map(abs, [-1, -2]))
"""
    result = await run_code(code)
    assert text(result) == "10\nb'hi\\n'\n[1, 2]\n", result


async def test_the_32_bit_entry_of_the_kernel_kills() -> None:
    if os.uname().machine != "x86_64":
        return  # others have no such entry
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20; int 0x80; ret
print('still', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
    result = await run_code(code)
    assert result.exit_code == 128 + signal.SIGSYS, result


async def test_the_second_number_of_each_call_kills() -> None:
    if os.uname().machine == "x86_64":
        code = "import ctypes; print(ctypes.CDLL(None).syscall(0x40000000 + 39))"
        assert (await run_code(code)).exit_code == 128 + signal.SIGSYS


def test_filters_are_whole_for_each_architecture() -> None:
    for machine in ("x86_64", "aarch64"):
        size = len(seccomp.program(machine))
        assert size % 8 == 0
        assert 100 < size // 8 < 4096
    assert not seccomp.supported("riscv64")


# --- limits


async def test_a_timeout_is_exact() -> None:
    result = await run_code("import time; time.sleep(60)", limits=Limits(wall_s=0.7))
    assert (result.killed_by, result.exit_code) == ("timeout", 137)
    assert 0.7 <= result.seconds < 1.2


async def test_ignoring_signals_does_not_help() -> None:
    code = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    signal.pause()
"""
    result = await run_code(code, limits=Limits(wall_s=0.7))
    assert result.killed_by == "timeout"
    assert result.seconds < 1.5


def test_a_sandbox_that_is_only_starting_is_not_blamed_for_everybodys_use() -> None:
    assert read_usage(os.getpid()) is None


async def test_processor_time_is_counted_over_all_processes() -> None:
    code = "import os\nos.fork(); os.fork()\nwhile True: pass"
    result = await run_code(code, limits=Limits(wall_s=20, cpu_s=1.0))
    assert result.killed_by == "cpu"


async def test_processor_time_of_processes_that_ended_counts() -> None:
    code = """
import os
while True:
    if os.fork() == 0:
        for _ in range(3_000_000): pass
        os._exit(0)
    os.wait()
"""
    result = await run_code(code, limits=Limits(wall_s=20, cpu_s=1.0))
    assert result.killed_by == "cpu"


async def test_a_fork_bomb_stays_small() -> None:
    code = """
import os, sys, time
started = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(30)
    except OSError:
        break
    started += 1
print(started)
"""
    result = await run_code(code, limits=Limits(wall_s=3, processes=8))
    assert result.stdout == b"7\n", result


async def test_a_relentless_fork_bomb_ends_with_its_time() -> None:
    bomb = "f() { f | f & }; f; while :; do :|:; done"
    result = await run_code(bomb, language="shell", limits=Limits(wall_s=1))
    assert result.seconds < 3


async def test_threads_count_as_processes() -> None:
    code = """
import threading, time
try:
    for n in range(100):
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
except RuntimeError:
    print(n)
"""
    assert text(await run_code(code, limits=Limits(processes=8))) == "7\n"


async def test_one_large_allocation_fails_inside() -> None:
    code = """
try:
    bytearray(600 << 20)
except MemoryError:
    print('refused')
"""
    assert text(await run_code(code, limits=Limits(memory_bytes=256 << 20))) == "refused\n"


async def test_many_processes_share_one_memory_limit() -> None:
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        block = bytearray(60 << 20)
        for i in range(0, len(block), 4096): block[i] = 1
        time.sleep(30)
time.sleep(30)
"""
    result = await run_code(code, limits=Limits(wall_s=20, memory_bytes=200 << 20))
    assert result.killed_by == "memory"


async def test_memory_shared_by_forks_counts_once() -> None:
    code = """
import os, time
block = b'x' * (100 << 20)
os.fork(); os.fork()
time.sleep(0.5)
print('fine')
"""
    result = await run_code(code, limits=Limits(wall_s=20, memory_bytes=250 << 20))
    assert text(result) == "fine\n" * 4


async def test_an_output_bomb_is_cut_and_killed() -> None:
    code = "import os\nfor _ in range(1 << 14): os.write(1, b'x' * 65536)"
    result = await run_code(code, limits=Limits(output_bytes=100_000))
    assert (result.killed_by, result.truncated) == ("output", True)
    assert len(result.stdout) == 100_000
    assert result.seconds < 3


async def test_both_outputs_share_one_limit() -> None:
    code = "import os\nwhile True: os.write(1, b'x' * 100); os.write(2, b'y' * 100)"
    result = await run_code(code, limits=Limits(output_bytes=10_000))
    assert result.killed_by == "output"
    assert len(result.stdout) + len(result.stderr) == 10_000


async def test_output_within_the_limit_is_whole() -> None:
    result = await run_code("print('x' * 99_999)", limits=Limits(output_bytes=100_000))
    assert len(text(result)) == 100_000
    assert not result.truncated
    result = await run_code("print('x' * 100_000)", limits=Limits(output_bytes=100_000))
    assert (result.killed_by, result.truncated) == ("output", True)


@pytest.mark.parametrize("directory", ["/tmp", "/tmp/work", "/dev/shm"])
async def test_the_disk_cannot_be_filled(directory: str) -> None:
    code = f"""
written = 0
try:
    for n in range(1000):
        with open(f'{directory}/{{n}}', 'wb') as file:
            written += file.write(b'x' * (1 << 20))
except OSError as error:
    print(error.errno, written >> 20)
"""
    assert text(await run_code(code, limits=Limits(disk_bytes=8 << 20))) in ("28 7\n", "28 8\n")


@pytest.mark.parametrize("directory", ["/tmp", "/dev/shm"])
async def test_empty_files_cannot_fill_the_kernel(directory: str) -> None:
    code = f"n = 0\nwhile True: open(f'{directory}/{{n}}', 'w').close(); n += 1"
    result = await run_code(code, limits=Limits(wall_s=20, cpu_s=20, files=2000))
    assert result.killed_by == "files"


async def test_files_have_a_size_limit_and_a_number() -> None:
    code = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    open('big', 'wb').write(b'x' * (3 << 20))
except OSError as error:
    print(error.errno)
try:
    files = [open('big') for _ in range(100)]
except OSError as error:
    print(error.errno)
"""
    limits = Limits(file_bytes=2 << 20, open_files=32)
    assert text(await run_code(code, limits=limits)) in ("27\n24\n", "24\n")


SOCKETS = """
import os, socket, time
held = [socket.socketpair() for _ in range(10)]
a, b = socket.socketpair()
for _ in range(10):
    one, other = socket.socketpair()
    socket.send_fds(a, [b'x'], [one.fileno(), other.fileno()])  # held by no process any more
    one.close(); other.close()
time.sleep(20)
"""


async def test_sockets_cannot_fill_the_kernel() -> None:
    result = await run_code(SOCKETS, limits=Limits(wall_s=20, sockets=32))
    assert result.killed_by == "sockets", result


# --- nothing stays behind


async def test_daemons_die_with_their_program() -> None:
    code = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        os.execv('/bin/sleep', ['sleep', '98761.5'])
    os._exit(0)
os.wait()
"""
    result = await run_code(code, limits=SHORT)
    assert result.ok
    assert sandboxes.processes_with("98761.5") == []


async def test_cancellation_kills_and_cleans() -> None:
    task = asyncio.create_task(run_code(["/bin/sleep", "98762.5"]))
    await sandboxes.eventually(lambda: _sleeps("98762.5"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandboxes.processes_with("98762.5") == []


@pytest.mark.parametrize("after_ms", [0, 1, 2, 4, 8, 16, 32])
async def test_cancellation_at_any_moment_of_the_start_cleans(after_ms: int) -> None:
    marker = f"98763.{after_ms}5"
    task = asyncio.create_task(run_code(["/bin/sleep", marker]))
    await asyncio.sleep(after_ms / 1000)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandboxes.processes_with(marker) == []


@pytest.fixture
def sleeping_worker() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of ours that waits for a sandboxed `sleep 98764.5`."""
    code = (
        "import asyncio; from workers.sandbox import run_code;"
        "asyncio.run(run_code(['/bin/sleep', '98764.5']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=sandboxes.REPOSITORY) as worker:
        yield worker
        worker.kill()


async def test_a_dead_worker_takes_its_sandboxes_along(
    sleeping_worker: "subprocess.Popen[bytes]",
) -> None:
    await sandboxes.eventually(lambda: _sleeps("98764.5"))
    sleeping_worker.kill()
    sleeping_worker.wait()
    await sandboxes.eventually(lambda: not sandboxes.processes_with("98764.5"))


def _sleeps(marker: str) -> bool:
    """Whether the program itself has started, not only the commands that lead to it."""
    return any(_name(pid) == "sleep\n" for pid in sandboxes.processes_with(marker))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8")
    except OSError:
        return ""


async def test_twenty_runs_at_once_stay_apart() -> None:
    code = """
import os, sys, time
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        time.sleep(0.3); os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
print(sys.stdin.read(), os.getuid())
"""
    limits = Limits(wall_s=60, processes=4)  # a shared count would refuse most of them
    async with asyncio.TaskGroup() as group:
        runs = [
            group.create_task(run_code(code, stdin=str(n).encode(), limits=limits))
            for n in range(20)
        ]
    answers = [text(run.result()).split() for run in runs]
    assert [int(answer[0]) for answer in answers] == list(range(20))
    if os.geteuid() == 0:
        assert len({answer[1] for answer in answers}) == 20


async def test_a_start_is_quick() -> None:
    times = [(await run_code("pass")).seconds for _ in range(15)]
    assert statistics.median(times) < 0.25  # 0.03 on an idle machine, but tests share theirs


# --- where it isn't root, and where it can't be had

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
