# task: add
# reward: any
# layer: seccomp
# Sends what it knows by datagram, also over IPv6, and asks for a name.


def send(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as line:
        line.sendto(b"the tests", address)


attempt("IPv4", send, socket.AF_INET, ("127.0.0.1", @UDP@))
attempt("IPv6", send, socket.AF_INET6, ("::1", @UDP@))
