"""Office errands on a calendar, an outbox and a CRM, all of them the state of the rollout.

Trains stateful tool use. The reward is 1 where the tables are in the end as the task expects them:
everything that was asked for is done, and nothing else.
"""

import json
import random
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from warren import Environment, Item, PolicyRequest, Rollout, Task, message_text

env = Environment(
    "workplace",
    system_prompt="You run an office with the tools. Do exactly what is asked, then say `Done.`",
    tasks="tasks/workplace.jsonl",
)
Stage = Literal["lead", "prospect", "customer", "lost"]
Title = Annotated[str, "title of the event, exactly"]
Day = Annotated[str, "day of the week, for example monday"]
Time = Annotated[str, "24 hours, for example 09:30"]
Address = Annotated[str, "e-mail address of the contact"]


@dataclass
class Event:
    title: str
    day: str
    time: str


@dataclass
class Contact:
    name: str
    email: str
    stage: Stage


@dataclass
class Email:
    to: str
    subject: str
    body: str


@dataclass
class Office:
    calendar: list[Event] = field(default_factory=list)
    contacts: list[Contact] = field(default_factory=list)
    outbox: list[Email] = field(default_factory=list)


@env.setup
def office(task: Task) -> Office:
    start = task["office"]
    calendar = [Event(**row) for row in start["calendar"]]
    return Office(calendar, [Contact(**row) for row in start["contacts"]])


@env.tool(effect="pure")
async def list_events(state: Office, day: Day) -> list[dict[str, str]]:
    """The events of a day."""
    return [asdict(event) for event in state.calendar if event.day == day.lower()]


@env.tool
async def add_event(state: Office, title: Title, day: Day, time: Time) -> str:
    """Put an event into the calendar; its title must be new."""
    if any(event.title == title for event in state.calendar):
        raise ValueError(f"there is an event {title!r} already")
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", time):
        raise ValueError("`time` must look like 09:30")
    state.calendar.append(Event(title, day.lower(), time))
    return "added"


@env.tool
async def cancel_event(state: Office, title: Title) -> str:
    """Remove an event from the calendar."""
    state.calendar.remove(only([e for e in state.calendar if e.title == title], title))
    return "cancelled"


@env.tool(effect="pure")
async def find_contact(state: Office, name: Annotated[str, "full name"]) -> dict[str, str]:
    """A contact's e-mail address and stage."""
    return asdict(only([c for c in state.contacts if c.name.lower() == name.lower()], name))


@env.tool
async def set_stage(state: Office, email: Address, stage: Annotated[Stage, "the new stage"]) -> str:
    """Change how far we are with a contact."""
    only([c for c in state.contacts if c.email == email], email).stage = stage
    return "set"


@env.tool(effect="at_most_once")
async def send_email(
    state: Office,
    to: Address,
    subject: Annotated[str, "one line, exactly as asked for"],
    body: Annotated[str, "the text"],
) -> str:
    """Send an e-mail. It can't be taken back."""
    state.outbox.append(Email(to, subject, body))
    return "sent"


def only(found: list[Any], wanted: str) -> Any:
    if len(found) != 1:
        raise ValueError(f"there is no {wanted[:80]!r}")
    return found[0]


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Comparable: the order of rows means nothing."""
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@env.reward
def done(rollout: Rollout) -> float:
    """E-mails count by receiver and subject; whoever reads their bodies is a judge."""
    state, wanted = rollout.state, rollout.task["expected"]
    outbox = [{"to": mail.to, "subject": mail.subject} for mail in state.outbox]
    return float(
        table(asdict(event) for event in state.calendar) == table(wanted["calendar"])
        and table(asdict(contact) for contact in state.contacts) == table(wanted["contacts"])
        and table(outbox) == table(wanted["outbox"])
    )


ORDERS = {
    "add_event": r'Add "(?P<title>.*?)" on (?P<day>\w+) at (?P<time>[\d:]+)',
    "cancel_event": r'Cancel "(?P<title>.*?)"',
    "set_stage": r"Make (?P<name>[\w ]+?) an? (?P<stage>lead|prospect|customer|lost)",
    "send_email": r'Mail (?P<name>[\w ]+?) with the subject "(?P<subject>.*?)"',
}


def plan(text: str) -> list[tuple[str, dict[str, str]]]:
    """The calls that an order in the words of `ORDERS` needs; people and days come first."""
    found = [(m, tool) for tool, order in ORDERS.items() for m in re.finditer(order, text)]
    calls = []
    for match, tool in sorted(found, key=lambda pair: pair[0].start()):
        arguments = match.groupdict()
        if name := arguments.pop("name", ""):
            calls.append(("find_contact", {"name": name}))
        if day := arguments.get("day"):
            calls.append(("list_events", {"day": day}))
        calls.append((tool, arguments))
    return calls


@env.policy
def scripted(request: PolicyRequest) -> list[Item] | str:
    """One call per step; by task and repeat it forgets the last, or writes all in lower case."""
    luck = random.Random(request.rollout.partition("/")[2]).random()  # the same in every run
    text = " ".join(message_text(item) for item in request.items if item.get("role") == "user")
    outputs = [i["output"] for i in request.items if i.get("type") == "function_call_output"]
    calls = plan(text)[: -1 if luck < 0.3 else None]
    if len(outputs) == len(calls):
        return "Done."
    tool, arguments = calls[len(outputs)]
    if "name" not in arguments and tool in {"set_stage", "send_email"}:
        address = (re.findall(r"[\w.]+@[\w.]+", str(outputs[-1])) or ["unknown"])[0]
        key = "email" if tool == "set_stage" else "to"
        arguments = {key: address, **arguments}
        arguments |= {"body": "Kind regards"} if tool == "send_email" else {}
    if 0.3 < luck < 0.4:
        arguments = {k: v.lower() for k, v in arguments.items()}
    call = {"type": "function_call", "name": tool, "call_id": f"call_{len(outputs)}"}
    return [call | {"arguments": json.dumps(arguments)}]
