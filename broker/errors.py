"""Everything that can go wrong below the workers, by what the caller must do.

* WarrenError
  + BrokerError
    - Unroutable        nobody takes this key: keep the message, tell the user
    - QueueFull         back-pressure: wait, then publish again
    - BrokerLost        the connection broke and did not come back in time: crash and restart
    - BrokerClosed      we closed it ourselves
  + JournalUnavailable  the store can't be reached: keep the delivery, try again
  + WireError           this message can never be read: dead-letter it with the reason
    - Undecodable
    - TooLarge
  + Unreachable         a URL of the user's can't be reached or refuses us (exit code 3)
  + UsageError          what the user asked for or gave us is wrong (exit code 2)
"""


class WarrenError(Exception):
    """Base of all errors that Warren raises on purpose."""


class BrokerError(WarrenError):
    """Something between us and the broker."""


class Unroutable(BrokerError):
    """No queue is bound to this exchange and key."""

    def __init__(self, exchange: str, key: str) -> None:
        super().__init__(f"no queue takes key {key!r} on exchange {exchange!r}")
        self.exchange = exchange
        self.key = key


class QueueFull(BrokerError):
    """The queue is at its limit and refused the message."""


class BrokerLost(BrokerError):
    """The connection is gone and could not be restored in time."""


class BrokerClosed(BrokerError):
    """This broker object was closed by us."""


class JournalUnavailable(WarrenError):
    """The journal's store did not answer in time."""


class WireError(WarrenError):
    """A message that no retry can make readable."""


class Undecodable(WireError):
    """Not msgpack, not our schema, or nested too deep."""


class TooLarge(WireError):
    """Above the size limit, packed or unpacked."""


class Unreachable(WarrenError):
    """A broker, store or model endpoint can't be reached or refuses us. The text masks secrets."""


class UsageError(WarrenError):
    """A wrong flag, setting or input. The text says what is wrong, where, and what is allowed."""
