"The command line: `main` is what the installed command calls; each command has a module here."
from .base import command, main

__all__ = ['command', 'main']
