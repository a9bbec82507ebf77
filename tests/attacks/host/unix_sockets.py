# task: add
# reward: any
# layer: seccomp
# Connects to sockets of the host, by path and by abstract name.

for address in ("@CANARY@/sock", "\0@MARK@"):
    attempt("connect", lambda: socket.socket(socket.AF_UNIX).connect(address))
    attempt("datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
