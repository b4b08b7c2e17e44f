"""Recordings: folders, manifests, tables, streams; crops, batches by length, letters."""
