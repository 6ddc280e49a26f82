"""Joining the cluster that a job was submitted to, or starting one on this machine."""

import importlib
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cxr.cluster.resources import wait_for
from cxr.errors import CxrError

CONNECT_S: Final = 10.0
"""Longest time until a cluster's head takes a connection."""

ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # A hospital expects that nothing calls home.
    "RAY_TRAIN_V2_ENABLED": "1",
    # Seconds until a group of workers is tried with another size. After a node is gone, Ray's
    # elastic policy decides for a while by what it had, and then waits for it: 60 by default.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # Between two looks at the workers, which a report waits for: 2 by default, and an epoch of a
    # head takes less.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Before a node ends an idle process: 1,000 by default, so that short tasks beside actors that
    # hold every CPU each started a process anew, which on two nodes took a third of their time.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # Else Ray Train prints every line twice.
    "RAY_AIR_NEW_OUTPUT": "0",  # Else Ray Tune frames its settings, whatever its verbosity.
    # Else Ctrl-C ends a search as if it had finished, with the trials that it has.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOGGING_CONFIG": str(Path(__file__).with_name("ray_data_logging.yaml")),
}
"""Environment of the job and of a cluster that it starts; what is set already stays."""

LOCAL_ENVIRONMENT: Final = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""For a cluster of one machine, which nobody preempts or scrapes: a process less to start each."""

API_SERVER: Final = "RAY_API_SERVER_ADDRESS"
"""Variable that Ray's state API takes the address of a cluster from, before any other."""

NATIVE_LOG_LEVEL: Final = "RAY_BACKEND_LOG_LEVEL"
"""Variable that the native part of each of Ray's processes reads its log level from."""


def connect(num_cpus: int | None = None, importing: Sequence[str] = ()) -> None:
    """Join the cluster that this job was submitted to, or start one on this machine.

    Without `RAY_ADDRESS`, which Ray sets for submitted jobs, a local cluster is started: never the
    one that a stale file in the temporary folder names, which would be waited for in vain.

    Args:
        num_cpus: CPUs of a cluster that is started; all of the machine's where None.
        importing: modules that the job needs next, imported while the cluster starts. None of them
            may import Ray, which is being imported itself.

    Raises:
        CxrError: the cluster cannot be joined, refuses the token, or has no node with a CPU.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    variables = ENVIRONMENT | (LOCAL_ENVIRONMENT if address == "local" else {})
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    imports = threading.Thread(target=_import, args=(importing,), daemon=True)
    imports.start()
    if address.startswith(("http://", "https://")):
        raise CxrError(
            f"RAY_ADDRESS={address}: takes submitted jobs. Run ray job submit --working-dir . --"
            " python jobs/..., or unset RAY_ADDRESS to compute on this machine."
        )
    _check_listens(address)
    with _quiet_native_log():
        # Workers and actors log errors alone; what a job has to say, it prints.
        try:
            ray.init(
                address=address,
                num_cpus=num_cpus,
                include_dashboard=False if address == "local" else None,
                dashboard_port=_free_port() if address == "local" else None,
                logging_level=logging.ERROR,
                logging_config=ray.LoggingConfig(log_level="ERROR"),
            )
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise CxrError(f"RAY_ADDRESS={address}: {_why_refused(error)}") from None
        except Exception as error:
            # Ray raises a bare Exception where its processes need more than 30 s to start.
            if type(error) is not Exception:
                raise
            raise CxrError(
                f"Ray did not start on this machine: {error} Is it busy with other work? Try again."
            ) from None
    # Where two threads import modules that import each other, as those of torchvision do, Python
    # lets one of them see a module that is not complete.
    imports.join()
    if data := sys.modules.get("ray.data"):  # Imported before the variables were set.
        data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    if not wait_for("CPU", 1):
        raise CxrError(
            f"RAY_ADDRESS={address}: no node with a CPU has joined this cluster. See ray status."
        )


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        # What is wrong with one is raised where it is used.
        with suppress(Exception):
            importlib.import_module(module)


@contextmanager
def own_address() -> Iterator[None]:
    """Let the processes that Ray Train starts within ask this cluster for their state.

    A process of Ray Train asks every second whether the run's controller is still alive; if it is
    not, it removes the run's workers. In Ray 2.60 it does not ask the cluster that it belongs to,
    but the one that `RAY_API_SERVER_ADDRESS` names, else one that runs on this machine. With a
    second cluster there it fails with a traceback, or does not find the controller.
    """
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.add(API_SERVER)  # From here to the controller, and from there on.
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ[API_SERVER]
        if before is not None:
            os.environ[API_SERVER] = before


@contextmanager
def _quiet_native_log() -> Iterator[None]:
    """Keep the native log of this process off the console, for a cluster that is joined within.

    For every pool of actors Ray 2.60 logs an error about constructor arguments in the object store:
    those that Ray Data itself puts there, and that this process keeps as long as the pool lives.
    Only this process is quieted: the variable is not in `os.environ`, of which the cluster's
    processes get a copy, so their log files are complete.
    """
    if NATIVE_LOG_LEVEL in os.environ:
        yield
        return
    os.putenv(NATIVE_LOG_LEVEL, "fatal")
    # The native log says on the console that its level was set. What else comes while the cluster
    # is joined is shown a moment later; if it is not joined, the error says why.
    console = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(console, 2)
            os.close(console)
        captured.seek(0)
        for line in captured:
            if NATIVE_LOG_LEVEL.encode() not in line:
                os.write(2, line)


def _why_refused(error: Exception) -> str:
    """Why a cluster that listens was not joined, and what to do."""
    from ray.exceptions import AuthenticationError

    # Ray retries a token that the cluster does not know, and gives its answer as a cause's text.
    if isinstance(error, AuthenticationError) or "InvalidAuthToken" in str(error.__cause__):
        return (
            "the cluster's token is missing here, or is another one. Set RAY_AUTH_MODE=token, and"
            " put the token that the cluster was started with into ~/.ray/auth_token."
        )
    return f"cannot be joined: {error}. Restart the cluster, or unset RAY_ADDRESS."


def _free_port() -> int:
    """A port for the dashboard that a cluster of our own does not have.

    Without one, Ray 2.60 gives 127.0.0.1:8265 as the address of the dashboard even so, and that of
    another cluster on this machine may be there: Ray Train would ask it for the run's controller,
    not find it, and end the run's workers.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _check_listens(address: str) -> None:
    """Fail within seconds where Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host.startswith("ray://") or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise CxrError(
            f"RAY_ADDRESS={address}: cannot be joined: {error}. Start the cluster, or unset"
            " RAY_ADDRESS to compute on this machine."
        ) from None
