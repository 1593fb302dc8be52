"""Whether two mathematical answers are the same, as safe as model output is hostile.

`math-verify` decides, in a child process with limits on CPU time and memory: `9^{9^{9}}` in an
answer ends that child, never a worker. Children are forked from a server that has the library
loaded, which takes some 20 ms; equal texts need no child at all.
"""

import importlib.util
import multiprocessing
import re
import unicodedata
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Final

from warren.equivalence_child import compare

#: Answers that are longer are wrong: no final answer needs more, and parsers are slow on nonsense.
MAX_CHARS: Final = 400
#: CPU seconds are bounded in the child; this only ends a check on a machine that is stuck.
_PATIENCE_S: Final = 120.0

_UNIT: Final = re.compile(
    r"(?<=[\d}])[\s~]*(?:\\[,;! ])*[\s~]*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?"
    r"(km|cm|mm|m|kg|mg|g|hours?|h|minutes?|min|seconds?|s|days?|years?|litres?|liters?|ml|l)"
    r"(?:\s*\})?(\^\{?[23]\}?)?\s*\.?$"
)


def math_equal(said: str, expected: str) -> bool:
    """Whether `said` is `expected`: as a number, an expression, a set, an interval, an equation.

    Both are LaTeX or plain text without `\\boxed`. Units are compared where both have one. What
    is too long, too slow or no mathematics is not equal. Runs in a thread's time, not the event
    loop's: call it from a reward that is not `async`.

    Raises:
        RuntimeError: the extra `math` is not installed, or no child could be started; that is
            our failure, so it must not become a reward of 0.
    """
    said, expected = _plain(said), _plain(expected)
    if not said or len(said) > MAX_CHARS:
        return False
    if said == expected:
        return True
    if (unit := _unit(said)) and (wanted := _unit(expected)) and unit != wanted:
        return False
    if importlib.util.find_spec("math_verify") is None:
        raise RuntimeError("math_equal needs math-verify: pip install 'warren[math]'")
    return _in_child(said, expected)


def _in_child(said: str, expected: str) -> bool:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warren.equivalence_warm"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=compare, args=(send, said, expected), daemon=True)
    child.start()
    send.close()
    try:
        return _verdict(receive, child)
    finally:
        child.kill()
        child.join()
        child.close()
        receive.close()


def _verdict(receive: Connection, child: ForkServerProcess) -> bool:
    """Two words: that it is there, and whether they are equal. Ended by a limit, it says one."""
    try:
        there = receive.poll(_PATIENCE_S) and receive.recv()
    except EOFError:
        there = False
    if not there:
        child.kill()
        child.join()
        raise RuntimeError(f"the process that compares answers ended with {child.exitcode}")
    if not receive.poll(_PATIENCE_S):
        raise RuntimeError(f"comparing answers took longer than {_PATIENCE_S:g} s")
    try:
        return bool(receive.recv())
    except EOFError:
        return False


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


_SIGNS: Final = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u221a": r"\sqrt ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u00a0": " ",
}


def _unit(text: str) -> str:
    match = _UNIT.search(text)
    if match is None:
        return ""
    name = {"liter": "litre", "h": "hour", "min": "minute", "s": "second", "l": "litre"}
    word = match[1] if len(match[1]) == 1 else match[1].removesuffix("s")
    return name.get(word, word) + re.sub(r"\D", "", match[2] or "")
