"""A collector's memory does not grow with the dataset."""

from pathlib import Path

from tests.support.command import asked, rows_of, run_python, write_rows

ALLOWED_MB = 30
#: Says the peak of its own memory as it ends; run as the command is.
MEASURED = """
import sys
from warren.cli import main
code = main(sys.argv[1:])
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
sys.stderr.write(peak[0])
raise SystemExit(code)
"""


def test_ten_times_the_tasks_take_no_more_memory(tmp_path: Path, moody: Path) -> None:
    """The judged version, 2,000 against 20,000 calculator tasks, has been measured by hand."""
    few, many = (_peak_mb(tmp_path, moody, count) for count in (300, 3000))
    assert many - few < ALLOWED_MB, (few, many)


def _peak_mb(folder: Path, moody: Path, count: int) -> float:
    tasks = write_rows(folder / f"{count}.jsonl", [asked(f"{i} " * 50) for i in range(count)])
    words = ("collect", tasks, "--env", moody, "--model", "scripted", "-q", "-o", f"{count}.out")
    done = run_python(MEASURED, *words, cwd=folder)
    assert len(rows_of(folder / f"{count}.out")) == count
    return int(done.err.split()[-1]) / 1024
