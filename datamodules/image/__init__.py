"""Pictures: folders, tables, streams; transforms and splits."""
