"""The journal of operations: their records, steps and outcomes, and the work written to it."""
