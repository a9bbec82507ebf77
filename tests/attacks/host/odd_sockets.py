# task: add
# reward: any
# layer: seccomp
# Families that firewalls forget: netlink, packet, vsock, alg, bluetooth.

for family, kind in ((16, 3), (17, 3), (40, 1), (38, 5), (31, 3), (2, 3), (1, 5)):
    attempt(f"family {family}", socket.socket, family, kind)
