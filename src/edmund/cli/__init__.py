"""The command line.

Every command prints a bad input as one line on stderr and exits with 2; an interrupted one exits with 128 + the signal.
"""

from __future__ import annotations

import sys

from edmund.errors import InputError


def main() -> None:
    """The entry point of `edmund`."""
    import typer

    from edmund.cli._app import app

    try:
        sys.exit(app(standalone_mode=False))
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
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # The usage errors of click, which Typer has a copy of within itself: known by how they tell what is wrong.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            print(f"error: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
