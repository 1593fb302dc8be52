"""What a hostile program cannot reach: network, our files, other processes, the kernel."""

import os
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import sandboxes
from tests.support.sandboxes import text
from workers.sandbox import run_code, seccomp


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
