# task: add
# reward: 0
# layer: parent
# seconds: 0.4
# Never comes back to the interpreter: no signal handler of Python would run.

import re

re.match("(a+)+$", "a" * 64 + "b")
