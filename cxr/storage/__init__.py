"""Files and folders, on disk or in a bucket, by path or URI.

Everything that the project reads or writes goes through pyarrow's file systems, so an `s3://` URI
can stand wherever a path can. A missing file and an object store that cannot be reached are
different errors everywhere: the second is an `UnavailableError`.
"""

from cxr.storage.files import (
    READ_AHEAD_BYTES,
    delete,
    delete_file,
    move_file,
    move_in,
    open_file,
    read_bytes,
    read_json,
    read_table,
    write_bytes,
    write_json,
    write_stream,
    write_table,
)
from cxr.storage.listing import (
    REQUESTS_AT_ONCE,
    File,
    for_all,
    kind,
    list_files,
    list_pages,
    look_up,
)
from cxr.storage.locks import Lock, lock_folder
from cxr.storage.outputs import check_empty, check_same, claim, default_output, is_empty
from cxr.storage.paths import (
    absolute,
    default_cache,
    join,
    printable,
    resolve,
    run_storage,
    scratch,
)

__all__ = [
    "READ_AHEAD_BYTES",
    "REQUESTS_AT_ONCE",
    "File",
    "Lock",
    "absolute",
    "check_empty",
    "check_same",
    "claim",
    "default_cache",
    "default_output",
    "delete",
    "delete_file",
    "for_all",
    "is_empty",
    "join",
    "kind",
    "list_files",
    "list_pages",
    "lock_folder",
    "look_up",
    "move_file",
    "move_in",
    "open_file",
    "printable",
    "read_bytes",
    "read_json",
    "read_table",
    "resolve",
    "run_storage",
    "scratch",
    "write_bytes",
    "write_json",
    "write_stream",
    "write_table",
]
