"""What is wrong with a command, and the exit codes that say so."""

EXIT_ERROR, EXIT_USAGE = 1, 2


class UsageError(ValueError):
    """Wrong usage that `argparse` cannot see, such as an empty question; ends a command with code 2."""
