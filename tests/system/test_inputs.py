"""What people feed `warren collect` with: good, odd and bad datasets, commands and outputs."""

import gzip
import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import zstandard

from tests.support.command import (
    Done,
    asked,
    at_once,
    ids_of,
    piped,
    rows_of,
    spawn,
    warren,
    write_rows,
)

TERMINAL = {"COLUMNS": "120", "TERM": "xterm"}
WORDS = "für 你好 🐇 \u2028 \U0001f9ea"


def collecting(tasks: object, moody: Path, output: str, *more: object) -> list[object]:
    """A quiet command over the scripted policy."""
    play = ["--env", moody, "--model", "scripted", "-q", "--json"]
    return ["collect", tasks, *play, "-o", output, *more]


def failed(done: Done, code: int, *said: str) -> None:
    """It must have ended so, with a message for people and nothing on stdout."""
    assert done.code == code, (done.code, done.err)
    for text in said:
        assert text in done.err, done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_compressed_piped_and_oddly_written_input_is_all_the_same(
    tmp_path: Path, moody: Path
) -> None:
    long = "long " * 200_000
    rows = [asked("fine"), asked(WORDS, note=WORDS), asked(long), {"prompt": "short"}]
    rows += [{"responses_create_params": None, "messages": [{"role": "user", "content": "chat"}]}]
    plain = write_rows(tmp_path / "plain.jsonl", rows).read_bytes()
    (tmp_path / "zipped.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "zst.jsonl.zst").write_bytes(zstandard.compress(plain))
    windows = b"\xef\xbb\xbf" + plain.rstrip().replace(b"\n", b"\r\n")
    (tmp_path / "windows.jsonl").write_bytes(windows)
    names = ["plain.jsonl", "zipped.jsonl.gz", "zst.jsonl.zst", "windows.jsonl"]
    done = at_once(*(collecting(n, moody, f"{n}.out") for n in names), cwd=tmp_path)
    done.append(piped(plain, *collecting("-", moody, "piped.out"), cwd=tmp_path))
    for one in done:
        assert one.ok().json["completed"] == len(rows), one.err
    expected = None
    for name in (*names, "piped"):
        got = [
            {k: row[k] for k in ("reward", "_ng_task_index")}
            | {"input": row["responses_create_params"]["input"][-1], "note": row.get("note")}
            for row in rows_of(tmp_path / f"{name}.out")
        ]
        expected = expected or got
        assert got == expected, name
    assert expected is not None
    assert expected[1]["note"] == WORDS
    assert [row["input"]["content"] for row in expected] == ["fine", WORDS, long, "short", "chat"]
    again = piped(plain, *collecting("-", moody, "piped.out"), cwd=tmp_path).ok()
    assert again.json["rollouts"] == len(rows)
    other = piped(plain + plain, *collecting("-", moody, "piped.out"), cwd=tmp_path)
    failed(other, 2, "dataset sha256", "--overwrite")


def test_bad_rows_are_told_by_line_before_anything_runs_or_left_out(
    tmp_path: Path, moody: Path
) -> None:
    good = json.dumps(asked("fine"))
    bad = ["{", "[1]", "null", '"text"', '{"a": NaN}', '{"responses_create_params": 3}', "{}"]
    bad += ['{"responses_create_params": {"input": 3}}']
    bad += ['{"responses_create_params": {"input": "x", "temperatur": 1}}', '{"prompt": 7}']
    bad += ['{"prompt": "\\ud800"}', "\xff"]
    lines = [good, *bad, "", good, *["{"] * 20]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="latin-1")
    clashing = [asked("fine", _ng_task_index=3, _ng_rollout_index=1)] * 2
    write_rows(tmp_path / "clash.jsonl", clashing)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(good.encode() * 1000)[:-20])
    (tmp_path / "folder").mkdir()
    refused, skipped, clash, empty, gone, torn, folder = at_once(
        collecting("t.jsonl", moody, "x.jsonl"),
        collecting("t.jsonl", moody, "y.jsonl", "--skip-bad"),
        collecting("clash.jsonl", moody, "x.jsonl"),
        collecting("empty.jsonl", moody, "x.jsonl"),
        collecting("gone.jsonl", moody, "x.jsonl"),
        collecting("torn.jsonl.gz", moody, "x.jsonl"),
        collecting("folder", moody, "x.jsonl"),
        cwd=tmp_path,
    )
    failed(refused, 2, "32 rows are bad", "--skip-bad", "temperatur")
    told = re.findall(r"^(?:warren: )?t\.jsonl:(\d+): .+", refused.err, re.MULTILINE)
    expected = [n for n, line in enumerate(lines, 1) if line and line != good][:20]
    assert [int(number) for number in told] == expected
    assert skipped.ok().json["rollouts"] == 2
    assert ids_of(rows_of(tmp_path / "y.jsonl")) == [(0, 0), (len(bad) + 2, 0)]
    failed(clash, 2, "clash.jsonl:2:", "_ng_task_index")
    failed(empty, 2, "empty.jsonl", "no tasks")
    failed(gone, 2, "gone.jsonl", "No such file")
    failed(torn, 2, "torn.jsonl.gz", "torn")
    failed(folder, 2, "folder", "directory")
    assert not (tmp_path / "x.jsonl").exists()
    assert not (tmp_path / "x.jsonl.run.json").exists()


