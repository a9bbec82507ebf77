"""A rollout as batches, and who sees whom in them: packed rows, decoding, its replay."""
