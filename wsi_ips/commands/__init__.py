"""What each command does: a job in, an outcome out. One module per command, imported when it is asked for."""
