"""Instructions that a program can check: lengths, words, formats, cases, beginnings and ends.

Trains precise instruction following, in a single step. A task's `constraints` name functions of
`RULES`. The reward is 0.5 for their satisfied share, and 0.5 more where all are satisfied.
"""

import json
import random
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from warren import Environment, PolicyRequest, Rollout, message_text

env = Environment(
    "instructions",
    system_prompt="Follow every instruction to the letter; programs check them.",
    tasks="tasks/instructions.jsonl",
)


def words(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text).casefold().replace("’", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def phrase_in(phrase: str, text: str) -> bool:
    """As whole words, in any case."""
    return f" {' '.join(words(phrase))} " in f" {' '.join(words(text))} "


def bullets(text: str) -> int:
    return sum(bool(re.match(r"\s*[-*•]\s+\S", line)) for line in text.splitlines())


def json_keys(text: str) -> set[str] | None:
    """The keys of the one JSON object that the text is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return set(found) if isinstance(found, dict) else None


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?…]+(?=\s|$)", text.strip()))


RULES: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, n: len(words(text)) <= n,
    "min_words": lambda text, n: len(words(text)) >= n,
    "words": lambda text, n: len(words(text)) == n,
    "sentences": lambda text, n: sentences(text) == n,
    "bullets": lambda text, n: bullets(text) == n,
    "contains": lambda text, phrase: phrase_in(phrase, text),
    "avoids": lambda text, phrase: not phrase_in(phrase, text),
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "lower_case": lambda text, _: text == text.lower(),
    "upper_case": lambda text, _: text == text.upper(),
    "no_commas": lambda text, _: "," not in text,
    "json": lambda text, keys: json_keys(text) == set(keys),
}


def satisfied(rollout: Rollout) -> list[bool]:
    """Constraint by constraint. Saying nothing follows no instruction."""
    text = rollout.answer.strip()
    wanted = rollout.task["constraints"]
    return [bool(text) and RULES[name](text, value) for name, value in wanted.items()]


@env.reward(weight=0.5)
def fraction(rollout: Rollout) -> float:
    kept = satisfied(rollout)
    return sum(kept) / len(kept)


@env.reward(weight=0.5)
def all_satisfied(rollout: Rollout) -> float:
    return float(all(satisfied(rollout)))


ANSWERS = {
    "fog": "Fog is a cloud that touches the ground.",
    "bees": "- honey\n- wax\n- pollen",
    "tea": "pour hot water over the leaves and wait",
    "volcano": "RUN UPHILL. CALL FOR HELP.",
    "Oslo": '{"city": "Oslo", "country": "Norway"}',
    "lighthouse": "Once, a lamp burned all night. The keeper slept. A ship came home. The end.",
    "snow": "White flakes fall from cold clouds and cover the sleeping fields tonight.",
    "bread": "* Mix flour\n* Knead it\n* Let it rise\n* Bake",
    "invitation": "Dear Ada, please come to my party on Friday at eight. Yours, Ben",
    "moon": "The Moon keeps one face towards us. It pulls the tides. It has no air.",
    "recipe": '{"name": "soup", "minutes": 30, "steps": ["chop", "boil"]}',
    "silence": "It is the calm that stays when nobody speaks and nothing moves at all",
}


@env.policy
def scripted(request: PolicyRequest) -> str:
    """Knows the example tasks; by task and repeat it refuses, or says a little too much."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    asked = " ".join(message_text(item) for item in request.items if item.get("role") == "user")
    if luck < 0.15:
        return "As a language model, I cannot do that in good conscience."
    text = next((ANSWERS[key] for key in ANSWERS if key in asked), "Fog.")
    return f"{text}\n\nHope this helps, friend!" if luck < 0.35 else text
