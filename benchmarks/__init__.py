"""How fast pgqueue is on this machine, as ratios to a raw psycopg loop measured in the same run.

One script a measure; `make bench` runs all of them, each can be run alone: `python -m benchmarks.drain`.
BENCH_DATABASE_URL names a server of yours; without it an embedded one is started, fsync on.
"""
