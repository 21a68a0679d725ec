"""The worker's side of a job's life: claim, run, settle, in that order; loop.py is where to start reading.

loop.py         wake, claim, run, settle, until told to stop
ahead.py        how many jobs that end within milliseconds are claimed at a time
floor.py        where in each queue and priority a claim starts
claim.py        how many, from which queues; a claimed row becomes an attempt
run.py          one attempt under its timeout; returns an Outcome, never raises
lifespan.py     what is opened before the first job and closed after the last
threads.py      where sync tasks run
coroutines.py   where async tasks run
forks.py        whether this process is the copy that a job has made
processes.py    where those run that have a process to themselves; jobprocess.py is inside
transaction.py  ctx.transaction(): a job's effects and its completion in one commit
progress.py     how far jobs say they are, until it is written
lines.py        what they say in their logs, of tasks that keep it; pace.py says when either is written
settle.py       Outcome to complete, retry, dead letter …; and the writes, many at once
wake.py         LISTEN, with polling as the safety net
orders.py       what is paused, and which of its jobs are to end
heartbeat.py    leases: registered, renewed, given up
watchdog.py     which job blocks the event loop
supervisor.py   the small process above the ones that work
probe.py        /metrics and /health, for Prometheus and for whoever restarts workers
solo.py         a worker inside the application's own process
"""
