"""A run, or several side by side, as one self-contained page that opens from disk.

    rl4lm report RUN_DIR [RUN_DIR ...] [--out FILE] [--png FILE] [--watch]

Everything comes from the files of the runs, read as leniently as `rl4lm doctor` reads them: nothing
is run again, no model is loaded, torch is not imported.
"""
