# task: add
# reward: any
# layer: process
# Looks for tokens in the environment, in Python's copy and in libc's.

import subprocess

for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME", "PYTHONPATH", "VIRTUAL_ENV"):
    attempt(name, os.environ.__getitem__, name)
    if ctypes.PyDLL(None).getenv(name.encode()):
        print("REACHED", name)
