"""Where rows go, what becomes of failed and dead ones, and what is told on the way."""

from typing import Final

from warren.key import Key, boolean, integer, path

OUTPUT: Final[tuple[Key, ...]] = (
    Key(
        name="output",
        flags=("-o", "--output"),
        help="where the rows go",
        parse=path,
        toml="output",
        metavar="PATH",
    ),
    Key(
        name="failures",
        help="file for failed rollouts (default: in the output, reward null)",
        parse=path,
        metavar="PATH",
    ),
    Key(
        name="max_failed",
        help="exit with 4 when more rollouts failed than this",
        parse=integer(0),
        toml="collect.max_failed",
        metavar="N",
    ),
    Key(
        name="overwrite",
        help="delete what another run left at the output",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="retry_failed",
        help="run rollouts that failed before again",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="every",
        flags=("--all",),
        help="all of them (of --run, where one is named)",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="quiet",
        flags=("-q", "--quiet"),
        help="no progress and no summary",
        parse=boolean,
        default=False,
        switch=True,
    ),
    Key(
        name="json",
        help="one JSON object as stdout's last line",
        parse=boolean,
        default=False,
        switch=True,
    ),
)
