# task: add
# reward: any
# layer: seccomp
# A pair of datagram sockets, one of which is then pointed at a socket of the host.

attempt("pair", socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
left, _ = socket.socketpair()
attempt("send", left.sendto, b"x", "@CANARY@/sock")
attempt("message", left.sendmsg, [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\0\0\0\0")])
