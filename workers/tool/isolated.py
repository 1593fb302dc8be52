"""Tool calls in processes of their own: what is sent there, and what becomes of one that died."""

import msgspec

from broker import codec
from broker.messages import Failure, ToolResult
from workers.isolation import CannotIsolate, ChildDied, Isolation
from workers.isolation_server import Ask, Handler
from workers.spec import EnvironmentSpec
from workers.tool.running import Job, Performed, broken_off, overdue, perform

#: The kind of job, as the child knows it.
KIND = "tool"


async def perform_isolated(isolation: Isolation, spec: EnvironmentSpec, job: Job) -> Performed:
    """Run the job in a process that can be killed. Raises nothing but CancelledError."""
    tool = spec.tools.get(job.tool)
    name = job.tool or "setup"
    try:
        answer = await isolation.run(KIND, codec.pack(job), job.timeout_s)
    except CannotIsolate as e:
        failure = Failure(kind="infra", message=f"cannot isolate {name}: {e}")
        return Performed(result=ToolResult(output="Error: not available", error=failure))
    except TimeoutError:
        return overdue(tool, job)
    except ChildDied as e:
        return Performed(result=broken_off(tool, f"{name} {e}", where=name))
    performed = codec.read(Performed, answer)
    # what was lost died with its process
    return msgspec.structs.replace(performed, overdue=False, lost=False)


def handler(spec: EnvironmentSpec) -> Handler:
    """The child's side."""

    async def handle(body: bytes, _: Ask) -> bytes:
        return codec.pack(await perform(spec, codec.read(Job, body)))

    return handle
