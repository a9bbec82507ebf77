# task: add
# reward: any
# layer: seccomp
# Runs a shell by every way that the standard library has.

import subprocess


def checked(status):
    if status != 0:
        raise OSError("it did not run")


attempt("subprocess", lambda: subprocess.run(["/bin/true"], check=True))
attempt("system", lambda: checked(os.system("true")))
attempt("popen", lambda: checked(os.popen("true").close() or 0))
attempt("spawn", lambda: checked(os.spawnv(os.P_WAIT, "/bin/true", ["true"])))
attempt("posix_spawn", lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0))
attempt("libc", lambda: checked(_libc.system(b"true")))
