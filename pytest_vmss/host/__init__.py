"""The host: processes, files, locks, addresses, capacity, accelerator."""
