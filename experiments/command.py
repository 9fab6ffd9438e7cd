"""What the commands share: flags, help, and errors as the person who gets them wants to read them."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


def run(main: Callable[[], None]) -> None:
    """Runs a command: an error that its user can mend is one message, exit code 2; anything else keeps its traceback."""
    # Orbax and Grain log every step they take, at a level that absl shows by default.
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
    wants_help = any(argument.startswith(("--help", "-help")) or argument == "-h" for argument in sys.argv[1:])

    def guarded(arguments: list[str]) -> None:
        if stray := arguments[1:]:
            raise app.UsageError(f"does not take {' '.join(stray)!r}: options are written --name=value")
        try:
            main()
        except (ValueError, OSError, ArithmeticError) as error:
            if _DEBUG.value:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    try:
        app.run(guarded)
    except SystemExit as end:
        # absl ends --help with 1.
        sys.exit(0 if wants_help and end.code == 1 else end.code)
