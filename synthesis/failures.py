"""How a run ends early: the error that says what to do, and the limit of failed calls."""


class RunError(RuntimeError):
    """A run that cannot start or continue. The message says why and what to do. Finished samples stay."""


class FailureLimit:
    """
    Stops the run if a service is down, but not if it fails now and then. Stages report the end of each call here.

    Args:
        name (`str`): name of the service, for the error.
        max_in_a_row (`int`): failed calls in a row that stop the run.
    """

    def __init__(self, name: str, max_in_a_row: int = 20):
        self.name, self.max_in_a_row = name, max_in_a_row
        self.num_in_a_row, self.has_succeeded, self.last = 0, False, None

    def succeeded(self):
        self.num_in_a_row, self.has_succeeded = 0, True

    def failed(self, error: Exception):
        """
        Count a failed call.

        Raises:
            RunError: if too many calls in a row have failed.
        """
        self.num_in_a_row, self.last = self.num_in_a_row + 1, error
        if self.num_in_a_row >= self.max_in_a_row:
            self._give_up()

    def check(self):
        """
        Check that some call has worked.

        The engine calls this before it stores samples as finished. Without it, rejects of a service that never worked
        would be final.

        Raises:
            RunError: if every call has failed.
        """
        if self.num_in_a_row and not self.has_succeeded:
            self._give_up()

    def _give_up(self):
        raise RunError(f"{self.num_in_a_row} calls in a row failed at {self.name}; the last one: {self.last}")
