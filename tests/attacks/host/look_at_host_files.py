# task: add
# reward: any
# layer: namespaces
# Asks for size, owner and times of a file that it cannot read.

attempt("stat", os.stat, "@CANARY@/secret.txt")
