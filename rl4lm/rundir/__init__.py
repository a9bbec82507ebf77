"""The run directory: files that are whole or not there, and where a run goes on from."""
