"""What a terminal shows: the progress line, panels, tables."""
