"""The error of a wrong command line, and exit codes."""

EXIT_ERROR, EXIT_USAGE = 1, 2


class UsageError(ValueError):
    """A command line that `argparse` accepts and the command does not, such as an empty question; exit code 2."""
