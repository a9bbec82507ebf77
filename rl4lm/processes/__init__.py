"""The processes of a run: who has which work, the one reduction, and who has failed."""
