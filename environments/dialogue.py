"""A box office talks to a simulated customer, who tells only what was asked for.

Trains multi-turn conversation. The reward is 0.8 where the booking is what the customer wanted,
within the task's number of turns, and 0.2 more where no question was wasted. Another model plays
the customer: the task's `user_model`, or the scripted one.
"""

import json
import random
import re

from warren import AgentTask, Context, Environment, Item, PolicyRequest, Rollout, message_text

env = Environment(
    "dialogue",
    system_prompt="You sell theatre tickets. Find out the play, the day and the number of seats; "
    "ask for one thing per message. When you know all three, write one line and nothing else: "
    "BOOKED: play=<play>, day=<weekday>, seats=<number>",
    tasks="tasks/dialogue.jsonl",
)

CUSTOMER = (
    "You are a customer at a box office. These are your wishes: {wishes}\n"
    "Answer what you are asked, and only that, in one short sentence."
)
SCRIPTED = "scripted/dialogue"


@env.agent
async def talk(ctx: Context, task: AgentTask) -> None:
    """Policy and customer take turns until there is a booking, or no patience is left."""
    for _ in range(task.row["max_turns"]):
        reply = await ctx.model()
        if reply.truncated or "BOOKED:" in reply.text:
            return
        ctx.conversation.say(await customer(ctx, task))


async def customer(ctx: Context, task: AgentTask) -> str:
    """What the customer says next. A branch of its own: the policy's words stay the main one."""
    wishes = json.dumps(task.row["wishes"])
    seen: list[Item] = [{"role": "system", "content": CUSTOMER.format(wishes=wishes)}]
    other = {"user": "assistant", "assistant": "user"}
    for item in ctx.conversation.items:
        if item.get("role") in other:
            seen.append({"role": other[item["role"]], "content": message_text(item)})
    model = task.row.get("user_model", SCRIPTED)
    [reply] = await ctx.gather(lambda branch: branch.model(seen, model=model))
    return reply.text


def booking(text: str) -> dict[str, str]:
    """What the last BOOKED line says; empty where there is none."""
    line = text.rpartition("BOOKED:")[2] if "BOOKED:" in text else ""
    said = re.findall(r"(\w+)=([^,\n]+)", line.splitlines()[0] if line else "")
    return {key: value.strip(" .").casefold() for key, value in said}


@env.reward(weight=0.8)
def booked(rollout: Rollout) -> float:
    wishes = {key: str(value).casefold() for key, value in rollout.task["wishes"].items()}
    return float(booking(rollout.answer) == wishes)


@env.reward(weight=0.2)
def brief(rollout: Rollout) -> float:
    """One question for each wish that the customer did not begin with, then the booking."""
    turns = sum(item.get("role") == "assistant" for item in rollout.output)
    opening = " ".join(message_text(item) for item in rollout.prompt if item["role"] == "user")
    unknown = [wish for wish in rollout.task["wishes"].values() if str(wish) not in opening]
    return booked(rollout) * float(turns <= len(unknown) + 1)


@env.policy
def scripted(request: PolicyRequest) -> str:
    """Plays both: the customer is polite and exact, the box office sometimes is neither."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    first = message_text(request.items[0])
    heard = [message_text(item) for item in request.items if item.get("role") == "user"]
    if first.startswith(CUSTOMER[:20]):
        wishes = json.loads((re.findall(r"\{.*?\}", first) or ["{}"])[0])
        asked = [wish for wish in wishes if wish in heard[-1]]
        return " ".join(f"The {wish}: {wishes[wish]}." for wish in asked) or "Pardon?"
    known = dict(re.findall(r"The (play|day|seats)(?: is|:) ([\w ]+)", " ".join(heard)))
    missing = [wish for wish in ("play", "day", "seats") if wish not in known]
    if luck < 0.15 or (luck < 0.3 and len(heard) == 1):
        return "Lovely weather today, isn't it?"
    if missing:
        return f"Which {missing[0]} would you like?"
    if luck > 0.85:
        known["seats"] = "100"
    return "BOOKED: " + ", ".join(f"{wish}={value}" for wish, value in known.items())
