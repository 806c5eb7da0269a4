"""Malicious pickles, technique by technique: name -> bytes. Most of them work under ``pickle.load``."""

from __future__ import annotations

import collections
import pickle
import struct
from typing import Any

import numpy as np

MARKER = "scfast_pickle_ran"
SHELL = f"touch {MARKER}"


def text(value: str) -> bytes:
    """A str under protocol 0."""
    return b"V" + value.encode("raw_unicode_escape") + b"\n"


def short(value: str) -> bytes:
    """A str under protocol 4."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def call(name: str, *arguments: str) -> bytes:
    """GLOBAL, arguments, REDUCE, without STOP."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


class Reduced:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce_ex__(self, _: Any) -> Any:
        return self.parts


#: Functions and classes that run what they are given, or reach what does.
GADGETS = {
    "os.system": (SHELL,),
    "posix.system": (SHELL,),
    "nt.system": (SHELL,),
    "os.popen": (SHELL,),
    "os.putenv": (MARKER, "1"),
    "subprocess.Popen": ("touch",),
    "subprocess.getoutput": (SHELL,),
    "builtins.eval": (f"open({MARKER!r}, 'w')",),
    "builtins.exec": (f"open({MARKER!r}, 'w')",),
    "builtins.compile": ("1", "x", "eval"),
    "builtins.open": (MARKER, "w"),
    "builtins.__import__": ("antigravity",),
    "builtins.getattr": ("x", "upper"),
    "__builtin__.eval": ("1",),
    "importlib.import_module": ("antigravity",),
    "runpy.run_path": (MARKER,),
    "timeit.timeit": (f"open({MARKER!r}, 'w')",),
    "cProfile.run": (f"open({MARKER!r}, 'w')",),
    "pdb.run": ("1",),
    "code.interact": (),
    "pickle.loads": ("cos\nsystem\n(Vtouch x\ntR.",),
    "_pickle.loads": ("N.",),
    "marshal.loads": ("N",),
    "shelve.open": (MARKER,),
    "torch.load": (MARKER,),
    "torch.hub.load": ("a/b", "c"),
    "numpy.load": (MARKER,),
    "numpy.testing._private.utils.runstring": ("1", "x"),
    "numpy.core.multiarray._reconstruct": ("x",),
    "numpy.ndarray": ("x",),
    "operator.methodcaller": ("__class__",),
    "functools.partial": ("x",),
    "types.FunctionType": ("x",),
    "ctypes.CDLL": ("libc.so.6",),
    "socket.create_connection": ("localhost",),
    "urllib.request.urlopen": ("file:///etc/passwd",),
    "webbrowser.open": ("file:///etc/passwd",),
    "shutil.rmtree": (".",),
    "pathlib.Path": ("x",),
    "copyreg._reconstructor": ("x",),
    "codecs.decode": ("x", "zip"),
    "_codecs.decode": ("x", "zip"),
}
SYSTEM = call("os.system", SHELL)
PLAIN = pickle.dumps({"ENSG00000000003": 2}, 2)

