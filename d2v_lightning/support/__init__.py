"""What every floor stands on: errors that are meant to be read, files, locks, lines."""
