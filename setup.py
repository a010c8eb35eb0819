"""Builds the package from settings.ini; data/ travels inside the wheel as ddpm_lit/data_files.

Left out is data/parity, which only checks of this repository read: a wheel stays below 100 MB.
"""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, files = cfg['lib_name'], cfg['lib_name'] + '.data_files'
readme = here/'README.md'

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
    packages=find_packages(str(here), include=[lib, lib + '.*']) + [files],
    package_dir={lib: lib, files: 'data'},
    package_data={lib: ['py.typed', 'names.json'], files: ['*', '**/*']},
    exclude_package_data={files: ['parity/*', '**/*.tmp']},
    include_package_data=False, zip_safe=False,
)
