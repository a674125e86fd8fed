"""Runs plans inside this process: libmoira_rt.so, of which moira_rt.h is the contract, by ctypes.

    with Session("layer.moeplan", weights="model") as session:
        outputs = session.forward({"input_ids": ids})
        milliseconds = session.steps({"input_ids": ids}, 10)

Belongs here: sessions, and NumPy's arrays as the library's tensors. Does not: compiling plans, and models (tools.py, models.py). The library is
found in $MOIRA_LIB, else in ../lib of where the programs are (tools.py). NumPy has no bfloat16: such tensors are their 16 bits as uint16.
"""

import ctypes
import os
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moira.tools import program

NAME = "libmoira_rt.so"
# In the order of moira_dtype. The second place is bfloat16's.
DTYPES = [np.float32, np.uint16, np.float16, np.float64, np.int32, np.int64, np.uint8]
MESH, REFERENCE_F32, REFERENCE_F64 = range(3)  # moira_program


class Refused(RuntimeError):
    """The library has refused something; the text is its errors, one a line: "error MOE-nnnn: …"."""


class _Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("dtype", ctypes.c_int), ("rank", ctypes.c_int32), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("data", ctypes.c_void_p)]


@dataclass(frozen=True)
class State:
    """A weight, or what else lives from step to step. `dtype` is NumPy's, uint16 for bfloat16."""

    name: str
    shape: tuple
    dtype: np.dtype


_library = None


def library():
    """The library, loaded once a process."""
    global _library
    if _library is None:
        path = os.environ.get("MOIRA_LIB") or Path(program("moe-run")).parent.parent / "lib"
        lib = ctypes.CDLL(str(Path(path) / NAME))
        tensors, session = ctypes.POINTER(_Tensor), ctypes.c_void_p
        for name, result, *arguments in [
            ("version", ctypes.c_char_p),
            ("last_error", ctypes.c_char_p),
            ("open", session, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int),
            ("close", None, session),
            ("forward", ctypes.c_int, session, tensors, ctypes.c_size_t),
            ("steps", ctypes.c_int, session, tensors, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_double)),
            ("generate", ctypes.c_int, session, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p),
            ("state_count", ctypes.c_size_t, session),
            ("state", ctypes.c_int, session, ctypes.c_size_t, tensors),
            ("write_state", ctypes.c_int, session, ctypes.c_size_t, ctypes.c_void_p),
            ("output_count", ctypes.c_size_t, session),
            ("output", ctypes.c_int, session, ctypes.c_size_t, tensors),
        ]:
            function = getattr(lib, f"moira_{name}")
            function.restype, function.argtypes = result, arguments
        _library = lib
    return _library


def version():
    return library().moira_version().decode()


def _refused():
    return Refused(library().moira_last_error().decode().rstrip("\n"))


def _checked(code):
    if code:
        raise _refused()


class Session:
    """A plan that is open, with its weights. Used by one thread at a time; `close` gives its memory back, as does forgetting the session."""

    def __init__(self, plan, weights=None, program=MESH):
        """Without weights all states are zeros until they are written."""
        self._handle = library().moira_open(os.fsencode(plan), None if weights is None else os.fsencode(weights), program)
        if not self._handle:
            raise _refused()
        self._close = weakref.finalize(self, library().moira_close, self._handle)
        self._close.atexit = False  # the process's end gives all back
        self.states = []
        for i in range(library().moira_state_count(self._handle)):
            got = _Tensor()
            _checked(library().moira_state(self._handle, i, got))
            self.states.append(State(got.name.decode(), tuple(got.shape[: got.rank]), np.dtype(DTYPES[got.dtype])))

    def forward(self, inputs=None):
        """One step of {name: array}; gives {name: array of float32}."""
        _checked(library().moira_forward(self._handle, *self._inputs(inputs)))
        outputs = {}
        for i in range(library().moira_output_count(self._handle)):
            got = _Tensor()
            _checked(library().moira_output(self._handle, i, got))
            data = ctypes.cast(got.data, ctypes.POINTER(ctypes.c_float))
            outputs[got.name.decode()] = np.ctypeslib.as_array(data, tuple(got.shape[: got.rank])).copy()
        return outputs

    def steps(self, inputs, count):
        """Milliseconds of each of `count` steps; the first two are for warming up (moira_rt.h)."""
        times = (ctypes.c_double * count)()
        _checked(library().moira_steps(self._handle, *self._inputs(inputs), count, times))
        return list(times)

    def generate(self, prompts, count):
        """(`count` new tokens of each row, [rows, count]; milliseconds of each step, the prompts' first): greedily, also past stop tokens (moira_rt.h).
        The prompts are [rows, tokens of each]."""
        given = np.asarray(prompts)
        prompts = np.ascontiguousarray(given, np.int32)
        if given.ndim != 2 or not np.array_equal(prompts, given):
            raise ValueError(f"prompts are [rows, tokens of each] of int32, not {given.dtype} {list(given.shape)}")
        ids, times = np.zeros((len(prompts), count), np.int32), np.zeros(count)
        _checked(library().moira_generate(self._handle, prompts.ctypes.data, *prompts.shape, count, ids.ctypes.data, times.ctypes.data))
        return ids, times.tolist()

    def write(self, name, data):
        """Gives a state its elements: an array of its shape and type, or an address in memory of the host or of the session's GPU."""
        names = [state.name for state in self.states]
        if name not in names:
            raise KeyError(f"{name} is no state of the plan; there are {', '.join(names)}")
        index = names.index(name)
        if not isinstance(data, int):
            state, data = self.states[index], np.ascontiguousarray(data)
            if (data.shape, data.dtype) != (state.shape, state.dtype):
                raise ValueError(f"{name} is {state.dtype} {list(state.shape)}, not {data.dtype} {list(data.shape)}")
            data = data.ctypes.data
        _checked(library().moira_write_state(self._handle, index, data))

    def close(self):
        self._handle = None
        self._close()  # only the first time

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _inputs(self, inputs):
        """The library's tensors of them, which read the arrays where they lie."""
        self._kept = [(name.encode(), np.ascontiguousarray(array)) for name, array in (inputs or {}).items()]
        tensors = (_Tensor * len(self._kept))()
        for tensor, (name, array) in zip(tensors, self._kept):
            kinds = [np.dtype(dtype) for dtype in DTYPES]
            if array.dtype not in kinds:
                raise ValueError(f"{name.decode()}: {array.dtype} is no type of a tensor")
            tensor.name, tensor.dtype, tensor.rank = name, kinds.index(array.dtype), array.ndim
            tensor.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
            tensor.data = array.ctypes.data
        return tensors, len(self._kept)
