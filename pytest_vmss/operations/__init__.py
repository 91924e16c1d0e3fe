"""What each kind of operation does to a set and its instances."""
