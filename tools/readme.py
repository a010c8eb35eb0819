"README.md from nbs/index.ipynb; used as `python tools/nb.py readme [--check]`."
import re
from pathlib import Path

from nb import flags, nbs, replace, root


def prepared(path):
    "A notebook without its hidden and exported cells and its directives, with links from the root."
    import nbformat
    nb = nbformat.read(path, as_version=4)
    nb.metadata.language_info = dict(name='python')
    left_out = {'hide', 'export', 'exporti', 'default_exp'}
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw' and not flags(c).keys() & left_out]
    for c in nb.cells:
        c.source = '\n'.join(l for l in c.source.splitlines() if not re.match(r'\s*#\s*\|', l))
        # of a film its still picture
        for data in (o.data for o in c.get('outputs', ()) if 'class="film"' in str(o.get('data'))):
            data['image/png'] = re.search(r' src="data:[^,]*,([^"]*)"', data.pop('text/html'))[1]
        # of a folded cell only what it shows
        if 'hide-input' in c.metadata.get('tags', []):
            c.source = ''
        # links are written for nbs/; README stands one floor up
        if c.cell_type == 'markdown':
            c.source = re.sub(r'\]\((?!\w+:|[/#])', f']({nbs.name}/', c.source)
            c.source = c.source.replace(f'({nbs.name}/../', '(')
    return nb


def caption(cells, index):
    "The first sentence of the caption under a figure, without marks, or the figure's name."
    below = cells[index + 1].source if index + 1 < len(cells) else ''
    if not re.match(r'\*\w', below):
        return cells[index].id.replace('-', ' ')
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', below).replace('*', '').replace('`', '')
    return re.match(r'.+?(?=\.\s|\.?$)', plain, re.M)[0].replace('[', '(').replace(']', ')')


def rendered(nb):
    "{path: bytes} of README.md and its pictures."
    from nbconvert import MarkdownExporter
    resources = dict(unique_key='cell', output_files_dir=f'{nbs.name}/readme')
    body, extra = MarkdownExporter().from_notebook_node(nb, resources=resources)
    body = re.sub(r'^ +$', '', body, flags=re.M)
    body = re.sub(r'```python\n+```\n', '', body)

    # pictures are named after their cell's id, so new cells rename nothing
    files = {}
    for name, data in extra['outputs'].items():
        index, n = re.search(r'cell_(\d+)_(\d+)\.', name).groups()
        id = nb.cells[int(index)].id
        suffix = '.webp' if data[8:12] == b'WEBP' else Path(name).suffix
        new = f'{nbs.name}/readme/{id}' + (f'-{n}' if n != '0' else '') + suffix
        alt = caption(nb.cells, int(index))
        body = re.sub(rf'!\[\w+\]\({re.escape(name)}\)', f'![{alt}]({new})', body)
        files[root/new] = data
    files[root/'README.md'] = (re.sub(r'\n{3,}', '\n\n', body).strip() + '\n').encode()
    return files


def readme(check):
    "Write README.md and nbs/readme/*, or only say whether they are in step; True if they are not."
    index = nbs/'index.ipynb'
    if not index.exists():
        print('there is no nbs/index.ipynb to make README.md from')
        return True
    files = rendered(prepared(index))
    old = set((nbs/'readme').glob('*')) - files.keys()
    stale = [p for p, data in files.items() if not p.exists() or p.read_bytes() != data]

    if check:
        wrong = stale + sorted(old)
        if wrong:
            names = ', '.join(str(p.relative_to(root)) for p in wrong)
            print(f'out of step with index.ipynb: {names}; run tools/nb.py readme')
        return bool(wrong)

    (nbs/'readme').mkdir(exist_ok=True)
    for p in old:
        p.unlink()
    for p in stale:
        replace(p, files[p])
    print(f'README.md and {len(files) - 1} pictures in {nbs.name}/readme are in step')
    return False
