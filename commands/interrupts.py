"""The promise of a program that Ctrl-C ends it."""

import signal
import threading


def accept_interrupts():
    """Make SIGINT end the process, also where a shell started it in the background: SIGINT is ignored there."""
    is_main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
