"""The environment of operations: stores and backends, and one instance's view of them."""
