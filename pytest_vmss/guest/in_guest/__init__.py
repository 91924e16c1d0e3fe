"""Programs that run inside guests: standard library only, Python 3.7 or later.

They are sent to guests as they are, so that they import nothing of this package.
"""
