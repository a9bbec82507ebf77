# task: read_sum
# reward: 1
# input(), print() and an exit from the middle.

a, b = map(int, input().split())
if a > -1000:
    print(a + b)
    exit()
print("never")
