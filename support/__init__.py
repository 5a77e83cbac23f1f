"""What every command stands on: files, run folders, the hub, progress, English word lists."""
