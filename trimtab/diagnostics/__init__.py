"""Why training goes wrong: measurements of nets on batches, and plain-language verdicts."""
