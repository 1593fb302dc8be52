"""`warren collect --max-tokens / --max-cost`, from the outside."""

import json
from pathlib import Path

from tests.support.command import (
    asked,
    by_request,
    echo,
    ids_of,
    provider,
    rows_of,
    warren,
    write_rows,
)
from tests.support.ports import free_port

COMMON = ("--env", "calculator", "--model", "m", "--concurrency", 4, "--json")


def test_a_run_that_has_used_up_its_tokens_ends_with_a_row_for_every_rollout(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "t.jsonl", [asked(f"say {n}", expected_answer="1") for n in range(60)])
    with provider(by_request(echo, delay_s=0.3)) as server:
        done = warren(
            *("collect", "t.jsonl", "--base-url", server.url, "-o", "rows.jsonl"),
            *(*COMMON, "--max-tokens", 200),
            cwd=tmp_path,
        )
        seen = len(server.seen)
    rows = rows_of(tmp_path / "rows.jsonl")
    assert (done.code, len(ids_of(rows))) == (0, 60), done.err
    failed = [row for row in rows if row["warren"]["status"] == "failed"]
    assert {row["warren"]["error"]["kind"] for row in failed} == {"budget"}
    assert {row["reward"] for row in failed} == {None}
    assert 8 <= seen < 40
    assert done.json["failed_by_kind"] == {"budget": len(failed)}


def test_a_limit_in_dollars_needs_a_price(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.jsonl", [asked(f"say {n}", expected_answer="1") for n in range(40)])
    with provider(by_request(echo, delay_s=0.3)) as server:
        words = ("collect", "t.jsonl", "-o", "rows.jsonl", *COMMON, "--max-cost", 0.02)
        url = json.dumps([server.url])
        toml = tmp_path / "warren.toml"
        toml.write_text(f"[models.m]\nbase_urls = {url}\n", encoding="utf-8")
        refused = warren(*words, cwd=tmp_path)
        assert (refused.code, "--max-cost needs the price of 'm'" in refused.err) == (2, True)
        price = "price = { prompt = 100, generated = 100 }\n"
        toml.write_text(f"[models.m]\nbase_urls = {url}\n{price}", encoding="utf-8")
        done = warren(*words, cwd=tmp_path).ok()
    assert done.json["failed_by_kind"]["budget"] > 0
    assert done.json["rollouts"] == 40


def test_a_limit_in_dollars_needs_a_price_where_other_workers_ask_the_models_too(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "t.jsonl", [asked("say 1", expected_answer="1")])
    nobody = ("--broker", f"amqp://127.0.0.1:{free_port()}", "--redis", "redis://127.0.0.1:1")
    common = ("--env", "calculator", "--model", "m", "--max-cost", 1, *nobody)
    for command in (
        ("enqueue", "t.jsonl"),
        ("collect", "t.jsonl", "-o", "rows.jsonl", "--workers", "external"),
    ):
        refused = warren(*command, *common, cwd=tmp_path)
        assert (refused.code, "--max-cost needs the price of 'm'" in refused.err) == (2, True)
    scripted = (*common[:3], "scripted", *common[4:], "--judge-model", "j")
    judged = warren("enqueue", "t.jsonl", *scripted, cwd=tmp_path)
    assert "--max-cost needs the price of 'j'" in judged.err
