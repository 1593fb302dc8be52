"""What a row says for the accounts: read from its bytes without unpacking its tokens."""

from typing import Any, Final

import msgspec

from broker.journal.runs import Totals


class BadRow(ValueError):
    """These bytes are no row of Warren's; the text says why."""


class RowSummary(msgspec.Struct, frozen=True):
    """One row in the accounts of its run."""

    run: str
    generation: str
    rollout_id: str
    task_index: int
    repeat: int
    status: str
    error_kind: str | None
    """None unless the row is a failed one."""
    reward: float | None
    model_calls: int
    tool_calls: int
    prompt_tokens: int
    generated_tokens: int
    cost_usd: float
    """Of the policy's calls and the judges'."""

    @property
    def failed(self) -> bool:
        return self.error_kind is not None


class _Error(msgspec.Struct, frozen=True):
    kind: str


class _Usage(msgspec.Struct, frozen=True):
    model_calls: int = 0
    tool_calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cost_usd: float = 0.0


class _Verifier(msgspec.Struct, frozen=True):
    usage: _Usage = _Usage()


class _Warren(msgspec.Struct, frozen=True):
    run_id: str
    rollout_id: str
    task_index: int
    repeat_index: int
    status: str
    error: _Error | None
    generation: str = ""
    usage: _Usage = _Usage()
    verifier: _Verifier = _Verifier()


class _Head(msgspec.Struct, frozen=True):
    reward: float | None
    warren: _Warren


_HEAD: Final = msgspec.json.Decoder(_Head)


def summary_of_json(data: bytes) -> RowSummary:
    """Check that these bytes are a row and read what counts. Raises BadRow."""
    try:
        head = _HEAD.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as e:
        raise BadRow(str(e)) from e
    return _summary(head)


def summary_of(row: dict[str, Any]) -> RowSummary:
    """The same of a row that is not encoded yet. Raises BadRow."""
    try:
        return _summary(msgspec.convert(row, _Head))
    except msgspec.MsgspecError as e:
        raise BadRow(str(e)) from e


def _summary(head: _Head) -> RowSummary:
    warren = head.warren
    failed = warren.status == "failed"
    if failed != (warren.error is not None) and warren.status != "truncated":
        raise BadRow(f"status is {warren.status!r}, error is {warren.error}")
    if warren.task_index < 0 or warren.repeat_index < 0:
        raise BadRow(f"negative index in {warren.rollout_id!r}")
    return RowSummary(
        run=warren.run_id,
        generation=warren.generation,
        rollout_id=warren.rollout_id,
        task_index=warren.task_index,
        repeat=warren.repeat_index,
        status=warren.status,
        error_kind=warren.error.kind if failed and warren.error else None,
        reward=head.reward,
        model_calls=warren.usage.model_calls,
        tool_calls=warren.usage.tool_calls,
        prompt_tokens=warren.usage.prompt_tokens,
        generated_tokens=warren.usage.generated_tokens,
        cost_usd=warren.usage.cost_usd + warren.verifier.usage.cost_usd,
    )


class Tally:
    """Totals that grow row by row. Work that was done stays counted when a row is superseded."""

    def __init__(self) -> None:
        self._status = {"completed": 0, "truncated": 0, "failed": 0}
        self._kinds: dict[str, int] = {}
        self._reward_sum = 0.0
        self._rewarded = 0
        self._calls = [0, 0, 0, 0]
        self._cost_usd = 0.0

    def add(self, row: RowSummary) -> None:
        """Count one more row."""
        self._status[row.status] = self._status.get(row.status, 0) + 1
        if row.error_kind is not None:
            self._kinds[row.error_kind] = self._kinds.get(row.error_kind, 0) + 1
        if row.reward is not None:
            self._reward_sum += row.reward
            self._rewarded += 1
        work = (row.model_calls, row.tool_calls, row.prompt_tokens, row.generated_tokens)
        self._calls = [a + b for a, b in zip(self._calls, work, strict=True)]
        self._cost_usd += row.cost_usd

    def superseded(self, error_kind: str) -> None:
        """A failed row of this kind no longer counts: a good one has taken its place."""
        self._status["failed"] -= 1
        self._kinds[error_kind] -= 1
        if not self._kinds[error_kind]:
            del self._kinds[error_kind]

    def totals(self) -> Totals:
        """As the run's record wants them."""
        return Totals(
            completed=self._status["completed"],
            truncated=self._status["truncated"],
            failed=self._status["failed"],
            failed_by_kind=dict(self._kinds),
            reward_sum=self._reward_sum,
            rewarded=self._rewarded,
            model_calls=self._calls[0],
            tool_calls=self._calls[1],
            prompt_tokens=self._calls[2],
            generated_tokens=self._calls[3],
            cost_usd=self._cost_usd,
        )


def add_totals(parts: "list[Totals]") -> Totals:
    """The sum over shards."""
    kinds: dict[str, int] = {}
    for part in parts:
        for kind, count in part.failed_by_kind.items():
            kinds[kind] = kinds.get(kind, 0) + count
    return Totals(
        completed=sum(t.completed for t in parts),
        truncated=sum(t.truncated for t in parts),
        failed=sum(t.failed for t in parts),
        failed_by_kind=kinds,
        reward_sum=sum(t.reward_sum for t in parts),
        rewarded=sum(t.rewarded for t in parts),
        model_calls=sum(t.model_calls for t in parts),
        tool_calls=sum(t.tool_calls for t in parts),
        prompt_tokens=sum(t.prompt_tokens for t in parts),
        generated_tokens=sum(t.generated_tokens for t in parts),
        cost_usd=sum(t.cost_usd for t in parts),
    )
