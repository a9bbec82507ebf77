"""Completions of held-out prompts, what came of them, and how sure that is."""
