"""What the scripts of this folder share: a failure is told in one line, as by ptalign.py."""

import sys
from collections.abc import Callable

from support.commandline import file_error
from support.files import InputError


def exit_code(name: str, run: Callable[[], object]) -> int:
    """Of a script that does `run`: 0, 2 for bad input, 130 when interrupted."""
    try:
        run()
        return 0
    except InputError as error:
        told, code = f"error: {error}", 2
    except OSError as error:
        told, code = f"error: {file_error(error)}", 2
    except KeyboardInterrupt:
        told, code = "interrupted", 130
    print(f"{name}: {told}", file=sys.stderr)
    return code
