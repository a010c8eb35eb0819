"""Checks what a release promises; .github/workflows/release.yml runs it.

    python tools/release.py workflow        the steps and the pins of the workflow
    python tools/release.py dist            the source archive and the wheel in dist/
    python tools/release.py wheel FILE      a wheel alone
    python tools/release.py tag v0.1.0      the tag names the version of settings.ini
    python tools/release.py bom FILE        a bill of materials (CycloneDX, JSON)
    python tools/release.py try             the checks, on what is whole and on what is not

None of it needs a network. The bill itself is made by `cyclonedx-py environment`, of
cyclonedx-bom, out of an environment with the wheel alone; with that package installed it needs
no network either. It ends with `N passed, N failed`.
"""
import argparse
import base64
import copy
import fnmatch
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

root = Path(__file__).resolve().parent.parent
WORKFLOW = '.github/workflows/release.yml'
LARGEST = 100_000_000  # bytes: PyPI takes no larger file

# what is in the repository and in neither archive: setup.py and MANIFEST.in leave it out
LEFT_OUT = ('data/parity/*', 'data/icons/*', 'ddpm_lit/bench/*', '*/_modidx.py', '*.tmp',
            'data/runs/copying.*', 'data/runs/own-icons.*', 'data/runs/own-style.*',
            'data/runs/hoops.*', 'data/runs/lora-teal.*', 'data/runs/series.*',
            'data/runs/restore.*', 'data/runs/edits.*', 'data/runs/*-film.*',
            'data/runs/latent-two.*')

# job -> what its steps do, in this order
PROMISED = {
    'build': (r'^python tools/release\.py workflow$', r'^python -m build --no-isolation$',
              r'^twine check --strict dist/\*$', r'^python tools/release\.py dist$',
              r'^python tools/release\.py tag "\$GITHUB_REF_NAME"$', r'tools/smoke\.py',
              r'^cyclonedx-py environment .*--of JSON', r'^python tools/release\.py bom ',
              r'^actions/upload-artifact@'),
    'publish': (r'^actions/download-artifact@', r'^pypa/gh-action-pypi-publish@'),
    'page': (r'^actions/download-artifact@', r'^gh release create ')}
RIGHTS = {'build': None, 'publish': {'id-token': 'write'}, 'page': {'contents': 'write'}}
NEEDS = {'build': None, 'publish': 'build', 'page': 'publish'}


