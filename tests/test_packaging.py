"""What is installed is ours, light, and starts at once."""

import subprocess
import sys
from importlib.metadata import packages_distributions, requires

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
