"""Errors; each message is one sentence: where, what was found, what to do.

Every error takes one string, so that it can be sent from a worker to the driver.
"""


class CxrError(Exception):
    """Any error that the user can act on; jobs print it without a traceback."""


class SettingsError(CxrError):
    """A setting is invalid or unknown."""


class DataError(CxrError):
    """The radiographs, labels or splits are not what a job needs."""


class ImageError(CxrError):
    """One radiograph cannot be used."""


class WeightsError(CxrError):
    """Pretrained weights are missing, unreachable or do not fit the network."""


class CheckpointError(CxrError):
    """A checkpoint or run folder is missing, incomplete or not what it claims to be."""


class DownloadError(CxrError):
    """A file cannot be fetched, or differs from the published one."""


class StorageError(CxrError):
    """A path or bucket cannot be read or written."""


class UnavailableError(StorageError):
    """An object store as a whole cannot be reached, refuses access, or lacks the bucket.

    It says nothing about the file that was requested, so no file counts as failed because of it.
    """
