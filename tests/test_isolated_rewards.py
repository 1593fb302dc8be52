"""Rewards that kill or block: they cost their own rollout its reward, and no other its result."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from broker.messages import Verdict
from tests.support.rig import Rig
from warren import load_environment
from warren.hosting import isolation_of
from warren.sandboxing import without_sandbox
from workers.tool.isolated import perform_isolated
from workers.tool.running import Job

SOURCE = """
import asyncio, ctypes, os, time
from warren import Environment, Rollout, VerifierContext

env = Environment("risky", judge_model="m")

@env.reward(timeout_s=1.0)
async def risky(rollout: Rollout, ctx: VerifierContext) -> float:
    match rollout.task["how"]:
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "never":
            time.sleep(60)
        case "raise":
            raise ValueError("no good")
        case "text":
            return "five"
        case "judge":
            first, second = await ctx.judge("one"), await ctx.judge("two")
            return 0.5 if (first, second) == ("one!", "two!") else 0.0
    return 0.25
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "risky.py"
    path.write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    return path


@pytest.fixture
def isolated_path(path: Path) -> Path:
    path.write_text(SOURCE.replace("timeout_s=1.0", "isolated=True"), encoding="utf-8")
    return path


@pytest.fixture
def slow_path(tmp_path: Path) -> Path:
    path = tmp_path / "slow.py"
    path.write_text(
        "import time\nfrom warren import Environment, Rollout\nenv = Environment('slow')\n"
        "@env.reward(timeout_s=0.05)\ndef slow(rollout: Rollout) -> float:\n"
        "    time.sleep(2)\n    return 1.0\n",
        encoding="utf-8",
    )
    return path


async def verdict_of(path: Path, how: str, taken: int = 1) -> Verdict:
    """What comes of one rollout whose verification was taken so often before, in vain."""
    rows = {"row": f'{{"responses_create_params": {{"input": "hi"}}, "how": "{how}"}}'.encode()}
    async with Rig(load_environment(str(path)).spec(), lambda items, _: answer(items)) as rig:
        task = rig.task(0, **rows)
        for _ in range(taken):
            await rig.journal.take(f"{task.journal_key}/verify", "somebody who died")
        await rig.journal.end_lease("somebody who died")
        async with rig.agent(), rig.verifier() as verifier:
            await rig.submit(0, **rows)
            [result] = await rig.wait(1, 60)
            await verifier.close()
            return result.verdict


def answer(items: list[dict[str, Any]]) -> str:
    return f"{items[-1]['content']}!"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "reward 'risky': ended its process (exit status 7)"),
        ("segfault", "reward 'risky': killed its process (SIGSEGV)"),
        ("never", "reward 'risky': no reward within 1 s: it blocked its process"),
        ("raise", "reward 'risky': ValueError: no good"),
        ("text", "reward 'risky': returned str 'five', not a number"),
    ],
)
async def test_a_reward_that_killed_its_worker_is_null_with_its_name(
    path: Path, how: str, said: str
) -> None:
    verdict = await verdict_of(path, how)
    assert verdict.reward is None
    assert verdict.error is not None
    assert verdict.error.kind == "verifier"
    assert verdict.error.message == said


async def test_an_honest_reward_beside_it_is_scored_in_the_child_as_in_the_worker(
    path: Path,
) -> None:
    assert (await verdict_of(path, "fine")).reward == 0.25
    assert (await verdict_of(path, "fine", taken=20)).reward == 0.25


async def test_judges_are_asked_from_the_child_too_and_their_calls_are_recorded(
    path: Path,
) -> None:
    verdict = await verdict_of(path, "judge")
    assert verdict.reward == 0.5
    assert len(verdict.calls) == 2


async def test_isolated_rewards_are_always_in_a_child(isolated_path: Path) -> None:
    verdict = await verdict_of(isolated_path, "exit", taken=0)
    assert verdict.error is not None
    assert "exit status 7" in verdict.error.message


async def test_a_worker_with_too_many_lost_rewards_asks_to_be_restarted(slow_path: Path) -> None:
    spec = load_environment(str(slow_path)).spec()
    async with Rig(spec, lambda items, _: "hi") as rig, rig.agent(), rig.verifier() as verifier:
        await rig.submit(*range(10))
        results = await rig.wait(10, 60)
        assert [r.verdict.error.message for r in results if r.verdict.error] == [
            "reward 'slow': no reward within 0.05 s"
        ] * 10
        assert verifier.losses.unhealthy.is_set()
        await verifier.close()


@pytest.fixture
def curious_path(tmp_path: Path) -> Path:
    path = tmp_path / "curious.py"
    path.write_text(
        "import os\nfrom warren import Environment, run_code\nenv = Environment('curious')\n"
        "@env.tool(isolated=True)\nasync def same_user() -> bool:\n"
        "    found = await run_code('import os; print(os.getpid(), os.getcwd())')\n"
        "    return 'SANDBOXED' if b'/tmp/work' in found.stdout else 'FREE'\n",
        encoding="utf-8",
    )
    return path


async def test_a_child_has_its_workers_mind_about_sandboxes(curious_path: Path) -> None:
    spec = load_environment(str(curious_path)).spec()
    job = Job(tool="same_user", arguments="{}", idempotency_key="k", timeout_s=20.0)
    with without_sandbox():
        isolation = isolation_of(spec)
    assert isolation is not None
    performed = await perform_isolated(isolation, spec, job)
    await isolation.close()
    assert performed.result.output == "FREE", performed.result
