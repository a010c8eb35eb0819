"Files that are made to harm: what reads them refuses them, and does nothing of what they ask for."
import gzip
import json
import os
import struct
import zlib
from pathlib import Path

from campaign.files import (CLASSIFY, EVAL, load_state, load_weights, of_folder, read_by,
                            resumed, whole_state)
from campaign.fixtures import copy_in, put
from campaign.pickles import PICKLES, ZIPS, read_zip, shared_numbers
from campaign.left import SHOWN_NAMES, left_cases
from campaign.right import FIX, cases, run_line, unharmed
from ddpm_lit.clip import tokens
from ddpm_lit.clip.zero_shot import read_picture
from ddpm_lit.data import folder as folders, images
from ddpm_lit.interop import checkpoints as theirs
from ddpm_lit.core import tensors as in_files


def hostile_file(raw: bytes, name_and_reader: tuple):
    "Write a file and read it."
    name, reader = name_and_reader
    return unharmed(read_by, reader, put(name, raw))


def head(text: bytes, n: int = 16, size: int | None = None) -> bytes:
    "A safetensors file: the size of its head, the head, n bytes of data."
    return struct.pack('<Q', len(text) if size is None else size) + text + bytes(n)


FOUR = dict(dtype='F32', shape=[4], data_offsets=[0, 16])
FOUR_TEXT = b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


def one(**changes) -> bytes:
    "A head of one tensor, 2 x 2, with changes."
    tensor = dict(dtype='F32', shape=[2, 2], data_offsets=[0, 16]) | changes
    return json.dumps({'a': tensor}).encode()


HEADS = {
    'huge length': head(b'{}', size=2**63),
    'length beyond': head(b'{}', size=10**6),
    'negative length': head(b'{}', size=2**64 - 1),
    'no UTF-8': head(b'{"\xff\xfe": {}}'),
    'deep': head(b'{"a":' + b'['*100_000 + b']'*100_000 + b'}'),
    'no JSON': head(b'{a}'),
    'a list': head(b'[1]'),
    'a word': head(b'"x"'),
    'NaN': head(b'{"a": NaN}'),
    'twice': head(b'{' + FOUR_TEXT + b',' + FOUR_TEXT + b'}'),
    'overlap': head(json.dumps({'a': FOUR, 'b': FOUR}).encode()),
    'hole': head(one(data_offsets=[8, 24]), 24),
    'beyond': head(one(data_offsets=[0, 2**40], shape=[2**19, 2**19])),
    'negative offset': head(one(data_offsets=[-16, 0])),
    'backwards': head(one(data_offsets=[16, 0])),
    'huge shape': head(one(shape=[2**62, 2**62])),
    'zero times huge': head(one(shape=[0, 2**62], data_offsets=[0, 0]), 0),
    'negative shape': head(one(shape=[-2, -2])),
    'float shape': head(one(shape=[2.5, 2])),
    'text shape': head(one(shape='2')),
    'many axes': head(one(shape=[1]*5000 + [4])),
    'no dtype': head(one(dtype=None)),
    'odd dtype': head(one(dtype='F8_E4M3', data_offsets=[0, 4]), 4),
    'unknown dtype': head(one(dtype='X9')),
    'complex': head(one(dtype='C64', shape=[2])),
    'no shape': head(b'{"a":{"dtype":"F32","data_offsets":[0,16]}}'),
    'metadata numbers': head(b'{"__metadata__":{"recipe":7}}', 0),
    'recipe nowhere': head(b'{"__metadata__":{"recipe":"../../x"}}', 0),
    'recipe of a megabyte': head(b'{"__metadata__":{"recipe":"' + b'x'*10**6 + b'"}}', 0),
    'recipe of 7 MB': head(b'{"__metadata__":{"recipe":"' + b'x'*7*10**6 + b'"}}', 0),
    'metadata list': head(b'{"__metadata__":[]}', 0),
    'list of 9 MB': head(b'{' + b' '*(9 << 20) + FOUR_TEXT + b'}'),
    'nul key': head(json.dumps({'\0': FOUR}).encode()),
    'long key': head(json.dumps({'k'*10**6: FOUR}).encode()),
    'right recipe, nothing else': head(b'{"__metadata__":{"recipe":"roll"}}', 0)}

# how a file of a kind is read: its name, and the reader
HEAD_READERS = {
    f'safetensors {how}': ('m.safetensors', reader) for how, reader in dict(
        read=in_files.read_tensors, load=load_weights, state=load_state, open=theirs.open_denoiser,
        sample='sample {file} --n 2', parity='parity {file}').items()}


