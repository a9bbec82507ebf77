"""The verbs of `rl4lm`."""
