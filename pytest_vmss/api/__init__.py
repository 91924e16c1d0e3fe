"""The public API of tests and the command line: labs, scale sets, instances, operations."""
