"""A model before its weights are read, and short checks of it before the first step."""