def long_list(reader):
    "The head of a safetensors file, of 60 MB."
    tensors = (f'"{i:07}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
               for i in range(10**6))
    return read_by(reader, put('m.safetensors', head(f'{{{",".join(tensors)}}}'.encode(), 0)))


LONG_LISTS = {
    'a safetensors file that lists a million tensors': load_weights,
    'the same, by its layout': whole_state,
    'the same, sampled': 'sample {file}',
    'the same, to begin with': 'train roll --init {file}'}

PICKLE_READERS = {
    'pickle': ('m.pt', theirs.read_state),
    'pickle as safetensors': ('m.safetensors', in_files.read_tensors),
    'pickle as CIFAR': ('data_batch_1', images._read_cifar),
    'pickle sampled': ('m.pt', 'sample {file} --layout auto'),
    'pickle in a zip': ('data.pkl', lambda p: read_zip({'a/data.pkl': p.read_bytes()}))}


def zip_cases():
    "Zips of odd entries, and that of the fixtures with other words before it or other sizes."
    yield from cases('zip: {}', read_zip, ZIPS)
    raw = (FIX/'new/m.pt').read_bytes()
    forged = {'prefixed': b'#!/bin/sh\n' + raw,
              'forged sizes': raw.replace(b'\0\0\x08\x08', b'\xff\xff\x08\x08')}
    yield from cases('zip: {}', hostile_file, forged, [('m.pt', theirs.read_state)])


def png(w: int, h: int) -> bytes:
    "A picture that says it has this size, and has a million zeros."
    chunks = {b'IHDR': struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0),
              b'IDAT': zlib.compress(bytes(10**6)), b'IEND': b''}
    raw = b'\x89PNG\r\n\x1a\n'
    for kind, data in chunks.items():
        crc = struct.pack('>I', zlib.crc32(kind + data))
        raw += struct.pack('>I', len(data)) + kind + data + crc
    return raw


