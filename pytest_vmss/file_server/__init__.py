"""Serves the lab's own files to guests over HTTP."""
