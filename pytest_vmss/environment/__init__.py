"""The backends that operations act on, and one instance's view of them."""
