"""The command line: `main` is what the installed command calls; each command has a module here.

Little is imported before a signal has an answer: Ctrl-C and `kill` end in a sentence from here on.
"""
__all__ = ['command', 'main']


def main(args: list[str] | None = None):  # None: those of the terminal
    "Run a command; whatever the user can put right ends in one sentence and an exit code."
    if args is not None:
        from .base import main as run
        return run(args)

    try:
        import signal
        from ..core.stop import answer, end_at_once, end_signals
        signals = end_signals()
        # nothing is begun yet, so there is nothing to put in order
        answer(signals, end_at_once)

        from .base import main as run
        try:
            run()
        finally:
            # what has been said and done is not disturbed while Python ends
            answer(signals, signal.SIG_IGN)
    except KeyboardInterrupt:  # in the first of these lines
        import os
        os.write(2, b'ddpm_lit: stopped.\n')
        os._exit(130)


def __getattr__(name):
    if name == 'command':
        from .base import command
        return command
    raise AttributeError(f"module 'ddpm_lit.cli' has no attribute '{name}'")
