"""A small shop that prints people's photos, and does everything slow in background jobs. How to run it: README.md.

Read it in this order:

    models.py      the shop's own tables; nothing in there knows of jobs
    app.py         the queue and the engines, on one database
    tasks.py       the jobs: what a worker runs
    register.py    the application: a customer and her jobs in one transaction
    report.py      the drawing of the PDF that one of the jobs makes
    seed.py        tables, and a month of sales to report on
    services.py    the world outside: an SMTP server and an inventory API that fails at first
    demo.py        `make demo`: starts all of it, and plays scenes.py before it
    questions.py   what the demo asks the database; show.py, how it speaks and waits; workplace.py, where it writes
"""
