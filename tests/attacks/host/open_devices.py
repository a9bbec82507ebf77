# task: add
# reward: any
# layer: files
# Opens devices: terminals, memory, disks, graphics cards, shared memory.

for name in ("tty", "ptmx", "mem", "kmsg", "fuse", "kvm", "sda", "vda", "nvidia0", "nvidiactl",
             "shm", "mqueue", "zero", "full", "random"):
    attempt(name, os.open, "/dev/" + name, os.O_RDONLY)
