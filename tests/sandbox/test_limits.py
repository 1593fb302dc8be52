"""A sandboxed program passes no limit: time, processes, memory, output, disk, sockets."""

import os

import pytest

from tests.support.sandboxes import SOCKETS, text
from workers.sandbox import Limits, run_code
from workers.sandbox.usage import read_usage


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


async def test_sockets_cannot_fill_the_kernel() -> None:
    result = await run_code(SOCKETS, limits=Limits(wall_s=20, sockets=32))
    assert result.killed_by == "sockets", result