BMP_HEAD = (54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
PICTURES = {
    'png 60000 x 60000': png(60000, 60000),
    'png 12000 x 12000': png(12000, 12000),
    'png without size': png(0, 0),
    'png 1 x 2 million': png(1, 2*10**6),
    'png negative': png(2**32 - 1, 2**32 - 1),
    'gif 65535 x 65535': b'GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0'
                         b'\xff\xff\xff\xff\0\x02\x02D\x01\0;',
    'bmp huge': b'BM' + struct.pack('<IHHIIiiHHIIiiII', *BMP_HEAD),
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    'postscript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9000 9000\n'
                  b'(HARM) (w) file\n%%EOF\n',
    'tiff loop': b'II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\x01\0\0\0\x01\0\0\0\x08\0\0\0',
    'a zip': b'PK\x05\x06' + bytes(18),
    'avif': b'\0\0\0\x18ftypavif\0\0\0\0avifmif1' + bytes(99),
    'dds': b'DDS |\0\0\0' + bytes(200),
    'blp': b'BLP2\1\0\0\0' + bytes(200),
    'text': b'hello'}


def captioned_picture(p):
    return folders.pictures_with_captions(put(p.with_suffix('.txt'), 'x').parent)


PICTURE_READERS = {
    'picture': ('p.png', read_picture),
    'picture in a folder': ('d/p.png', lambda p: images.folder(p.parent, 8)),
    'picture with caption': ('d/p.png', captioned_picture),
    'picture classified': ('p.png', CLASSIFY)}


def in_bits():
    "A GIF of 160 MB, in comments of one byte each."
    head = b'GIF89a\2\0\2\0\xf0\0\0' + bytes(6)
    frame = b',\0\0\0\0\2\0\2\0\0\2\2\x44\1\0;'
    return read_picture(put('p.gif', head + b'!\xfe' + b'\1a'*80_000_000 + b'\0' + frame))


IDX = {
    '255 axes': b'\0\0\x08\xff' + b'\0\0\0\2'*255,
    'huge': b'\0\0\x08\3' + b'\xff'*12,
    'no axis': b'\0\0\x08\0x',
    'no rows': b'\0\0\x08\3' + bytes(12),
    'empty rows': b'\0\0\x08\2\0\0\0\5\0\0\0\0',
    'floats': b'\0\0\x0d\1\0\0\0\1\0\0\0\0'}


def in_mnist(p):
    "The pictures of MNIST, with five labels beside."
    labels = b'\0\0\x08\1' + struct.pack('>I', 5) + bytes(5)
    p.with_name('train-labels-idx1-ubyte').write_bytes(labels)
    os.environ['DDPM_LIT_DATA'] = str(p.parent.parent.resolve())
    return images.load_images('mnist')


IDX_READERS = {'idx': ('t-idx.gz', images.read_idx),
               'idx in MNIST': ('d/mnist/train-images-idx3-ubyte', in_mnist)}


def packed_cases():
    "What a few bytes unfold to, and odd sizes."
    bomb = gzip.compress(bytes(7*10**8), 1)
    yield from cases('{1}: {0}', hostile_file, dict(bomb=bomb) | IDX, IDX_READERS)
    yield 'vocabulary: bomb', hostile_file, bomb, ('v.gz', tokens.read_pairs)


def word_cases(rng):
    "Lists of names, and words that are too long."
    letters = bytes(rng.choices(range(97, 123), k=10**6))
    names = {'bomb of lines': b'a\n'*10**6, 'one long line': letters + b'\nx',
             'signs that a terminal obeys': b'\x1b]0;x\x07\n\xe2\x80\xaea\n\x08'}
    yield from cases('names: {}', hostile_file, names, [('n.txt', 'classify {cat} --names {file}')])
    for line in ('classify {cat} b', 'paint --n 1 --steps 2'):
        yield (f'a word of 120 thousand letters, {line}', run_line, line,
               letters[:120_000].decode())


DEEP = {'deep': b'['*10**5 + b']'*10**5,
        'deep objects': b'{"a":'*10**5 + b'1' + b'}'*10**5}
JSONS = DEEP | {
    'long number': b'9'*10**4,
    'NaN': b'{"step": NaN, "weight_map": NaN, "sample_size": NaN}',
    'twice': b'{"a":1,"a":2}',
    'surrogate': b'{"weight_map": {"a": "\\ud800"}, "recipe": "\\ud800"}',
    'traversal': b'{"weight_map": {"a": "../../etc/passwd"}}',
    'absolute': b'{"weight_map": {"a": "/etc/passwd"}}',
    'itself': b'{"weight_map": {"a": "m.safetensors.index.json"}}',
    'nul': b'{"weight_map": {"a": "\\u0000"}}',
    'BOM': b'\xef\xbb\xbf{}',
    'step huge': b'{"step": 1e999}',
    'wide': b'[' + b'1,'*10**6 + b'1]'}


def beside(reader, *names: str):
    "A reader of a file with these files of a run beside."
    def read(p):
        copy_in(p.parent, *(FIX/'run'/name for name in names))
        return read_by(reader, p)

    return read


JSON_READERS = {
    'index': ('m.safetensors.index.json', theirs.read_state),
    'config': ('config.json', lambda p: [*theirs._read_configuration(p)]),
    'cards': ('d/cards.json', 'compare --out {folder} --n 100'),
    'captions': ('d/metadata.jsonl', of_folder(folders.pictures_with_captions)),
    'log': ('d/log.jsonl', beside(resumed, 'run.json', 'state.safetensors', 'roll.json',
                                  'roll.safetensors')),
    'settings': ('d/run.json', beside(resumed, 'log.jsonl', 'state.safetensors')),
    'card': ('d/roll.json', beside(EVAL, 'roll.safetensors'))}


def named_in_captions(name: str, skip: bool):
    "A table of captions that names such a file."
    put('d/metadata.jsonl', json.dumps(dict(file_name=name, text='a cat')))
    return unharmed(folders.pictures_with_captions, Path('d'), 8, *['skip']*skip)


def hostile_cases(rng):
    yield from cases('{1}: {0}', hostile_file, HEADS, HEAD_READERS)
    yield from cases('{1}: {0}', hostile_file, PICKLES, PICKLE_READERS)
    yield from zip_cases()
    yield from cases('{1}: {0}', hostile_file, PICTURES, PICTURE_READERS)
    yield 'a picture in 80 million pieces', in_bits
    yield from left_cases()
    yield from packed_cases()
    yield from word_cases(rng)
    yield 'a .pt of shared numbers', shared_numbers
    yield from cases('{}', long_list, LONG_LISTS)
    yield from cases('json {1}: {0}', hostile_file, JSONS, JSON_READERS)
    yield from cases('caption names {}{}', named_in_captions, SHOWN_NAMES,
                     {'': False, ', skipped': True})
