"""What a running job can see of itself: a parameter annotated `Context` is filled in by the worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from pgqueue.job import Job


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines carry job id, task and attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


@dataclass(slots=True)
class Context:
    """One run of a job, from the inside.

    job: id, task, queue, attempt (1 in the first run), max_attempts, fence (rises with each run; hand it to outside
    systems that should refuse a late writer), run_at, tags, meta. log: a logger whose lines name the job.
    """

    job: Job
    log: JobLogger
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def cancelled(self) -> bool:
        """True once the job should end: its worker's grace period is over, or its time is up. For sync tasks."""
        return self._stop.is_set()
