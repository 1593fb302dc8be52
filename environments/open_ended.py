"""Short writing with no right answer: three votes of a judge, criterion by criterion.

Trains writing. Each criterion of the rubric is a component of the reward; all of them come from
one verdict, the median of three votes. The judge is the scripted one, for demos and tests: name a
real model in `judge_model` (or in a task's `judge_model`) to train on it.
"""

import json
import random
import re

from warren import (
    Environment,
    JudgeVerdict,
    PolicyRequest,
    Rollout,
    VerifierContext,
    message_text,
)

env = Environment(
    "open_ended",
    system_prompt="Write what is asked for, in at most a hundred words.",
    judge_model="scripted",
    tasks="tasks/open_ended.jsonl",
)

JUDGE = """You judge a short piece of writing.
<task>
{task}
</task>
<answer>
{answer}
</answer>"""
CRITERIA = {
    "on_topic": "it is about what the task asks for, in the form that it asks for",
    "clear": "every sentence can be understood at first reading",
    "vivid": "it has concrete details and no phrase that everybody uses",
}


async def judged(rollout: Rollout, ctx: VerifierContext) -> JudgeVerdict:
    """The same for all components; asked for once."""
    asked = " ".join(message_text(item) for item in rollout.prompt if item.get("role") == "user")
    return await ctx.verdict(
        JUDGE,
        {"task": asked, "answer": rollout.answer[:4000]},
        criteria=CRITERIA,
        votes=3,
        combine="median",
        model=rollout.task.get("judge_model"),
    )


@env.reward(weight=0.4)
async def on_topic(rollout: Rollout, ctx: VerifierContext) -> float:
    return (await judged(rollout, ctx)).criteria["on_topic"]


@env.reward(weight=0.3)
async def clear(rollout: Rollout, ctx: VerifierContext) -> float:
    return (await judged(rollout, ctx)).criteria["clear"]


@env.reward(weight=0.3)
async def vivid(rollout: Rollout, ctx: VerifierContext) -> float:
    return (await judged(rollout, ctx)).criteria["vivid"]


DETAILS = (
    "Rust flakes off the gate and sticks to my wet sleeve.",
    "Somebody has chalked a price on the door: two eggs.",
    "At noon the dog sleeps under the only bench.",
    "The kettle clicks as it cools.",
)


@env.policy
def scripted(request: PolicyRequest) -> str:
    """Writes with more or less care, by task and repeat; as the judge, scores what it can count."""
    luck = random.Random(request.rollout.partition("/")[2] + request.path)  # same in every run
    text = message_text(request.items[-1])
    if request.path.startswith("verify."):
        return score(message_text(request.items[0]), luck, again=len(request.items) > 1)
    topic = (re.findall(r"about (?:an? |the )?([\w ]+)", text) or ["this"])[0]
    opening = luck.choice([f"This is about the {topic}.", f"Look: the {topic}.", "Hello."])
    details = luck.sample(DETAILS, luck.randrange(len(DETAILS) + 1))
    return " ".join([opening, *details])


def score(prompt: str, luck: random.Random, again: bool) -> str:
    """A judge with a ruler. Now and then its first try is no JSON."""
    if luck.random() < 0.1 and not again:
        return "I rather like it."
    found = re.search(r"<task>\n(.*?)\n</task>\n<answer>\n(.*)\n</answer>", prompt, re.DOTALL)
    task, answer = found.groups() if found else ("", "")
    long_words = re.findall(r"\w{5,}", task.partition("about")[2])
    scores = {
        "on_topic": 10 if any(word in answer for word in long_words) else 2,
        "clear": 8 + luck.randrange(3),
        "vivid": min(2 * len(re.findall(r"\.", answer)), 9) + luck.randrange(2),
    }
    return f"```json\n{json.dumps({'reason': 'I counted.', 'scores': scores})}\n```"
