# task: add
# reward: any
# layer: seccomp
# Forks as often as it can (here at most 64 times); the children stay.


def children():
    for _ in range(64):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)


attempt("fork", children)
