"""Whether two mathematical answers are the same, as safe as model output is hostile.

`math-verify` decides, in a process with limits on CPU time and memory: `9^{9^{9}}` in an answer
ends that process, never a worker. A small server that has the library loaded forks one for each
comparison, which takes some milliseconds; equal texts need none at all.
"""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import unicodedata
import weakref
from collections.abc import Callable
from typing import Final

#: Answers that are longer are wrong: no final answer needs more, and parsers are slow on nonsense.
MAX_CHARS: Final = 400
#: CPU seconds are bounded in the child; this only ends a check on a machine that is stuck.
_PATIENCE_S: Final = 120.0

_UNIT: Final = re.compile(
    r"(?<=[\d}])[\s~]*(?:\\[,;! ])*[\s~]*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?"
    r"(km|cm|mm|m|kg|mg|g|hours?|h|minutes?|min|seconds?|s|days?|years?|litres?|liters?|ml|l"
    r"|dollars?|cents?|euros?)"
    r"(?:\s*\})?(\^\{?[23]\}?)?\s*\.?$"
)

_SHORT: Final = {"litre": "l", "liter": "l", "hour": "h", "minute": "min", "second": "s"}


_GAP: Final = r"(?:\\[,;:! ]|~| )"
#: Ways to write one number that the parser takes for a product, or for nothing.
_GROUPED: Final = re.compile(rf"[-+]?\d{{1,3}}(?:{_GAP}\d{{3}})+(?:\.\d+)?")
_MIXED: Final = re.compile(rf"([-+]?\d+){_GAP}+(\d+)/(\d+)")
_SCIENTIFIC: Final = re.compile(r"([-+]?\d+(?:\.\d*)?)[eE]([-+]?\d+)")
_ABOUT: Final = re.compile(r"\\(?:approx(?:eq)?|simeq|doteq)(?![a-zA-Z])")
_DECIMAL: Final = re.compile(r"[-+]?\d+(?:\.(\d+))?")
_AND_OR: Final = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}")
_TEXT: Final = r"\\(?:text[a-z]*|math(?:rm|it|bf)|mbox)\s*\{[^{}]*\}"
#: The library takes all of it for a unit, which it drops.
_HIDDEN: Final = re.compile(rf"{_TEXT}\s*(?!{_TEXT})\S.*{_TEXT}(?:\^\S+)?$", re.DOTALL)
#: Where the precision is not said: the library's own.
_PLACES: Final = 6
_DENIAL: Final = re.compile(r"\\(?:neq?|not)(?![a-zA-Z])|≠")


