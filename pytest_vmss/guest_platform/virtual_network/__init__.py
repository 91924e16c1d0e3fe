"""The private network of a set, by which its instances reach each other (A9)."""
