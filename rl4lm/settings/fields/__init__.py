"""The options of a run, declared by theme; `rl4lm.config` puts them together."""
