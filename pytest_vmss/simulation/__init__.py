"""Simulated machines, guests, load balancers and time, and the lab made of them."""
