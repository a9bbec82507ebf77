# task: add
# reward: any
# layer: seccomp
# Signals the trainer and the server, by every call that can (a signal that does no harm).

quiet = signal.SIGURG
for pid in (@PARENT@, os.getppid()):
    attempt("kill", os.kill, pid, quiet)
    attempt("tgkill", call, "tgkill", pid, pid, quiet)
    attempt("pidfd", lambda: call("pidfd_send_signal", call("pidfd_open", pid, 0), quiet, None, 0))
    attempt("group", lambda: os.killpg(os.getpgid(pid), 0))
attempt("everybody", os.kill, -1, 0)
