"""The command `ptalign` of an installed package, which is this checkout as the package's folder.

The modules import each other by their names in the checkout, so the folder goes in front of
sys.path, as Python itself does for `python ptalign.py`. Nothing outside this process sees that: the
one name that an installation adds to the environment is `ptalign`.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run ptalign.py as a script; it leaves by sys.exit."""
    folder = Path(__file__).parents[1]
    sys.path.insert(0, str(folder))
    from support import commandline
    commandline.COMMAND = "ptalign"
    runpy.run_path(str(folder / "ptalign.py"), run_name="__main__")
