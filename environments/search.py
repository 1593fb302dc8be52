"""Questions about a small corpus: search it, read what helps, answer in a few words.

The reward is 0.7 for the right answer on the last line, and 0.3 for the share of the documents
with the evidence that were read, among the first five that were.
"""

import json
import math
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

from warren import Environment, Item, PolicyRequest, Rollout, message_text

env = Environment(
    "search",
    system_prompt="Answer from the documents: search, then read what looks right. "
    "The last line of your answer is the answer alone: a name or a number.",
    tasks="tasks/search.jsonl",
)

CORPUS = Path(__file__).with_name("data") / "search.jsonl"
DOCUMENTS = {d["id"]: d for d in map(json.loads, CORPUS.read_text("utf-8").splitlines())}
READS = 5  # more than these earn nothing: reading everything is no search


def words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


COUNTS = {id_: Counter(words(d["title"] + " " + d["text"])) for id_, d in DOCUMENTS.items()}
LENGTH = sum(counts.total() for counts in COUNTS.values()) / len(COUNTS)


def bm25(query: list[str], counts: Counter[str]) -> float:
    """How well a document fits: words that few documents have count most."""
    score = 0.0
    for word in set(query) & counts.keys():
        having = sum(word in other for other in COUNTS.values())
        rarity = math.log(1 + (len(COUNTS) - having + 0.5) / (having + 0.5))
        score += rarity * counts[word] / (counts[word] + 0.5 + counts.total() / LENGTH)
    return score


@env.tool(effect="pure")
async def search(query: str) -> list[dict[str, str]]:
    """Find documents: up to five, the best first, with id and title.

    Args:
        query: a few words, for example `lighthouse Skerry`
    """
    scores = {id_: bm25(words(query[:500]), counts) for id_, counts in COUNTS.items()}
    found = [id_ for id_ in sorted(scores, key=lambda id_: (-scores[id_], id_))[:5] if scores[id_]]
    return [{"id": id_, "title": DOCUMENTS[id_]["title"]} for id_ in found]


@env.tool(effect="pure")
async def read(document_id: str) -> str:
    """The text of a document.

    Args:
        document_id: as `search` gives it, for example `tarn-07`
    """
    if document_id in DOCUMENTS:
        return str(DOCUMENTS[document_id]["text"])
    raise ValueError(f"there is no document {document_id[:40]!r}; search for one")


def plain(text: str) -> list[str]:
    """An answer's words: case, punctuation, `1,200` and an article before it mean nothing."""
    return words(re.sub(r"(?i)^\W*(the|an?)\b(?=\W+\w)|(?<=\d),(?=\d{3}\b)", "", text))


@env.reward(weight=0.7)
def answer(rollout: Rollout) -> float:
    said = plain(["", *rollout.answer.strip().splitlines()][-1])
    return float(bool(said) and said == plain(str(rollout.task["expected_answer"])))


@env.reward(weight=0.3)
def retrieval(rollout: Rollout) -> float:
    outputs = {item["output"] for item in rollout.tool_outputs}
    reads = [call["arguments"] for call in rollout.tool_calls if call["name"] == "read"][:READS]
    gold = rollout.task["documents"]
    found = [id_ for id_ in gold if DOCUMENTS[id_]["text"] in outputs and id_ in str(reads)]
    return len(found) / len(gold)


KINDS = {"In which year": r"\b1[5-9]\d\d\b", "Who": r"(?<=by )[A-Z]\w+ [A-Z]\w+"}


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    """Searches, reads the best, follows a name once if asked about "... who ..."; may fail."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    question = " ".join(message_text(i) for i in request.items if i.get("role") == "user")
    outputs = [i["output"] for i in request.items if i.get("type") == "function_call_output"]
    kind = next((k for k in KINDS if question.startswith(k)), "")
    names = re.findall(KINDS["Who"], " ".join(outputs[1:]))
    step = len(outputs)
    if luck < 0.2 or (step and outputs[0] in {"[]", ""}):
        return "I don't know."
    if step in {0, 2} and (step == 0 or (names and " who " in question)):
        arguments = {"query": names[0] if step else question}
    elif step in {1, 3}:
        arguments = {"document_id": json.loads(outputs[-1])[-1 if 0.2 < luck < 0.3 else 0]["id"]}
    else:
        found = re.findall(KINDS.get(kind, r"\b\d{1,5}\b"), outputs[-1]) or ["nothing"]
        return f"The documents say it.\n{found[-1] if luck > 0.4 else found[-1] + '?!1'}"
    name = "search" if "query" in arguments else "read"
    call = {"type": "function_call", "name": name, "call_id": f"call_{step}"}
    return [call | {"arguments": json.dumps(arguments)}]