def settings(at: Path = root):
    ini = ConfigParser(delimiters=['='])
    ini.read(at/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def plain_name(requirement: str) -> str:
    "torch>=2.7 -> torch, as package indexes compare names."
    return re.sub('[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()


# ---- the workflow -----------------------------------------------------------------------------


def lines_of(job: dict) -> list[str]:
    "What the steps of a job do: the name of an action, or each line of a script."
    return [line.strip() for step in job['steps']
            for line in (step.get('uses') or step['run']).strip().splitlines()]


def workflow_faults(text: str) -> list[str]:
    "What the text of the workflow does not keep of its promises."
    import yaml
    try:
        flow = yaml.safe_load(text)
        jobs = flow['jobs']
        steps = {name: lines_of(job) for name, job in jobs.items()}
        started = flow[True]  # YAML reads the key `on` as yes
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as e:
        return [f'it is no workflow: {type(e).__name__} {e}']

    faults = []
    if set(started) != {'push', 'workflow_dispatch'} or started['push'] != {'tags': ['v*']}:
        faults.append(f'it is started by {started}')
    if flow.get('permissions') != {'contents': 'read'}:
        faults.append('all jobs together may do more than read')
    if jobs.keys() != PROMISED.keys():
        faults.append(f'its jobs are {", ".join(jobs)}')

    for name, patterns in PROMISED.items():
        job = jobs.get(name, {})
        if job.get('permissions') != RIGHTS[name] or job.get('needs') != NEEDS[name]:
            faults.append(f'{name}: rights {job.get("permissions")}, after {job.get("needs")}')
        rest = iter(steps.get(name, ()))
        for pattern in patterns:
            if not any(re.search(pattern, line) for line in rest):
                faults.append(f'{name}: no step {pattern}, or not in its order')
                break

    # only a tag is published, by nobody's password, and by actions alone
    publish = jobs.get('publish', {})
    if publish.get('if') != "github.event_name == 'push' && github.ref_type == 'tag'":
        faults.append('publish: not for a tag alone')
    if publish.get('environment') != 'pypi' or any('run' in s for s in publish.get('steps', ())):
        faults.append('publish: no environment of its own, or it runs a script')
    if re.search(r'secrets\.|password|continue-on-error', json.dumps(jobs)):
        faults.append('it knows a secret, or goes on after an error')

    # exact versions: an action by its commit, a package by ==
    for line in text.splitlines():
        if 'uses:' in line and not re.search(r'uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$',
                                             line):
            faults.append(f'an action without its commit and version: {line.strip()}')
    for line in sum(steps.values(), []):
        if 'pip install' in line:
            words = line.split('pip install')[1].split()
            faults += [f'a package without its version: {word}' for word in words
                       if word != 'dist/*.whl' and not re.fullmatch(r'[\w-]+==[\d.]+', word)]
    return faults


# ---- the requirements -------------------------------------------------------------------------


def bound_faults(cfg) -> list[str]:
    "Requirements of a settings.ini, those of the extras too, that name no first or last version."
    return [f'{key}: {requirement} has no bound on either side' for key in cfg
            if key.endswith('requirements') for requirement in cfg[key].split()
            if not re.fullmatch(r'[\w-]+(==[\d.]+|>=[\d.]+,<[\d.]+)', requirement)]


# ---- the archives -----------------------------------------------------------------------------


def left_out(path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in LEFT_OUT)


def tracked(at: Path) -> list[str]:
    "The files of the repository that belong into an archive."
    paths = subprocess.check_output(['git', 'ls-files', '-z', 'data', settings(at)['lib_name']],
                                    cwd=at, text=True).split('\0')
    return [p for p in paths if p and not left_out(p)]


def too_large(path: Path) -> list[str]:
    size = path.stat().st_size
    return [f'{path.name} has {size:,} bytes, and {LARGEST:,} are too many'][:size >= LARGEST]


def different(found: set[str], wanted: set[str], what: str) -> list[str]:
    "A sentence for what is missing and one for what is too much."
    faults = []
    for more, paths in (('lacks', wanted - found), ('should not have', found - wanted)):
        if paths:
            faults.append(f'{what} {more} {len(paths)} files, such as {min(paths)}')
    return faults


def metadata_faults(raw: bytes, at: Path, what: str) -> list[str]:
    "Name, version, requirements and description are those of settings.ini and README."
    cfg, meta = settings(at), message_from_bytes(raw)
    plain = [r for r in meta.get_all('Requires-Dist', []) if 'extra ==' not in r]

    def parts(requirement):
        return plain_name(requirement), frozenset(re.findall(r'[<>=!~]=?[\d.]+', requirement))

    same = {
        'name': plain_name(meta['Name'] or '?') == plain_name(cfg['lib_name']),
        'version': meta['Version'] == cfg['version'],
        'Python': meta['Requires-Python'] == '>=' + cfg['min_python'],
        'requirements': {*map(parts, plain)} == {*map(parts, cfg['requirements'].split())},
        'licence': 'Apache-2.0' in (meta['License'], meta['License-Expression']),
        'kind of description': meta['Description-Content-Type'] == 'text/markdown',
        'description': meta.get_payload(decode=True).decode().strip()
                       == (at/'README.md').read_text(encoding='utf-8').strip()}
    return [f'{what}: another {key} than in settings.ini or README' for key in same
            if not same[key]]


def recorded_faults(z: zipfile.ZipFile, record: str) -> list[str]:
    "Every file of a wheel has the sum that its list says."
    sums = dict(line.split(',')[:2] for line in z.read(record).decode().splitlines())
    faults = different({*z.namelist()}, {*sums}, 'the wheel, by its own list,')
    for name in {*z.namelist()} & {*sums} - {record}:
        digest = base64.urlsafe_b64encode(hashlib.sha256(z.read(name)).digest()).rstrip(b'=')
        if sums[name] != f'sha256={digest.decode()}':
            faults.append(f'the wheel: {name} has another sum')
    return faults


def wheel_faults(wheel: Path, at: Path = root) -> list[str]:
    "What is wrong with a wheel of the repository `at`."
    if too_large(wheel):
        return too_large(wheel)
    lib = settings(at)['lib_name']
    wanted = {re.sub('^data/', f'{lib}/data_files/', p) for p in tracked(at)}
    with zipfile.ZipFile(wheel) as z:
        info = [n.split('/')[0] for n in z.namelist() if n.endswith('.dist-info/METADATA')]
        if len(info) != 1:
            return ['the wheel has no METADATA']
        inside = {n for n in z.namelist() if not n.startswith(info[0])}
        faults = different(inside, wanted, 'the wheel')
        faults += metadata_faults(z.read(f'{info[0]}/METADATA'), at, 'the wheel')
        faults += recorded_faults(z, f'{info[0]}/RECORD')
        scripts = f'{info[0]}/entry_points.txt'
        if scripts not in z.namelist() or f'{lib} = {lib}' not in z.read(scripts).decode():
            faults.append('the wheel brings no command')
        if not any(n.startswith(info[0]) and n.endswith('LICENSE') for n in z.namelist()):
            faults.append('the wheel has no LICENSE')
    return faults


def source_faults(archive: Path, at: Path = root) -> list[str]:
    "What is wrong with a source archive: the wheel has to be built from it."
    lib = settings(at)['lib_name']
    wanted = {*tracked(at), 'settings.ini', 'LICENSE', 'README.md', 'setup.py', 'MANIFEST.in'}
    with tarfile.open(archive) as tar:
        odd = [m.name for m in tar if not (m.isfile() or m.isdir()) or '..' in m.name]
        names = [m.name.partition('/')[2] for m in tar if m.isfile()]
        inside = {n for n in names if n.split('/')[0] != f'{lib}.egg-info'}
        faults = different(inside - {'PKG-INFO', 'setup.cfg'}, wanted, 'the source archive')
        about = [m for m in tar if m.name.count('/') == 1 and m.name.endswith('/PKG-INFO')]
        if len(about) != 1:
            return ['the source archive has no PKG-INFO']
        faults += metadata_faults(tar.extractfile(about[0]).read(), at, 'the source archive')
    faults += [f'the source archive: {name} is no plain file' for name in odd]
    return faults + too_large(archive)


def dist_faults(folder: Path, at: Path = root) -> list[str]:
    "What is wrong with the archives of a release."
    files = sorted(folder.iterdir())
    stem = f'{settings(at)["lib_name"]}-{settings(at)["version"]}'
    wanted = [f'{stem}-py3-none-any.whl', f'{stem}.tar.gz']
    if [p.name for p in files] != wanted:
        return [f'{folder} holds {", ".join(p.name for p in files)} and not {" and ".join(wanted)}']
    return wheel_faults(files[0], at) + source_faults(files[1], at)


def tag_faults(tag: str, at: Path = root) -> list[str]:
    version = settings(at)['version']
    return [] if tag == f'v{version}' else [f'the tag is {tag} and the version {version}']


# ---- the bill of materials --------------------------------------------------------------------


def bom_faults(text: str, at: Path = root) -> list[str]:
    "What is wrong with a bill of materials: ours and each requirement, with version and origin."
    cfg = settings(at)
    try:
        bill = json.loads(text)
        parts = {plain_name(c['name']): c for c in bill['components']}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        return [f'it is no bill of materials: {type(e).__name__} {e}']

    faults = []
    if bill.get('bomFormat') != 'CycloneDX' or not bill.get('specVersion'):
        faults.append('it is not in the format CycloneDX')
    name = plain_name(cfg['lib_name'])
    if parts.get(name, {}).get('version') != cfg['version']:
        faults.append(f'it lacks {name} {cfg["version"]}')
    for needed in map(plain_name, cfg['requirements'].split()):
        part = parts.get(needed, {})
        of_index = str(part.get('purl', '')).startswith(f'pkg:pypi/{needed}@')
        if not part.get('version') or not of_index:
            faults.append(f'it lacks {needed}, or its version or its purl')

    # what depends on what: the wheel on each of its requirements
    refs = {c.get('bom-ref'): key for key, c in parts.items()}
    ours = [d for d in bill.get('dependencies', []) if refs.get(d.get('ref')) == name]
    found = {refs.get(ref) for d in ours for ref in d.get('dependsOn', [])}
    lacking = {*map(plain_name, cfg['requirements'].split())} - found
    return faults + [f'it does not say that {name} needs {d}' for d in sorted(lacking)]


# ---- the checks themselves --------------------------------------------------------------------


def small_release(at: Path) -> Path:
    "A repository of three small files with our setup.py, and its archives: the folder of them."
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'LICENSE', 'README.md'):
        (at/name).write_bytes((root/name).read_bytes())
    lib = settings(at)['lib_name']
    small = [f'{lib}/__init__.py', f'{lib}/cli/__init__.py', f'{lib}/py.typed', f'{lib}/names.json',
             f'{lib}/_modidx.py', f'{lib}/play/index.html', f'{lib}/bench/__init__.py',
             f'{lib}/bench/speed.py', 'data/mnist/a.gz', 'data/weights/digits.json',
             'data/parity/f.json']
    for name in small:
        (at/name).parent.mkdir(parents=True, exist_ok=True)
        (at/name).write_text('')
    for command in (['git', 'init', '-q'], ['git', 'add', '-A'],
                    [sys.executable, 'setup.py', '-q', 'sdist', 'bdist_wheel']):
        subprocess.run(command, cwd=at, check=True, capture_output=True)
    return at/'dist'


def small_bill() -> dict:
    "A bill of materials such as an environment with the wheel alone gives."
    cfg = settings()
    versions = {plain_name(r): '1' for r in cfg['requirements'].split()}
    ours = {plain_name(cfg['lib_name']): cfg['version']}
    parts = [{'bom-ref': name, 'name': name, 'version': v, 'type': 'library',
              'purl': f'pkg:pypi/{name}@{v}'} for name, v in (ours | versions).items()]
    needs = [{'ref': name, 'dependsOn': [*versions]} for name in ours]
    return dict(bomFormat='CycloneDX', specVersion='1.6', components=parts, dependencies=needs)


def rewritten(wheel: Path, change) -> None:
    "The wheel anew: change(name, bytes) -> (name, bytes) or None."
    with zipfile.ZipFile(wheel) as z:
        files = [change(n, z.read(n)) for n in z.namelist()]
    with zipfile.ZipFile(wheel, 'w') as z:
        for pair in filter(None, files):
            z.writestr(*pair)


BROKEN_WORKFLOWS = {  # title -> (what is there, what stands there instead)
    'a tag for a commit': ('@11bd71901bbe5b1630ceea73d27597364c9af683  # v4.2.2', '@v4'),
    'a branch for a commit': ('@dc37677b2e1c63e2034f94d8a5b11f265b73ba33  # v1.14.2',
                              '@release/v1'),
    'a package of any version': ('twine==7.0.0', 'twine'),
    'a builder of any version': ('setuptools==84.2.1', 'setuptools'),
    'built by what is newest': ('build --no-isolation', 'build'),
    'no check of the archives': ('run: python tools/release.py dist', 'run: ls'),
    'no check of the metadata': ('twine check --strict dist/*', 'ls'),
    'no bill of materials': ('cyclonedx-py environment', 'echo'),
    'the bill unchecked': ('python tools/release.py bom', 'cat'),
    'a password': ('attestations: true', 'password: ${{ secrets.PYPI }}'),
    'rights for all jobs': ('permissions:\n  contents: read', 'permissions:\n  contents: write'),
    'the identity for scripts': ('timeout-minutes: 40', 'permissions:\n      id-token: write'),
    'published by hand': ("github.event_name == 'push' && github.ref_type == 'tag'", 'always()'),
    'published unbuilt': ('needs: build', 'needs: []'),
    'at every push': ("tags: ['v*']", 'branches: [main]'),
    'errors are passed over': ('timeout-minutes: 15', 'continue-on-error: true'),
    'no YAML': ('jobs:', 'jobs: ['),
}


def tried_workflows():
    "(title, whether it should pass, faults)."
    text = (root/WORKFLOW).read_text(encoding='utf-8')
    yield 'the workflow', True, workflow_faults(text)
    for title, (old, new) in BROKEN_WORKFLOWS.items():
        faults = workflow_faults(text.replace(old, new)) if old in text else []
        yield f'workflow: {title}', False, faults


def tried_bills():
    whole = small_bill()
    yield 'a bill of materials', True, bom_faults(json.dumps(whole))
    for key in ('components', 'dependencies', 'bomFormat'):
        yield f'bill without {key}', False, bom_faults(json.dumps({**whole, key: []}))
    for key in ('version', 'purl', 'name'):
        bill = copy.deepcopy(whole)
        bill['components'][1][key] = ''.join(reversed(bill['components'][1][key])) + '/'
        if key == 'version':
            del bill['components'][1][key]
        yield f'bill with another {key} of a requirement', False, bom_faults(json.dumps(bill))
    yield 'bill that is no JSON', False, bom_faults('<bom/>')


def tried_archives():
    "The archives of a small repository, whole and spoiled."
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)/'small'
        at.mkdir()
        dist = small_release(at)
        yield 'archives', True, dist_faults(dist, at)
        wheel = next(dist.glob('*.whl'))
        raw = wheel.read_bytes()
        changes = {
            'without a module': lambda n, b: None if n.endswith('cli/__init__.py') else (n, b),
            'without data': lambda n, b: None if n.endswith('a.gz') else (n, b),
            'without METADATA': lambda n, b: None if n.endswith('METADATA') else (n, b),
            'without a command': lambda n, b: None if n.endswith('points.txt') else (n, b),
            'with another module': lambda n, b: (n, b'x = 1') if n.endswith('.py') else (n, b),
            'of another version': lambda n, b: (n, b.replace(b'\nVersion: ', b'\nVersion: 9')),
            'with other requirements': lambda n, b: (n, b.replace(b'-Dist: torch<', b'-Dist: t<')),
            'with parity': lambda n, b: (n.replace('mnist', 'parity'), b),
            'with benchmarks': lambda n, b: (n.replace('cli', 'bench'), b)}
        for title, change in changes.items():
            rewritten(wheel, change)
            yield f'a wheel {title}', False, dist_faults(dist, at)
            wheel.write_bytes(raw)
        with open(wheel, 'ab') as f:
            f.truncate(LARGEST)
        yield 'a wheel of 100 MB', False, dist_faults(dist, at)
        wheel.write_bytes(raw)
        (at/'data/new.json').write_text('')
        subprocess.run(['git', 'add', '-A'], cwd=at, check=True)
        yield 'archives older than the repository', False, dist_faults(dist, at)
    yield 'another tag', False, tag_faults('v9')
    yield 'bounds of all requirements', True, bound_faults(settings())
    for loose in ('torch>=2', 'torch<3', 'torch'):
        yield f'the requirement {loose}', False, bound_faults(dict(data_requirements=loose))
    yield 'the tag', True, tag_faults(f'v{settings()["version"]}')


def tried(a):
    "(title, whether it should pass, faults) of what was asked for."
    if a.what == 'try':
        yield from tried_workflows()
        yield from tried_bills()
        yield from tried_archives()
    elif a.what == 'workflow':
        yield WORKFLOW, True, workflow_faults((root/WORKFLOW).read_text(encoding='utf-8'))
    elif a.what == 'dist':
        yield 'archives in dist', True, dist_faults(root/'dist')
    elif a.what == 'wheel':
        yield a.which, True, wheel_faults(Path(a.which))
    elif a.what == 'tag':
        yield f'tag {a.which}', True, tag_faults(a.which)
    else:
        yield a.which, True, bom_faults(Path(a.which).read_text(encoding='utf-8'))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('workflow', 'dist', 'wheel', 'tag', 'bom', 'try'))
    p.add_argument('which', nargs='?', default='')
    results = []
    for title, whole, faults in tried(p.parse_args()):
        results.append(whole != bool(faults))
        print('ok    ' if results[-1] else 'FAILED', title, flush=True)
        for fault in faults if whole else ():
            print(f'        {fault}')
    print(f'{sum(results)} passed, {len(results) - sum(results)} failed')
    return not all(results)


if __name__ == '__main__':
    sys.exit(main())
