# task: add
# reward: any
# layer: seccomp
# A grandchild in a session of its own is to outlive the run.


def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(30)
        os._exit(0)
    os.wait()


attempt("daemon", daemon)
