"""Memory of a step and minutes of a run, by formula, before they are spent."""
