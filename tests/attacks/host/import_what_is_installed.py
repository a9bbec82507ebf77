# task: add
# reward: any
# layer: files
# Reads installed packages, which may have reference answers, and puts their folders on the path.


def read_one(folder):
    for base, _, names in os.walk(folder):
        for name in names:
            return os.close(os.open(os.path.join(base, name), os.O_RDONLY))
    raise FileNotFoundError(folder)


sys.path += @PACKAGES@
for folder in @PACKAGES@:
    attempt(folder, read_one, folder)
for package in ("pip", "pytest", "torch", "numpy"):
    attempt(package, __import__, package)
