#!/usr/bin/env python
"""Django's command line for the server."""

import os
import sys


def main() -> None:
    if sys.argv[1:2] == ["up"]:
        # Before the settings: it makes the secrets that they read.
        from webapp.stack.up import main as up

        up()
        return
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
