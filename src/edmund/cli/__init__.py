"""The command line.

Every command prints a bad input as one line on stderr and exits with 2; an interrupted one exits with 128 + the signal.
"""

from __future__ import annotations

import sys

from edmund.errors import InputError


def main() -> None:
    """The entry point of `edmund`."""
    from edmund.cli._app import app

    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of a pipe went away (`edmund formulations | head`).
        sys.exit(141)
    except OSError as error:
        # A folder that cannot be written, a full disk.
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
