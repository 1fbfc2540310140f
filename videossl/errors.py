"""What a user caused and can mend: printed as one line by the command line, never as a traceback."""


class UserError(ValueError):
    """Says what was got, what is allowed, and the remedy, in one line."""


class StorageFull(UserError):
    """A disk or a quota has no room for what was to be written: it may have some later."""


class Preempted(Exception):
    """A run was asked to stop; all is saved, and the same command goes on. The message is one line.

    It is empty where another process of this host says it.
    """

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later; tools/slurm.sbatch requeues on it

    def __init__(self, text: str, exit_code: int = EXIT_CODE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class RankLost(Exception):
    """Another process of the run is gone. The message is one line, or empty where another rank has said it."""

    EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


class VideoDecodeError(UserError):
    """One video that cannot be decoded, with the backend that tried and the cause, in one line."""

    def __init__(self, path: str, backend: str, cause: str) -> None:
        super().__init__(f"{path}: {backend} cannot decode it: {cause}")
        self.path = path
        self.backend = backend
        self.cause = cause

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Exceptions are pickled by their message alone, and this one must cross process borders whole.
        return type(self), (self.path, self.backend, self.cause)
