"Pickles and zips that are made to harm."
import os
import pickle
import warnings
import zipfile
from typing import Any

import numpy as np
import torch
from campaign.right import unharmed
from ddpm_lit.interop import checkpoints as theirs


class Calls:
    "A pickle of it asks to call a function."

    def __init__(self, f, *args):
        self.how = f, args

    def __reduce__(self):
        return self.how


def nested(depth: int) -> list:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def batch(data) -> bytes:
    "A pickle as a file of CIFAR-10 is."
    return pickle.dumps(dict(data=data, labels=[1]), 2)


def of_objects() -> bytes:
    "A dtype that is made one of objects after it was made: its bytes would be read as pointers."
    plain_ = batch(Calls(np.ndarray, (1,), np.dtype('u8'), b'A'*8))
    return plain_.replace(b'u8', b'O8')


LOOP: dict = {}
LOOP['a'] = LOOP
LAUGHS = b''.join(b'](h' + bytes([i]) + (b'h' + bytes([i]))*9 + b'eq' + bytes([i + 1])
                  for i in range(30))
TOUCH = Calls(os.system, 'touch HARM')

PICKLES = {
    'runs a command': pickle.dumps(TOUCH, 2),
    'evaluates': pickle.dumps(Calls(eval, "open('HARM','w')"), 2),
    'old protocol': pickle.dumps(TOUCH, 0),
    'new protocol': pickle.dumps(TOUCH, 5),
    'a bare number': pickle.dumps(7, 2),
    'text': pickle.dumps('x', 2),
    'deep': pickle.dumps(nested(400), 2),
    'a loop': pickle.dumps(LOOP, 2),
    'words for keys': pickle.dumps({(1, 2): 3}, 2),
    'a name of a megabyte': b'\x80\x02c' + b'a'*10**6 + b'\nb\n.',
    'no stop': b'\x80\x02}',
    'pops nothing': b'\x80\x020.',
    'gets what was never put': b'\x80\x02h\xff.',
    'huge text': b'\x80\x02X\xff\xff\xff\x7fabc.',
    'huge long': b'\x80\x02\x8b\xff\xff\xff\x7f\x01.',
    'negative long': b'\x80\x02\x8b\xff\xff\xff\xff.',
    'huge memo': b'\x80\x02}r\xff\xff\xff\x7f.',
    'billion laughs': b'\x80\x02]q\0' + LAUGHS + b'.',
    'grows': b'\x80\x02' + b'(]'*100_000 + b'.',
    'doubles text': b'\x80\x02X\x04\0\0\0abcd' + b'2\x86'*40 + b'.',
    'extension': b'\x80\x02\x82\x01.',
    'persistent': b'\x80\x02X\x01\0\0\0aQ.',
    'buffer': b'\x80\x05\x97.',
    'odd set': b'\x80\x04\x8f(K\x01\x90.',
    'instance': b'(i__main__\nx\n.',
    'object': b'\x80\x02(cos\nsystem\no.',
    'an array of pointers': batch(Calls(np.ndarray, (1,), np.dtype('O'), b'A'*8)),
    'pointers by another way': of_objects(),
    'an array of what lies about': batch(Calls(np.ndarray, (153_600,), np.dtype('u1'))),
    'a huge array': batch(Calls(np.ndarray, (1 << 40,), np.dtype('u1')))}

# the entries of a zip; a number is a size
ZIPS = {
    'bomb': {'a/data.pkl': 3*10**8},
    'bomb beside': {'a/data.pkl': pickle.dumps({}, 2), 'a/data/0': 3*10**8},
    'traversal': {'../../HARM/data.pkl': pickle.dumps({}, 2)},
    'two programs': {'a/data.pkl': b'', 'b/data.pkl': b''},
    'no program': {'x': b''},
    'other order': {'a/data.pkl': pickle.dumps({}, 2), 'a/byteorder': b'big'},
    'nothing': {}}


def read_zip(entries: dict[str, bytes | int]):
    with warnings.catch_warnings(), zipfile.ZipFile('m.pt', 'w', zipfile.ZIP_DEFLATED) as z:
        warnings.simplefilter('ignore')
        for name, raw in entries.items():
            z.writestr(name, bytes(raw) if isinstance(raw, int) else raw)
    return unharmed(theirs.read_state, 'm.pt')


def shared_numbers():
    "A file of 4 MB whose tensors take 4 GB."
    row = torch.zeros(1 << 20)
    torch.save({f'w{i}': row.view(1024, 1024) for i in range(1000)}, 'm.pt')
    return theirs.read_state('m.pt')