def test_skipped_rows_are_counted_for_people(tmp_path: Path, moody: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{\n{"prompt": "hi"}\n')
    words = [w for w in collecting("t.jsonl", moody, "x.jsonl", "--skip-bad") if w != "--json"]
    done = warren(*(w for w in words if w != "-q"), cwd=tmp_path).ok()
    assert "1 invalid input line" in done.out


def test_unknown_names_and_wrong_options_say_what_is_known(tmp_path: Path, moody: Path) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked("fine")])
    common = ("collect", tasks, "-o", "x.jsonl")
    (tmp_path / "bad.py").write_text("import nothing_like_this\n")
    (tmp_path / "two.py").write_text(
        "from warren import Environment\na = Environment('a')\nb = Environment('b')\n"
    )
    scripted = ("--model", "scripted")
    cases = {
        ("--env", "calculater", *scripted): "did you mean 'calculator'",
        ("--env", "bad.py", *scripted): "bad.py:1",
        ("--env", "two.py", *scripted): "two.py:a",
        ("--env", f"{moody}:nope", *scripted): "no environment 'nope'",
        ("--env", "calculator"): "--model",
        ("--env", "calculator", *scripted, "--temperatur", "1"): "--temperature",
        ("--env", "calculator", *scripted, "--run", "Not OK"): "must match",
        ("--env", "calculator", *scripted, "--broker", "amqp://x"): "--redis",
    }
    done = at_once(*((*common, *words) for words in cases), cwd=tmp_path)
    for one, said in zip(done, cases.values(), strict=True):
        failed(one, 2, said)
    assert not (tmp_path / "x.jsonl").exists()


def test_what_a_hostile_model_or_environment_does_is_on_the_row(
    tmp_path: Path, moody: Path
) -> None:
    words = ["unknown", "not json", "no object", "misfit", "explode", "fine"]
    rows = [asked(word) for word in words]
    rows += [asked("fine", verdict=verdict) for verdict in ("raise", "nan", "range")]
    tasks = write_rows(tmp_path / "t.jsonl", rows)
    done = warren(*collecting(tasks, moody, "x.jsonl"), cwd=tmp_path).ok()
    assert done.json["failed_by_kind"] == {"verifier": 3}
    got = rows_of(tmp_path / "x.jsonl")
    outputs = {
        word: next(
            item["output"]
            for item in row["response"]["output"]
            if item["type"] == "function_call_output"
        )
        for word, row in zip(words, got[:6], strict=True)
    }
    assert "Did you mean 'add'" in outputs["unknown"]
    assert "not JSON" in outputs["not json"]
    assert "object" in outputs["no object"]
    assert "a" in outputs["misfit"]
    assert "the tool exploded" in outputs["explode"]
    assert outputs["fine"] == "3"
    assert [row["reward"] for row in got] == [1.0] * 6 + [None] * 3
    exploded = next(c for c in got[4]["warren"]["calls"] if c["path"].endswith("tool.0"))
    assert exploded["error"]["kind"] == "tool"
    assert "moody.py" in exploded["error"]["where"]
    for row, said in zip(got[6:], ["the verifier exploded", "nan", "7"], strict=True):
        error = row["warren"]["error"]
        assert error["kind"] == "verifier"
        assert said in error["message"] + error["where"]
        assert (row["warren"]["status"], row["response"]["output"] != []) == ("failed", True)
    assert "moody.py" in got[6]["warren"]["error"]["where"]


def test_an_output_that_cant_be_written_is_said_first(tmp_path: Path, moody: Path) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked("fine")])
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir.jsonl").mkdir()
    (tmp_path / "foreign.jsonl").write_text('{"hello": 1}\n')
    below, folder, foreign, proc, failures = at_once(
        collecting(tasks, moody, "file/x.jsonl"),
        collecting(tasks, moody, "dir.jsonl"),
        collecting(tasks, moody, "foreign.jsonl"),
        collecting(tasks, moody, "/proc/x.jsonl"),
        collecting(tasks, moody, "x.jsonl", "--failures", "dir.jsonl"),
        cwd=tmp_path,
    )
    failed(below, 2, "file")
    failed(folder, 2, "dir.jsonl")
    failed(foreign, 2, "foreign.jsonl", "--overwrite")
    failed(proc, 2, "/proc")
    failed(failures, 2, "dir.jsonl")
    assert (tmp_path / "foreign.jsonl").read_text() == '{"hello": 1}\n'
    warren(*collecting(tasks, moody, "foreign.jsonl", "--overwrite"), cwd=tmp_path).ok()
    assert ids_of(rows_of(tmp_path / "foreign.jsonl")) == [(0, 0)]


def test_a_terminal_gets_a_live_bar_and_a_closed_pipe_is_no_error(
    tmp_path: Path, moody: Path
) -> None:
    tasks = write_rows(tmp_path / "t.jsonl", [asked(f"question {i}") for i in range(50)])
    words = ["collect", tasks, "--env", moody, "--model", "scripted", "-o", "x.jsonl"]
    ours, theirs = pty.openpty()
    read, write = os.pipe()
    os.close(read)
    process = spawn(*words, cwd=tmp_path, stdout=write, stderr=theirs, variables=TERMINAL)
    os.close(theirs)
    os.close(write)
    shown = _read_all(ours, process)
    assert process.returncode == 0, shown
    assert "50/50" in shown
    assert "mean reward 1.000" in shown
    assert "ETA" in shown
    assert len(rows_of(tmp_path / "x.jsonl")) == 50


def _read_all(terminal: int, process: "subprocess.Popen[bytes]") -> str:
    shown = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if select.select([terminal], [], [], 1.0)[0]:
                shown += os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    os.close(terminal)
    process.wait(10)
    return shown.decode()
