"""What every command stands on: the command line, files and their formats, the hub, progress."""
