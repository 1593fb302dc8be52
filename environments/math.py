"""Mathematics with one final answer, compared as mathematics: 0.5 is \\frac{1}{2}.

Trains single-step reasoning. The reward is 1 where the answer in the last \\boxed{...} equals the
expected one as a number or symbolically (the `math-verify` library: pip install 'warren[math]').
"""

import random
import re

from warren import Environment, MathEquality, PolicyRequest, Rollout, message_text

env = Environment(
    "math",
    system_prompt="Think step by step. Put the final answer, and nothing else, in \\boxed{}.",
    tasks="tasks/math.jsonl",
    requires={"math_verify": "warren[math]"},
)

PREFIX = re.compile(r"^(the )?(final )?answer( is)?\s*[:=]?\s*", re.IGNORECASE)
mathematics = MathEquality()


def final_answer(text: str) -> str:
    """What the last complete \\boxed{...} holds; without one, the last line."""
    text = text[-4000:]
    boxes = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*{", text)]
    for start in reversed(boxes[-5:]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) * (text[end - 1] != "\\")
            if depth == 0:
                return text[start:end]
    return PREFIX.sub("", ["", *text.strip().splitlines()][-1].strip("*$ "))


@env.reward
def correct(rollout: Rollout) -> float:
    expected = str(rollout.task["expected_answer"])
    return float(mathematics.equal(final_answer(rollout.answer), expected))


SOLUTIONS = {  # right, though not always as the task has them; and wrong
    "{3}{4} +": (r"1\frac{7}{12}", r"\frac{8}{10}"),
    "sqrt{72}": (r"\sqrt{72}", r"2\sqrt{6}"),
    "(x+3)": ("9 + 6x + x^2", "x^2+9"),
    "5x + 6": (r"\{3, 2\}", r"\{-3, -2\}"),
    "rectangle": ("35", "12"),
    "percent": ("12.0", "1.2"),
    "Differentiate": ("-2 + 3x^2", "3x^2"),
    "int_0": ("2^3", "6"),
    "x^2 < 9": ("(-3,3)", "[-3,3]"),
    "2^{10}": ("1{,}024", "20"),
    "Rationalize": (r"\sqrt{5}/5", r"\sqrt{5}"),
    "train": (r"375\text{ km}", r"375\text{ m}"),
    "Factor": ("(x+4)(x-4)", "(x-4)^2"),
    "100 positive": ("5,050", "5000"),
    "sin": ("0.5", r"\frac{\sqrt{3}}{2}"),
}


@env.policy
def scripted(request: PolicyRequest) -> str:
    """Knows the example tasks; by task and repeat it errs, or forgets to answer."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    text = " ".join(message_text(item) for item in request.items if item.get("role") == "user")
    right, wrong = next((SOLUTIONS[key] for key in SOLUTIONS if key in text), ("0", "1"))
    if luck > 0.9:
        return "Let me think about this for a very long time..."
    return f"Step by step, it is \\boxed{{{wrong if luck < 0.3 else right}}}. Hope this helps!"
