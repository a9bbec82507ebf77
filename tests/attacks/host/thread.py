# task: add
# reward: any
# layer: seccomp
# A thread could answer later, or change the answer after it was given.

import threading

attempt("thread", lambda: threading.Thread(target=time.sleep, args=(0.01,)).start())
