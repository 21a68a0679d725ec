"""Chores any worker may do, safe to do twice, at once, or not at all for a while.

rescue.py   jobs of workers that are gone go back to their queue
expire.py   jobs that were not started in time end as expired
tick.py     schedules whose time has come enqueue their jobs
prune.py    partitions of finished jobs are made ahead and emptied behind
chores.py   when which of them is due
"""
