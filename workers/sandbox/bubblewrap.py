"""The command line of a sandbox: what is inside of it, and who runs there.

Inside: /usr and the interpreter, read-only; a private /tmp, /dev/shm, /proc and /dev; nothing else
of this machine, no network, no capability, no variable of ours. The program comes last, behind
`prlimit` (and `setpriv` when we are root), both of which run confined already.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from workers.sandbox.host import Host
from workers.sandbox.limits import Limits

#: Where the program starts and its files lie.
WORK: Final = "/tmp/work"

_NAMESPACES: Final = (
    "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
)  # fmt: skip
#: The dynamic linker's cache, links like awk -> mawk, and the clock; none holds a secret.
_ETC: Final = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_ENVIRONMENT: Final = {
    "HOME": WORK,
    "LANG": "C.UTF-8",
    "LOGNAME": "sandbox",
    "MALLOC_ARENA_MAX": "2",  # threads would reserve 64 MiB of address space each
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",
    "USER": "sandbox",
}


def command(
    host: Host,
    program: Sequence[str],
    *,
    limits: Limits,
    files: Mapping[str, int],
    seccomp_fd: int,
    status_fd: int,
    uid: int | None,
) -> list[str]:
    """The whole argv. `files` maps names in the working directory to descriptors to copy from."""
    drop = _drop(host, uid) if uid is not None else []
    outside, inside = (drop, []) if host.mode == "root-userns" else ([], drop)
    return [
        *outside,
        host.bwrap,
        *_confinement(host),
        *_system(host),
        *_private(limits, files),
        *("--seccomp", str(seccomp_fd), "--json-status-fd", str(status_fd)),
        *("--remount-ro", "/", "--chdir", WORK, "--"),
        *inside,
        *_limited(host, limits),
        *program,
    ]


def checked_name(name: str) -> str:
    """A file's name below the working directory; ValueError for any that could lead out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"not a name inside the sandbox: {name!r}")
    return str(path)


def _confinement(host: Host) -> list[str]:
    options = [*_NAMESPACES, "--die-with-parent", "--new-session", "--clearenv"]
    options += [word for item in _ENVIRONMENT.items() for word in ("--setenv", *item)]
    options += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    if host.mode == "root":
        # for setpriv, whose change of uid then takes these away for good
        return [*options, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    options.append("--unshare-user")
    return [*options, "--disable-userns"] if host.disable_userns else options


def _system(host: Host) -> list[str]:
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        top = Path("/", name)
        if top.is_symlink():
            options += ["--symlink", str(top.readlink()), str(top)]
        elif top.is_dir():
            options += ["--ro-bind", str(top), str(top)]
    options += ["--perms", "0755", "--dir", "/etc"]
    for path in _ETC:
        options += ["--ro-bind-try", path, path]
    for directory in host.read_only:
        # bwrap gives a parent it makes itself the mode of the real one: /root would be closed
        for parent in reversed(directory.parents[:-1]):
            options += ["--perms", "0755", "--dir", str(parent)]
        options += ["--ro-bind", str(directory), str(directory)]
    for directory in host.hidden:
        options += ["--perms", "0555", "--size", "4096", "--tmpfs", str(directory)]
        options += ["--remount-ro", str(directory)]
    return options


def _private(limits: Limits, files: Mapping[str, int]) -> list[str]:
    size = str(limits.disk_bytes)
    options = ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):
        options += ["--perms", "1777", "--size", size, "--tmpfs", path]
    options += ["--remount-ro", "/dev", "--perms", "0777", "--dir", WORK]
    for name in sorted(_directories(files)):
        options += ["--perms", "0777", "--dir", f"{WORK}/{name}"]
    for name, fd in files.items():
        options += ["--perms", "0666", "--file", str(fd), f"{WORK}/{name}"]
    return options


def _directories(names: Mapping[str, int]) -> set[str]:
    return {str(p) for name in names for p in PurePosixPath(name).parents if str(p) != "."}


def _drop(host: Host, uid: int) -> list[str]:
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return [host.setpriv, *ids, "--inh-caps=-all", "--no-new-privs", "--"]


def _limited(host: Host, limits: Limits) -> list[str]:
    """Set inside, so that processes are counted per sandbox and bwrap isn't one of them."""
    reaper = 0 if host.mode == "root" else 1  # has our uid there
    # the watch counts processor time of all processes; this stops one of them if we are late
    cpu = int(limits.cpu_s) + 2
    return [
        host.prlimit,
        f"--as={limits.memory_bytes}",
        f"--cpu={cpu}",
        f"--nproc={limits.processes + reaper}",
        f"--nofile={limits.open_files}",
        f"--fsize={limits.file_bytes}",
        "--core=0",
        "--memlock=0",
        "--msgqueue=0",
        "--",
    ]
