"""What is installed is ours, light, and starts at once."""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

PACKAGES = ("warren", "broker", "workers", "producers", "sinks", "environments")


def test_top_level_packages_belong_to_this_distribution() -> None:
    owners = packages_distributions()  # an editable install lists none: absent means ours
    for package in PACKAGES:
        assert owners.get(package, ["warren"]) == ["warren"], owners[package]


def test_the_base_install_is_light() -> None:
    base = [r for r in requires("warren") or [] if "extra ==" not in r]
    assert base
    assert not [r for r in base if r.split(">")[0].split("[")[0] in {"torch", "ray", "vllm"}]


def test_the_command_line_imports_nothing_heavy() -> None:
    program = "import sys, warren.cli; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {"aio_pika", "aiohttp", "openai", "prometheus_client", "pyarrow", "redis", "rich"}
    assert not loaded & heavy


def test_collecting_imports_only_what_its_run_uses(tmp_path: Path) -> None:
    tasks, output = tmp_path / "tasks.jsonl", tmp_path / "rows.jsonl"
    row = {"responses_create_params": {"input": [{"role": "user", "content": "What is 2 + 3?"}]}}
    tasks.write_text(json.dumps(row), encoding="utf-8")
    words = ["collect", str(tasks), "-o", str(output), "-q"]
    words += ["--env", "calculator", "--model", "scripted"]
    program = (
        "import sys, warren.cli\n"
        f"assert not warren.cli.main({words!r})\n"
        "import workers.model_gateway.vllm_backend\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert output.stat().st_size
    loaded = set(done.stderr.split())
    others = {"aio_pika", "aiohttp", "aiormq", "numpy", "openai", "prometheus_client", "pyarrow"}
    others |= {"http.server", "rich", "urllib.request"}
    ours = {"broker.metrics", "broker.rabbitmq", "broker.journal.redis", "warren.equivalence"}
    ours |= {"warren.rubrics", "warren.sandbox", "workers.sandbox", "warren.trainer"}
    assert not loaded & (others | ours)
