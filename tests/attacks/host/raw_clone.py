# task: add
# reward: any
# layer: seccomp
# Asks the kernel itself for a process, past what Python and libc check.


def cloned(name, *arguments):
    pid = call(name, *arguments)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


attempt("clone", cloned, "clone", signal.SIGCHLD, 0, 0, 0, 0)
arguments = ctypes.create_string_buffer(64)
ctypes.c_uint64.from_buffer(arguments, 32).value = signal.SIGCHLD
attempt("clone3", cloned, "clone3", arguments, 64)
