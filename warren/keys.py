"""Every setting there is, as data: its flag, its environment twin, its place in warren.toml.

`values.py` reads values by this table and `cli_parser.py` makes flags and --help from it, so that
the three can't drift apart. Precedence: flag > environment > warren.toml > default.
"""

from typing import Final

from warren.model_keys import MODEL
from warren.output_keys import OUTPUT
from warren.process_keys import PREFETCH_KEYS, PROCESS
from warren.run_keys import RUN

#: By name, which no two of them share.
KEYS: Final = {key.name: key for key in (*PROCESS, *PREFETCH_KEYS, *MODEL, *RUN, *OUTPUT)}
