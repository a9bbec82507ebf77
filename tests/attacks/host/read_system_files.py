# task: add
# reward: any
# layer: files
# Reads files of the system: accounts, host name, the process's own entries in /proc.

for path in ("/etc/passwd", "/etc/shadow", "/etc/hosts", "/etc/os-release", "/proc/self/status",
             "/proc/self/maps", "/proc/self/mem", "/proc/1/cmdline", "/proc/net/tcp", "/sys/kernel"):
    attempt(path, os.open, path, os.O_RDONLY)
