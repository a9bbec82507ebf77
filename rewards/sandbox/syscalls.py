"""System call numbers of the two architectures the sandbox knows.

aarch64 has the newer, smaller set: no open, fork, stat, poll, pipe or dup2. Sources: the kernel's
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`. The filter made
from the aarch64 column is tested by simulation; the start-up self-test is what shows on such a
machine that it works there.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

# name, number on x86_64, number on aarch64 ("-": the architecture does not have it).
_TABLE = """
read 0 63             write 1 64            close 3 57            close_range 436 436
fstat 5 80            stat 4 -              lstat 6 -             newfstatat 262 79
statx 332 291         access 21 -           faccessat 269 48      faccessat2 439 439
readlink 89 -         readlinkat 267 78     getdents64 217 61     getcwd 79 17
open 2 -              openat 257 56         openat2 437 437       lseek 8 62
pread64 17 67         pwrite64 18 68        readv 19 65           writev 20 66
preadv 295 69         poll 7 -              ppoll 271 73          select 23 -
pselect6 270 72       pipe 22 -             pipe2 293 59          dup 32 23
dup2 33 -             dup3 292 24           fcntl 72 25           ioctl 16 29
mmap 9 222            mprotect 10 226       munmap 11 215         brk 12 214
mremap 25 216         madvise 28 233        futex 202 98          getrandom 318 278
rt_sigaction 13 134   rt_sigprocmask 14 135 rt_sigreturn 15 139   rt_sigpending 127 136
rt_sigsuspend 130 133 rt_sigtimedwait 128 137                     sigaltstack 131 132
nanosleep 35 101      clock_nanosleep 230 115                     restart_syscall 219 128
getitimer 36 102      setitimer 38 103      alarm 37 -            pause 34 -
clock_gettime 228 113 clock_getres 229 114  gettimeofday 96 169   time 201 -
times 100 153         getrusage 98 165      getrlimit 97 163      prlimit64 302 261
getpid 39 172         getppid 110 173       gettid 186 178        getpgrp 111 -
getpgid 121 155       getsid 124 156        getgroups 115 158     getuid 102 174
geteuid 107 175       getgid 104 176        getegid 108 177       getresuid 118 148
getresgid 120 150     uname 63 160          sysinfo 99 179        getcpu 309 168
sched_yield 24 124    sched_getaffinity 204 123                   sched_getparam 143 121
sched_getscheduler 145 120                  sched_get_priority_max 146 125
sched_get_priority_min 147 126              set_robust_list 273 99
get_robust_list 274 100                     set_tid_address 218 96
rseq 334 293          exit 60 93            exit_group 231 94     epoll_create 213 -
epoll_create1 291 20  epoll_ctl 233 21      epoll_wait 232 -      epoll_pwait 281 22
socketpair 53 199     sendto 44 206         recvfrom 45 207       shutdown 48 210
getsockname 51 204    getpeername 52 205    getsockopt 55 209
clone 56 220          clone3 435 435        fork 57 -             vfork 58 -

socket 41 198         connect 42 203        sendmsg 46 211        execve 59 221
kill 62 129           tgkill 234 131        ptrace 101 117        fchmodat 268 53
bpf 321 280           io_uring_setup 425 425                      seccomp 317 277
memfd_create 319 279  unshare 272 97        mount 165 40          pivot_root 155 41
umount2 166 39        mount_setattr 442 442 capset 126 91         prctl 157 167
pidfd_open 434 434    pidfd_send_signal 424 424                   keyctl 250 219
landlock_create_ruleset 444 444             landlock_add_rule 445 445
landlock_restrict_self 446 446              mkdirat 258 34        sethostname 170 161
capget 125 90         process_vm_readv 310 270                    userfaultfd 323 282
"""


@dataclass(frozen=True)
class Architecture:
    """One machine type: its audit number for seccomp, its calls and its `open` flags."""

    name: str
    audit: int
    # Calls with this bit set belong to another calling convention (x32); 0: there is none.
    foreign_calls: int
    numbers: dict[str, int]
    # O_* values that differ between the two: directory, nofollow, largefile.
    read_flags: int


def _numbers(column: int) -> dict[str, int]:
    words = _TABLE.split()
    rows = zip(words[0::3], words[1::3], words[2::3], strict=True)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


X86_64 = Architecture("x86_64", 0xC000003E, 0x40000000, _numbers(1), 0o200000 | 0o400000 | 0o100000)
AARCH64 = Architecture("aarch64", 0xC00000B7, 0, _numbers(2), 0o40000 | 0o100000 | 0o400000)
_KNOWN = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}


def this_architecture() -> Architecture | None:
    """Return the architecture of this machine, or None if the sandbox has no table for it."""
    return _KNOWN.get(platform.machine().lower())
