"""`python -m warren.locked SECONDS THEN`: says who held the interpreter's lock until the end.

Its input is where faulthandler found the threads of a process that it has just ended
(warren/blocking.py). Of those only the user's count.
"""

import re
import sys
from collections.abc import Iterator
from typing import Final

from warren.blocking import ISOLATED
from workers.watchdog import is_users

_FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')


def main(seconds: str, then: str) -> int:
    """Read the dump and say it on stderr."""
    blocks = sys.stdin.read().split("\n\n")
    found = [(place, block) for block in blocks for place in _users_place(block)]
    places = " or ".join(place for place, _ in found) or "code that is not yours"
    stacks = "\n".join(block for _, block in found) or "\n\n".join(blocks)
    sys.stderr.write(
        f"warren: {places} held the interpreter's lock for {seconds} s: nothing else could run, no "
        "thread either. A long call into C does that, such as a regular expression that "
        f"backtracks for ever: give it less, or another way; {ISOLATED}\n"
        f"warren: {then}\n{stacks.rstrip()}\n"
    )
    return 0


def _users_place(block: str) -> Iterator[str]:
    """`file:line: function` of the innermost frame that is the user's, if there is one."""
    for match in _FRAME.finditer(block):
        file, line, function = match.groups()
        if is_users(file):
            yield f"{file}:{line}: {function}"
            return


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
