"""Rows: where they come from, their columns, what they are split into, their endless order."""
