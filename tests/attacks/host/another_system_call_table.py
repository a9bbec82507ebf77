# task: add
# reward: any
# layer: seccomp
# Calls by the numbers of x32, which a filter that only looks at numbers lets through.

if os.uname().machine == "x86_64":
    _libc.syscall(ctypes.c_long(0x40000000 + 39))
    print("REACHED the end")
else:
    _libc.syscall(ctypes.c_long(5000))
    if ctypes.get_errno() == errno.ENOSYS:
        print("REACHED the kernel")
