"""Every crash test may ask for a ledger, and start worker processes that write to it."""

from tests.crash.processes import ledger, start

__all__ = ["ledger", "start"]
