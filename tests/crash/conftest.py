"""Every crash test may ask for a ledger, worker processes that write to it, and a proxy before their database."""

from tests.crash.processes import ledger, start
from tests.crash.proxy import proxy

__all__ = ["ledger", "proxy", "start"]
