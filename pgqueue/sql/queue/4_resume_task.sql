-- resume_task: jobs of this task may start again. In: task text. Out: its name, if it was paused. Caller: db.resume_task
delete from {schema}.paused_tasks
where task = %(task)s::text
returning task
