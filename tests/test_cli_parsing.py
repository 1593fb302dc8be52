"""The command line: what is typed becomes options, mistakes become one sentence and a code."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.errors import BrokerLost, Unreachable, UsageError
from broker.messages import Limits, Sampling
from warren.cli import known_error
from warren.cli_commands import COMMANDS, Given
from warren.cli_parser import Parsed, parse
from warren.keys import KEYS
from warren.options import CollectOptions, DlqOptions, EnqueueOptions, WorkerOptions
from warren.settings import load


def options(line: str, environ: dict[str, str] | None = None) -> Any:
    parsed = parse(line.split())
    assert isinstance(parsed, Parsed), parsed
    loaded = load(parsed.flags, environ or {})
    return parsed.command.build(Given(parsed.words, loaded.values, loaded.settings))


def warren(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "warren", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("WARREN_")} | environ,
        check=False,
    )


CLUSTER = "--broker amqp://h --redis redis://h"


def test_collect_with_everything_said() -> None:
    made = options(
        "collect t.jsonl --env calculator --model scripted -o o.jsonl --run r1 --repeats 4"
        " --limit 9 --concurrency 7 --temperature 0.5 --top-p 0.9 --max-output-tokens 99"
        " --seed 3 --max-steps 5 --timeout 60 --call-timeout 30 --max-total-tokens 1000"
        " --system-prompt hello --window 20 --max-failed 0 --failures f.jsonl --skip-bad"
        " --overwrite --retry-failed -q --json"
    )
    assert made == CollectOptions(
        tasks="t.jsonl",
        environment="calculator",
        model="scripted",
        output=Path("o.jsonl"),
        run_id="r1",
        repeats=4,
        limit=9,
        concurrency=7,
        sampling=Sampling(temperature=0.5, top_p=0.9, max_output_tokens=99, seed=3),
        limits=Limits(max_steps=5, timeout_s=60, call_timeout_s=30, max_total_tokens=1000),
        system_prompt="hello",
        window=20,
        max_failed=0,
        failures=Path("f.jsonl"),
        skip_bad=True,
        overwrite=True,
        retry_failed=True,
        quiet=True,
        json=True,
    )


def test_run_id_and_run_are_the_same_option() -> None:
    line = "collect t --env e --model m -o o"
    assert options(f"{line} --run-id a").run_id == options(f"{line} --run a").run_id == "a"


def test_environment_twins_stand_in_for_flags() -> None:
    environ = {
        "WARREN_ENV": "weather",
        "WARREN_MODEL": "m",
        "WARREN_OUTPUT": "o.parquet",
        "WARREN_JSON": "1",
        "WARREN_MAX_FAILED": "3",
    }
    made = options("collect -", environ)
    assert (made.tasks, made.environment, made.model) == ("-", "weather", "m")
    assert (made.output, made.json, made.max_failed) == (Path("o.parquet"), True, 3)


def test_a_system_prompt_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Be brief.\n", encoding="utf-8")
    made = options(f"collect t --env e --model m -o o --system-prompt {file}")
    assert made.system_prompt == "Be brief.\n"


def test_enqueue_with_wait() -> None:
    made = options(f"enqueue t --env e --model m --run r --wait {CLUSTER}")
    assert isinstance(made, EnqueueOptions)
    assert made.wait


def test_every_worker_kind_with_user_code_takes_several_environments() -> None:
    for kind in ("agent", "tool", "model", "verifier"):
        more = {"model": "--model m --base-url http://a/v1 --base-url http://b/v1"}
        line = f"worker {kind} --env a --env b --prefetch 5 {more.get(kind, '')}"
        made = options(f"{line} {CLUSTER}")
        assert isinstance(made, WorkerOptions)
        assert (made.kind, made.environments, made.prefetch) == (kind, ("a", "b"), 5)


def test_a_sink_worker_takes_an_output_and_no_environment_but_minds_no_twin() -> None:
    made = options(f"worker sink --output out {CLUSTER}", {"WARREN_ENV": "a"})
    assert made == WorkerOptions(kind="sink", output=Path("out"))
    for option in ("--env ", "--prefetch ", "--renew-after "):  # what it would not read
        assert option not in warren("worker", "sink", "--help").stdout
        assert option in warren("worker", "agent", "--help").stdout


def test_a_worker_environments_twin_is_separated_by_commas() -> None:
    assert options(f"worker tool {CLUSTER}", {"WARREN_ENV": "a,b"}).environments == ("a", "b")


def test_prefetch_of_a_kind_comes_from_its_own_setting() -> None:
    environ = {"WARREN_PREFETCH_TOOL": "3"}
    assert options(f"worker tool {CLUSTER}", environ).prefetch == 3
    assert options(f"worker tool --prefetch 4 {CLUSTER}", environ).prefetch == 4


def test_dlq_takes_ids_or_all_wherever_they_stand() -> None:
    made = options(f"dlq replay --run r {CLUSTER} one two")
    assert made == DlqOptions(action="replay", ids=("one", "two"), run="r")
    assert options(f"dlq drop --all {CLUSTER}").every
    for wrong in ("dlq drop", "dlq replay one --all"):
        with pytest.raises(UsageError, match="either ids or --all"):
            options(f"{wrong} {CLUSTER}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colect t", "there is no command 'colect'; did you mean 'collect'"),
        ("worker agnt", "there is no `warren worker agnt`; did you mean 'agent'"),
        ("collect", "the following arguments are required: TASKS"),
        ("collect t --modle m", "unknown option '--modle'; did you mean --model?"),
        ("collect t u --env e", "unknown argument 'u'"),
        ("collect t --model m -o o", "--env is missing"),
        ("collect t --env e -o o", "--model is missing"),
        ("collect t --env e --model m", "-o is missing"),
        ("collect t --env e --model m -o o --repeats x", "--repeats: 'x' must be a whole number"),
        ("collect t --env e --model m -o o --run A/B", "--run: 'A/B' must match [a-z0-9_-]"),
        ("collect t --env e --model m -o o --temperature 3", "--temperature: '3' must be a number"),
        ("collect t --env e --model m -o o --workers external", "needs --broker amqp://"),
        ("collect t --env e --model m -o o --failures o", "name the same file"),
        ("collect t --env e --model m -o o --base-url a", "--base-url: ['a'] must be a URL"),
        ("worker agent --broker amqp://h", "`warren worker agent` needs --redis redis://host"),
        (f"worker sink {CLUSTER}", "--output is missing"),
        (f"worker sink {CLUSTER} --output o --env e", "unknown option '--env'"),
        (f"worker model {CLUSTER}", "--model is missing"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(line)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", [n for n in COMMANDS if not COMMANDS[n].hidden])
def test_the_help_of_every_command_shows_the_twin_of_every_option(name: str) -> None:
    text = parse([*name.split(), "--help"])
    assert isinstance(text, str)
    for key in COMMANDS[name].keys:
        places = (KEYS[key].twin, KEYS[key].toml)
        assert f"[{', '.join(filter(None, places))}]" in " ".join(text.split())


def test_help_and_version_go_to_stdout_and_end_well() -> None:
    for words in (["--help"], ["worker", "--help"], ["worker"], ["collect", "-h"], ["--version"]):
        done = warren(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert "warren" in done.stdout


def test_wrong_usage_exits_with_2_and_says_why_on_stderr() -> None:
    done = warren("collect", "t", "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("warren: unknown option '--nonsense'")
    assert "Traceback" not in done.stderr
    assert "Traceback" in warren("collect", "t", "--nonsense", WARREN_DEBUG="1").stderr


def test_the_users_errors_are_found_in_nested_groups() -> None:
    lost = BrokerLost("gone")
    group = ExceptionGroup("a", [ValueError("x"), ExceptionGroup("b", [lost])])
    assert known_error(group) is lost
    assert known_error(ValueError("x")) is None
    usage = UsageError("u")
    assert known_error(ExceptionGroup("a", [Unreachable("h"), usage])) is usage


PROGRAM = """
import asyncio, sys, types
from warren import cli
async def run(options, settings):
    if options.json:
        raise cli.Unreachable("cannot reach amqp://u:secret@h")
    print("running", flush=True)
    await asyncio.sleep(30)
    return 0
module = types.ModuleType("warren.commands.env_list")
module.run = run
sys.modules["warren.commands.env_list"] = module
sys.exit(cli.main(["env", "list", *sys.argv[1:]]))
"""


def test_an_unreachable_server_exits_with_3_and_its_password_is_masked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "warren: cannot reach amqp://u:***@h\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_exits_with_130(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "")
