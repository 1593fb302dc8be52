"""Imported by nobody but the server that `math_equal`'s children are forked from.

Parsers and simplifiers load their tables at first use: here, once, instead of in every child.
"""

import logging

from warren.equivalence_child import equal

logging.getLogger("math_verify").setLevel(logging.ERROR)
for one, other in (("\\frac{1}{2}", "0.5"), ("x^2+2x+1", "(x+1)^2"), ("(1,2)", "[1, 2)")):
    equal(one, other)
