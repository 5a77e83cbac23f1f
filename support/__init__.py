"""What every command stands on: the command line, files and their formats, the hub, progress."""

VERSION = "0.1.0"  # of the package, with a heading in CHANGELOG.md
