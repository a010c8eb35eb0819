"ddpm_lit/names.json, which module adds which name; used as `python tools/nb.py names [--check]`."
import contextlib
import importlib
import json
import pkgutil
import sys

from nb import cfg, replace, root

path = root/cfg['lib_path']/'names.json'


def added():
    "{kind: {name: module}} of what the library's modules add to registries, all of them imported."
    sys.path.insert(0, str(root))
    import ddpm_lit
    from ddpm_lit.core.registry import Registry
    registries = {}
    for module in pkgutil.walk_packages(ddpm_lit.__path__, 'ddpm_lit.'):
        if module.name == 'ddpm_lit.__main__':
            continue
        for thing in vars(importlib.import_module(module.name)).values():
            if isinstance(thing, Registry):
                if registries.setdefault(thing.kind, thing) is not thing:
                    sys.exit(f'two registries are of the kind "{thing.kind}": rename one of them')
    return {kind: registry.owners for kind, registry in registries.items()}


def differences(old, new):
    "Sentences on what a list lacks, and on what it should not have."
    was, now = ({(kind, name, module) for kind, names in known.items()
                 for name, module in names.items()} for known in (old, new))
    for more, rows in (('lacks', now - was), ('should not have', was - now)):
        for kind, name, module in sorted(rows):
            yield f'{more} the {kind} "{name}" of {module}'


def write_names(check):
    "Write the list, or only say whether it is in step; True if it is not."
    new = added()
    data = (json.dumps(new, indent=1, sort_keys=True, ensure_ascii=False) + '\n').encode()
    shown = path.relative_to(root)
    if check and path.exists() and path.read_bytes() == data:
        return False
    if check:
        # a list that is missing, or that a merge has cut, is not compared line by line
        with contextlib.suppress(OSError, ValueError):
            for line in differences(json.loads(path.read_bytes()), new):
                print(f'{shown} {line}')
        print(f'{shown} is out of step with the modules; run tools/nb.py names')
        return True

    replace(path, data)
    print(f'{shown} has {sum(map(len, new.values()))} names of {len(new)} kinds')
    return False
