"""How fast pgqueue is on this machine, as ratios to a raw psycopg loop measured in the same run, and beside the peers.

One script a measure; `make bench` runs all of them, each can be run alone: `python -m benchmarks.drain`.
BENCH_DATABASE_URL names a server of yours; without it an embedded one is started, fsync on. BENCH_ROUNDS: how often all
contestants take their turn (5). BENCH_PEERS: `all`, or names of those in peers/registry.py. BENCH_JOBS: so many jobs
instead of a measure's own number. docs/performance.md says what each measure is.
"""