class MathEquality:
    """Compares answers; one per environment is enough. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._end: Callable[[], object] = lambda: None

    def equal(self, said: str, expected: str) -> bool:
        """Whether `said` is `expected`: as a number, an expression, a set, an interval, ...

        Both are LaTeX or plain text, without `\\boxed`. Units are compared where both have one.
        `a \\approx b` is `a`, where `b` is its rounding. Several candidates (`2 or 3`) are a set,
        equal to that set only. What is too long, too slow or no mathematics at all is not equal.
        Blocks for some milliseconds, so call it from a reward that is not `async`.

        Raises:
            RuntimeError: the extra `math` is not installed, or no process could be had: our
                failure, which must not become a reward of 0.
        """
        said, expected = _plain(said), _plain(expected)
        if not said or len(said) > MAX_CHARS:
            return False
        if said == expected:
            return True
        if _DENIAL.search(said) or said.count("=") > 3 or _HIDDEN.search(_AND_OR.sub(",", said)):
            return False
        exact, *rounded = _ABOUT.split(said)
        if rounded:
            return self._approximated(exact, rounded, expected)
        before, equals, after = said.partition("=")
        if equals and re.search(r"\d", before) and not re.search(r"[a-zA-Z]", before):
            # the library looks at the right side only: `1 = 2` would be 2
            return self.equal(before, expected) and self.equal(after, expected)
        number, unit = _split(said)
        wanted, its_unit = _split(expected)
        if unit and its_unit and unit != its_unit:
            return False
        if unit == its_unit or len(unit or its_unit) > 1:  # "3m" may be three times m
            said, expected = number, wanted
        said, expected = _one_number(said), _one_number(expected)
        return said == expected or self._compare(said, expected)

    def close(self) -> None:
        """End the server, if there is one; the next comparison starts it again."""
        self._end()

    def _approximated(self, exact: str, rounded: list[str], expected: str) -> bool:
        """`x \\approx 2` is like `x = 2`; of `a \\approx b` the first is the answer."""
        if not re.search(r"[\d\\]", exact) and len(exact.strip()) <= 1:
            exact, *rounded = rounded
        return self.equal(exact, expected) and all(self._rounds(r, expected) for r in rounded)

    def _rounds(self, said: str, expected: str) -> bool:
        number, _ = _split(_plain(said))
        decimal = _DECIMAL.fullmatch(number)
        if decimal is None:
            return self.equal(said, expected)
        return self._compare(number, _split(expected)[0], len(decimal[1] or ""))

    def _compare(self, said: str, expected: str, places: int = _PLACES) -> bool:
        try:
            return self._ask(json.dumps([said, expected, places]).encode())
        except OSError as e:
            raise RuntimeError(f"the process that compares answers has ended: {e}") from e

    def _ask(self, question: bytes) -> bool:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._lock:
                socket.send_fds(self._running(), [b"?"], [theirs.fileno()])
            ours.settimeout(_PATIENCE_S)
            ours.sendall(question)
            ours.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: ours.recv(2), b""))
        if not answer:
            raise RuntimeError("the process that compares answers did not start")
        return answer == b"r1"

    def _running(self) -> socket.socket:
        if self._server is None or self._control is None or self._server.poll() is not None:
            if importlib.util.find_spec("math_verify") is None:
                raise RuntimeError(
                    "comparing mathematics needs math-verify: pip install 'warren[math]'"
                )
            self._end()
            self._control, theirs = socket.socketpair()
            with theirs:
                self._server = _start(theirs.fileno())
            self._end = weakref.finalize(self, _stop, self._server, self._control)
        return self._control


def _start(fd: int) -> subprocess.Popen[bytes]:
    """Without our environment variables: keys have no place beside hostile text."""
    return subprocess.Popen(
        [sys.executable, "-m", "warren.equivalence_child", str(fd)],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # Ctrl-C is for us
    )


def _stop(server: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    server.kill()
    server.wait()


def _plain(text: str) -> str:
    """With Unicode's digits, signs, fractions and powers as LaTeX writes them."""
    return "".join(map(_latex, text)).strip().strip("$").strip().rstrip(".").strip()


def _latex(char: str) -> str:
    if char in _SIGNS:
        return _SIGNS[char]
    form, _, rest = unicodedata.decomposition(char).partition(" ")
    letters = [chr(int(code, 16)) for code in rest.split()]
    match form:
        case "<fraction>" if len(letters) == 3:
            return f"\\frac{{{letters[0]}}}{{{letters[2]}}}"
        case "<super>" if letters[0].isdecimal():
            return f"^{{{letters[0]}}}"
        case "<wide>" | "<font>" | "<noBreak>":
            return "".join(letters)
    return char


def _one_number(text: str) -> str:
    """`1 000`, `1 1/2` and `1.5e3` as LaTeX writes them."""
    if _GROUPED.fullmatch(text):
        return re.sub(_GAP, "", text)
    if mixed := _MIXED.fullmatch(text):
        return f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    if scientific := _SCIENTIFIC.fullmatch(text):
        return f"{scientific[1]}\\times 10^{{{scientific[2]}}}"
    return text


_SIGNS: Final = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u2248": r"\approx ",
    "\u221a": r"\sqrt ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u00a0": " ",
}


def _split(text: str) -> tuple[str, str]:
    """A quantity's number and unit; an empty unit where there is none that we know."""
    match = _UNIT.search(text)
    if match is None:
        return text, ""
    word = match[1] if len(match[1]) == 1 else match[1].removesuffix("s")
    return text[: match.start()], _SHORT.get(word, word) + re.sub(r"\D", "", match[2] or "")
