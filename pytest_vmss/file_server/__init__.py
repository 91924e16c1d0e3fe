"""The lab's own files, served to guests over HTTP."""
