"""The command `ptalign` that `pip install .` gives. The package is this checkout's folder, renamed.

The modules import each other by their names in the checkout (`import losses`), so the folder goes
in front of sys.path, as Python itself does for `python ptalign.py`. No other process sees that: the
one name that an installation adds to the environment is `ptalign`."""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run ptalign.py as a script; it leaves by sys.exit."""
    folder = Path(__file__).parents[1]
    sys.path.insert(0, str(folder))
    from support import commandline  # the one that ptalign.py imports, not ptalign.support's
    commandline.COMMAND = "ptalign"
    runpy.run_path(str(folder / "ptalign.py"), run_name="__main__")
