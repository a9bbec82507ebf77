"""Why does it not learn? Rules over what a run has logged, each a pure function of the log.

`findings` says what a rule and a finding are; `sampling`, `reward`, `update`, `course` and `log`
hold the rules; `diagnosis` applies them all. To add one: a function and its entry in the ``RULES``
of one of these files, a test that triggers it and one that does not, a line in docs/doctor.md.
Standard library only.
"""
