"""Labs on this host: who owns them, and how they are removed."""
