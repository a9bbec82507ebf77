# task: add
# reward: 1
# An object that can be called.


class _Adder:
    def __call__(self, a, b):
        return a + b


add = _Adder()
