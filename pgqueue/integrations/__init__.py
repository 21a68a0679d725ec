"""What other systems are told of an app's jobs: a file a system, each an extra, imported only when asked for.

otel.py     OpenTelemetry: a trace from the enqueue to each run, and two metrics
sentry.py   Sentry: what fails, with its stack and without its arguments

Each has `instrument(app)`, called once, where the app is made, so that it holds in each process that works.
"""
