# task: add
# reward: any
# layer: seccomp
# Reads the memory of other processes of the same user.

attempt("traceme", call, "ptrace", 0, 0, 0, 0)
for pid in (@PARENT@, os.getppid()):
    attempt("robust list", call, "get_robust_list", pid, bytes(8), bytes(8))
    attempt("memory", call, "process_vm_readv", pid, None, 0, None, 0, 0)
