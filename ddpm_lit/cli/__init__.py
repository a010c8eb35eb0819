"""The command line: `main` is what the installed command calls; each command has a module here.

Nothing is imported before a signal has an answer: Ctrl-C and `kill` end in a sentence from here on.
"""
__all__ = ['command', 'main']


def stop(number, frame):
    "Nothing is begun yet, so there is nothing to put in order."
    import os
    try:
        os.write(2, b'ddpm_lit: stopped.\n')
    finally:
        os._exit(128 + number)


def main(args: list[str] | None = None):  # None: those of the terminal
    "Run a command; whatever the user can put right ends in one sentence and an exit code."
    if args is not None:
        from .base import main as run
        return run(args)

    signals = []
    try:
        import signal
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'):  # Windows has two of them
            number = getattr(signal, name, None)
            # nohup lets the end of a terminal be ignored
            kept = name == 'SIGHUP' and number and signal.getsignal(number) == signal.SIG_IGN
            if number and not kept:
                signals.append(number)
                signal.signal(number, stop)

        from .base import main as run
        run()
    except KeyboardInterrupt:  # in the first of these lines
        stop(2, None)
    finally:
        # what has been said and done is not disturbed while Python ends
        for number in signals:
            signal.signal(number, signal.SIG_IGN)


def __getattr__(name):
    if name == 'command':
        from .base import command
        return command
    raise AttributeError(f"module 'ddpm_lit.cli' has no attribute '{name}'")
