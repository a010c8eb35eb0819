"""Builds the package from settings.ini; data/ travels inside the wheel as ddpm_lit/data_files.

Left out are what measures the library, ddpm_lit.bench and data/parity (a wheel stays below 100 MB),
and _modidx.py, nbdev's index of the notebooks, which the library never reads.
"""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, files = cfg['lib_name'], cfg['lib_name'] + '.data_files'
readme = here/'README.md'


class WithoutIndex(build_py):
    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [(*names, path) for *names, path in found if Path(path).name != '_modidx.py']


setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: ' + cfg['audience'],
                 'Natural Language :: ' + cfg['language'],
                 *(f'Programming Language :: Python :: 3.{n}' for n in range(10, 15))],
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[extra + '_requirements'].split()
                    for extra in ('dev', 'docs', 'peers', 'export', 'data')},
    entry_points=dict(console_scripts=cfg['console_scripts'].split()),
    packages=find_packages(str(here), include=[lib, lib + '.*'],
                           exclude=[lib + '.bench']) + [files],
    package_dir={lib: lib, files: 'data'},
    package_data={lib: ['py.typed', 'names.json', 'play/*'], files: ['*', '**/*']},
    # measurements that notebooks alone read stay out as well
    exclude_package_data={files: ['parity/*', '**/*.tmp', 'runs/copying.*',
                                  'runs/own-icons.*', 'runs/hoops.*', 'runs/lora-teal.*']},
    include_package_data=False, zip_safe=False,
    cmdclass=dict(build_py=WithoutIndex),
)
