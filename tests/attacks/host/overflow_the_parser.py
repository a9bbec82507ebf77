# task: add
# reward: any
# layer: parent
# seconds: 2
# Texts on which CPython's own parser and compiler have crashed.

for text in ("(" * 100000, "-" * 200000 + "1", "a" + ".b" * 100000, "lambda: " * 50000 + "1",
             "x = " + "[" * 90 + "]" * 90, "f(" * 80 + ")" * 80):
    try:
        compile(text, "t", "exec")
    except (SyntaxError, RecursionError, MemoryError):
        pass
