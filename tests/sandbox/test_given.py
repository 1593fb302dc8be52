"""What a sandboxed program is given: an interpreter, its streams, its files."""

import signal

import pytest

from tests.support.sandboxes import text
from workers.sandbox import Available, probe, run_code


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
