"""Loads a host image of all-kinds.spec and compares every kernel with plain formulas. Standard library only."""
import ctypes
import math
import os
import random
import sys

ROWS = 3
random.seed(7)

fd = os.memfd_create("kernels")
os.write(fd, open(sys.argv[1], "rb").read())
image = ctypes.CDLL(f"/proc/self/fd/{fd}")


def values(n):
    return [ctypes.c_float(random.gauss(0, 1)).value for _ in range(n)]


def check(name, inputs, want, integer=False):
    """Calls kernel `name` on flat inputs and compares its one output with `want`."""
    element = ctypes.c_int32 if integer else ctypes.c_float
    buffers = [(element * len(x))(*x) for x in inputs]
    out = (ctypes.c_float * len(want))()
    getattr(image, name)(*buffers, out, ctypes.c_int64(ROWS))
    for i, (got, wanted) in enumerate(zip(out, want)):
        if not abs(got - wanted) <= 1e-6 * max(1, abs(wanted)):
            sys.exit(f"{name}: element {i} is {got}, wanted {wanted}")
    print(f"{name}: {len(want)} elements agree")


def rows(x, n):
    return [x[i : i + n] for i in range(0, len(x), n)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


x, w = values(64 * ROWS), values(64)
scale = [1 / math.sqrt(sum(e * e for e in r) / 64 + 1e-5) for r in rows(x, 64)]
normed = [e * s * u for r, s in zip(rows(x, 64), scale) for e, u in zip(r, w)]
check("rms_norm", [x, w], normed)
squares = [ctypes.c_float(sum(e * e for e in r)).value for r in rows(x, 64)]
check("rms_apply", [x, squares, w], normed)

x = values(7 * ROWS)
check("sum_squares", [x], [sum(e * e for e in r) for r in rows(x, 7)])

x, b = values(15 * ROWS), values(5)
check("add", [x, b], [e + b[i % 5] for i, e in enumerate(x)])

x = values(40 * ROWS)
check("clamp", [x], [min(max(e, -0.5), 0.25) for e in x])

x = values(66 * ROWS)
activations = {
    "glu": lambda v: v * sigmoid(v),
    "glu_2": lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)),
    "glu_3": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "glu_4": lambda v: max(v, 0),
}
for name, act in activations.items():
    check(name, [x], [act(a) * u for r in rows(x, 66) for a, u in zip(r[:33], r[33:])])

x, g = values(20 * ROWS), values(ROWS)
check("sigmoid_gate", [x, g], [e * sigmoid(g[i // 20]) for i, e in enumerate(x)])

x, c, s = values(96 * ROWS), values(24), values(24)
want = []
for i, e in enumerate(x):
    position, j = i % 96 // 32, i % 16
    cos, sin = c[position * 8 + j % 8], s[position * 8 + j % 8]
    want.append(e * cos - x[i + 8] * sin if j < 8 else e * cos + x[i - 8] * sin)
check("rope", [x, c, s], want)

check("cast", [list(range(-5, 22))], list(range(-5, 22)), integer=True)
