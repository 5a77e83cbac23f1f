"""What every command stands on: files and their formats, run folders, the hub, progress, words."""
