"""The system-call filter of the sandbox: a classic BPF program, made by hand.

A deny list on top of namespaces, no capabilities and an unused uid: it takes away what has a
history of kernel holes or reaches around the other limits (memory that no process maps, sockets
that know no network namespace). Denied calls fail with EPERM, so programs can fall back.
"""

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Final

#: Name: number on (x86_64, aarch64); None where the architecture has no such call.
_DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # other processes, and the kernel's own insides
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "syslog": (103, 116),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    # memory that lives on without being mapped, and so would escape the memory limit
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}

#: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Others, like AF_VSOCK, ignore network namespaces.
_SOCKET_FAMILIES: Final = (1, 2, 10, 16)
#: CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_NEW_NAMESPACES: Final = 0x7E020080
#: Put characters into the terminal of whoever started the worker (CVE-2017-5226, CVE-2023-28339).
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
#: x86_64 kernels take 32-bit-pointer calls above this bit: a second way to each denied call.
_X32_BIT: Final = 0x40000000

_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_NR, _ARCH = 0, 4


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    column: int
    """Of `_DENIED`."""
    clone: int
    clone3: int
    ioctl: int
    socket: int


_ARCHITECTURES: Final = {
    "x86_64": _Architecture(0xC000003E, 0, clone=56, clone3=435, ioctl=16, socket=41),
    "aarch64": _Architecture(0xC00000B7, 1, clone=220, clone3=435, ioctl=29, socket=198),
}


def supported(machine: str = "") -> bool:
    """Whether there is a filter for this machine's architecture."""
    return (machine or platform.machine()) in _ARCHITECTURES


def program(machine: str = "") -> bytes:
    """The filter for `bwrap --seccomp`; KeyError for an unsupported architecture."""
    arch = _ARCHITECTURES[machine or platform.machine()]
    numbers = [n[arch.column] for n in _DENIED.values()]
    parts = [
        _op(_LOAD, _ARCH),
        _op(_JEQ, arch.audit, yes=1),
        _op(_RET, _KILL),
        _op(_LOAD, _NR),
        *([_op(_JGE, _X32_BIT, no=1), _op(_RET, _KILL)] if arch.column == 0 else []),
        *(op for n in numbers if n is not None for op in _deny_call(n, errno.EPERM)),
        # its flags are in memory, where no filter can look; C libraries then use clone
        *_deny_call(arch.clone3, errno.ENOSYS),
        *_inspect(arch.clone, 0, [_op(_JSET, _NEW_NAMESPACES, no=1), _op(_RET, _denied())]),
        *_inspect(arch.ioctl, 1, [*_deny_call(_TIOCSTI), *_deny_call(_TIOCLINUX)]),
        *_inspect(arch.socket, 0, _only(_SOCKET_FAMILIES)),
        _op(_RET, _ALLOW),
    ]
    return b"".join(parts)


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many instructions a comparison skips."""
    return struct.pack("HBBI", code, yes, no, value)


def _denied(error: int = errno.EPERM) -> int:
    return _ERRNO | error


def _deny_call(number: int, error: int = errno.EPERM) -> list[bytes]:
    """Fail if the loaded word is `number`."""
    return [_op(_JEQ, number, no=1), _op(_RET, _denied(error))]


def _inspect(number: int, argument: int, checks: list[bytes]) -> list[bytes]:
    """For this call, run `checks` on the low half of an argument; allow what passes them."""
    body = [_op(_LOAD, 16 + 8 * argument), *checks, _op(_RET, _ALLOW)]
    return [_op(_JEQ, number, no=len(body)), *body]


def _only(values: tuple[int, ...]) -> list[bytes]:
    """Fail unless the loaded word is one of `values`."""
    left = range(len(values), 0, -1)
    return [
        *(_op(_JEQ, value, yes=skip) for value, skip in zip(values, left, strict=True)),
        _op(_RET, _denied()),
    ]
