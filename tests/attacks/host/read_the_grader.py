# task: add
# reward: any
# layer: files
# Reads the code that judges, and the tests of this project.

for path in ("rewards/grading/judging.py", "tests/attacks/tasks.json", "pyproject.toml"):
    attempt(path, os.open, "@PROJECT@/" + path, os.O_RDONLY)
