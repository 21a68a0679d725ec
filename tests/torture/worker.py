"""A worker under torture: `pgqueue worker` with failpoints in its supervisor too, or, with --inside, the weaker kind
that runs in an application's own process."""

from __future__ import annotations

import json
import sys

from tests.torture import failpoints


def main() -> None:
    failpoints.install()
    if sys.argv[1] == "--inside":
        from tests.torture.tasks import app

        app.worker(**json.loads(sys.argv[2])).run()
        return
    from pgqueue.cli import main as command

    sys.argv.insert(1, "worker")
    command()


if __name__ == "__main__":
    main()
