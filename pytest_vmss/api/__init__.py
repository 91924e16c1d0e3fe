"""What tests and the command line use: labs, scale sets, instances, operations."""