#: What asks for more than plain values.
HOSTILE = {
    **{f"REDUCE of {name}": call(name, *arguments) + b"." for name, arguments in GADGETS.items()},
    **{f"a class, protocol {n}": pickle.dumps(collections.OrderedDict(a=1), n) for n in range(6)},
    "INST": b"(" + text(SHELL) + b"ios\nsystem\n.",
    "OBJ of a global": b"(cos\nsystem\n" + text(SHELL) + b"o.",
    "OBJ of a value": b"(Va\nVb\no.",
    "NEWOBJ": b"\x80\x02cpathlib\nPath\n)\x81.",
    "NEWOBJ of a value": b"\x80\x02K\x01)\x81.",
    "NEWOBJ_EX": b"\x80\x04K\x01)}\x92.",
    "STACK_GLOBAL": b"\x80\x04" + short("os") + short("system") + b"\x93" + short(SHELL) + b"\x85R.",
    "STACK_GLOBAL with names from the memo": b"\x80\x04"
    + short("os")
    + b"\x94"
    + short("system")
    + b"\x9400h\x00h\x01\x93.",
    "STACK_GLOBAL with a dotted name": b"\x80\x04" + short("numpy") + short("dtype.__class__") + b"\x93.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "STACK_GLOBAL of a list that holds itself": b"\x80\x04]\x94h\x00ah\x00h\x00\x93.",
    "STACK_GLOBAL of a list that prints as 2**40 others": b"\x80\x04]\x94"
    + b"".join(b"](h%ch%ce\x94" % (n, n) for n in range(40))
    + b"h(\x93.",
    "STACK_GLOBAL of a tuple 5,000 deep": b"\x80\x04)" + b"\x85" * 5000 + b"\x94h\x00\x93.",
    "STACK_GLOBAL of a number of 10,000 digits": b"\x80\x04\x8b"
    + struct.pack("<i", 5000)
    + b"\x7f" * 5000
    + b"K\x01\x93.",
    "a letter that looks like another": b"\x80\x04" + short("\u043es") + short("system") + b"\x93.",
    "a name with a space": b"cnumpy dtype\nx\n.",
    "an empty name": b"c\n\n.",
    "an extension of one byte": b"\x80\x02\x82\xf0)R.",
    "an extension of two bytes": b"\x80\x02\x83\xf0\x00)R.",
    "an extension of four bytes": b"\x80\x02\x84\xf0\x00\x00\x00)R.",
    "a persistent id": b"Pname\n.",
    "a persistent id from the stack": b"\x80\x02K\x01Q.",
    "a buffer from outside": b"\x80\x05\x97.",
    "a read-only buffer": b"\x80\x05K\x01\x98.",
    "a bytearray": pickle.dumps(bytearray(b"x"), 5),
    "a set": pickle.dumps({1}, 4),
    "a frozen set": pickle.dumps(frozenset({1}), 4),
    "a complex number": pickle.dumps(1j, 2),
    "DUP": b"K\x01K\x022.",
    "BUILD of a dictionary": b"\x80\x02}}b.",
    "BUILD of a global": b"\x80\x02cnumpy\ndtype\n}(Vx\nK\x01ub.",
    "BUILD with slots": b"\x80\x02K\x01N}(Vx\nK\x01u\x86b.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of a dictionary's value": b"\x80\x02}(Va\nK\x01u)R.",
    "a symbol where a value belongs": b"\x80\x02cnumpy\ndtype\n.",
    "a symbol inside a list": b"\x80\x02]cnumpy\ndtype\na.",
    "a symbol inside a dictionary": b"\x80\x02}(Va\ncnumpy.core.multiarray\nscalar\nu.",
    "a symbol inside a shared tuple": b"\x80\x02cnumpy\ndtype\n\x85q\x00h\x00\x86.",
    "a symbol as a key": b"\x80\x02}cnumpy\ndtype\nK\x01s.",
    "a dtype as a value": pickle.dumps([np.dtype("f8")], 2),
    "the dtype of objects": pickle.dumps(np.dtype("O"), 2),
    "a structured dtype": pickle.dumps(np.dtype([("a", "f8"), ("b", "O")]), 4),
    "a dtype with metadata": pickle.dumps(np.dtype("f8", metadata={"a": 1}), 4),
    "a scalar of objects": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02O8\x85RU\x01N\x86R.",
    "a scalar of a symbol": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x01x\x86R.",
    "a scalar without arguments": b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.",
    "an array": pickle.dumps(np.arange(3.0), 4),
    "an array of objects": pickle.dumps(np.array([{}], dtype=object), 2),
    "a codec that unpacks": b"\x80\x02c_codecs\nencode\nVa\nVzip\n\x86R.",
    "a payload before the dictionary": SYSTEM + b"0" + PLAIN,
    "a payload after the dictionary": PLAIN[:-1] + SYSTEM + b"0.",
    "a payload under a mark": b"(" + SYSTEM + b"1" + PLAIN,
    "a payload as a value": b"}(Va\n" + SYSTEM + b"u.",
    "a payload as a key": b"}(" + SYSTEM + b"Va\nu.",
    "a payload deep in lists": b"(" * 100 + SYSTEM + b"l" * 100 + b".",
    "a payload from the memo": b"cos\nsystem\np0\n0g0\n(" + text(SHELL) + b"tR.",
    "a payload whose memo is overwritten": b"cnumpy\ndtype\np0\n0cos\nsystem\np0\n0g0\n("
    + text(SHELL)
    + b"tR.",
    "a payload after a frame that lies": b"\x80\x04\x95" + struct.pack("<Q", 3) + SYSTEM + b".",
    "a tuple as a key": b"})K\x01s.",
    "a tuple as a key whose hash takes 2**40 steps": b"\x80\x04})\x94"
    + b"".join(b"0h%ch%c\x86\x94" % (n, n) for n in range(40))
    + b"K\x01s.",
    "nan as a key": pickle.dumps({float("nan"): 1}, 2),
    "reduce with state, items and a setter": pickle.dumps(Reduced(list, (), None, iter([1])), 2),
}

#: What would take all memory, or all time, or ends nowhere.
ENDLESS = {
    "a text of 2**60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.",
    "bytes of 2**60 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"a.",
    "a bytearray of 2**60 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"a.",
    "bytes of 2**31 - 1": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"a.",
    "bytes of less than none": b"\x80\x02T" + struct.pack("<i", -1) + b"a.",
    "a whole number of 2**31 - 1 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
    "a whole number of less than none": b"\x80\x02\x8b" + struct.pack("<i", -1) + b"a.",
    "a whole number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a long one of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "memo 4294967295": b"\x80\x02K\x01r\xff\xff\xff\xff.",
    "memo 10**18": b"K\x01p1000000000000000000\n.",
    "memo -1": b"K\x01p-1\n.",
    "a memo that was never set": b"\x80\x02h\x07.",
    "protocol 255": b"\x80\xffN.",
    "marks without end": b"(" * 10**5 + b".",
    "POP of nothing": b"0.",
    "STOP of nothing": b".",
    "a dictionary with a key too many": b"(Va\nd.",
    "APPENDS to a number": b"K\x01(K\x02e.",
    "no STOP": PLAIN[:-1],
    "nothing": b"",
}  # fmt: skip
