# Put before every program of this folder: how a deed is reported, and a right answer.
import builtins, ctypes, errno, fcntl, mmap, os, resource, signal, socket, sys, time

_NUMBERS = {
    "x86_64": {
        "get_robust_list": 274, "timer_create": 222, "timer_settime": 223, "keyctl": 250,
        "add_key": 248, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "memfd_create": 319, "unshare": 272, "mount": 165, "ptrace": 101,
        "process_vm_readv": 310, "seccomp": 317, "personality": 135, "pidfd_open": 434,
        "pidfd_send_signal": 424, "shmget": 29, "semget": 64, "msgget": 68, "clone": 56,
        "clone3": 435, "mq_open": 240, "rt_sigqueueinfo": 129, "tgkill": 234, "prctl": 157,
        "setns": 308, "pivot_root": 155, "init_module": 175, "syslog": 103, "chroot": 161,
    },
    "aarch64": {
        "get_robust_list": 100, "timer_create": 107, "timer_settime": 110, "keyctl": 219,
        "add_key": 217, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "io_uring_setup": 425, "memfd_create": 279, "unshare": 97, "mount": 40, "ptrace": 117,
        "process_vm_readv": 270, "seccomp": 277, "personality": 92, "pidfd_open": 434,
        "pidfd_send_signal": 424, "shmget": 194, "semget": 190, "msgget": 186, "clone": 220,
        "clone3": 435, "mq_open": 180, "rt_sigqueueinfo": 138, "tgkill": 131, "prctl": 167,
        "setns": 268, "pivot_root": 41, "init_module": 105, "syslog": 116, "chroot": 51,
    },
}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name, *arguments):
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _libc.syscall(ctypes.c_long(_NUMBERS[name]), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def print(*things):
    builtins.print(*things, flush=True)


def attempt(what, deed, *arguments):
    try:
        deed(*arguments)
    except (Exception, SystemExit):
        return
    print("REACHED", what)


def add(a, b):
    return a + b
