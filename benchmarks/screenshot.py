"""A page as a picture, by a headless Chromium on the PATH. README's:

    python benchmarks/screenshot.py runs/demo/eval/report.html results/demo-report.png
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
# It is to read one file and go: as root too, and without a word to anybody.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars"]


def chromium(page: Path, *flags: str) -> str:
    """What it prints; raises where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), NAMES[0])
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", default="1280,740", help="width,height")
    options = parser.parse_args()
    chromium(options.page, f"--screenshot={options.picture.resolve()}",
             f"--window-size={options.size}")
