"""Jobs whose data, cache and results are all in buckets, also of a store that fails in between."""

import io
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import torchvision
from safetensors.torch import save

from cxr import phantoms, storage
from cxr.models import checkpoint
from tests.support.faults import FaultyProxy
from tests.support.jobs import SMALL, UNSTRESSED, Ended, execute, history
from tests.support.s3 import Store
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def data(s3: Store, small_set: Path) -> str:
    """The small set in a bucket, as a folder, a manifest and a zip of its training images."""
    folder = f"{s3.bucket()}/small set"
    files = sorted(small_set.rglob("*.jpeg"))
    names = [path.relative_to(small_set).as_posix() for path in files]
    with ThreadPoolExecutor(8) as pool:
        places = [f"{folder}/{name}" for name in names]
        list(pool.map(storage.write_bytes, places, [path.read_bytes() for path in files]))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in zip(names, files, strict=True):
            if name.startswith("train/"):
                archive.write(path, name)
    storage.write_bytes(f"{folder.rpartition('/')[0]}/zipped/train.zip", sink.getvalue())
    rows = [f"{folder}/{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
    manifest = "\n".join(["uri,label,split", *rows])
    storage.write_bytes(f"{folder}.csv", manifest.encode())
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working and cache folder; nothing may be in it at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def below(uri: str) -> set[str]:
    return {file.uri.removeprefix(f"{uri}/") for file in storage.list_files(uri)}


def scores(output: str) -> pa.Table:
    tables = [storage.read_table(file.uri) for file in storage.list_files(f"{output}/scores")]
    return pa.concat_tables(tables)


def succeeded(ended: Ended) -> str:
    assert ended.code == 0, ended.out + ended.err
    return ended.out


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_train_resume_evaluate_and_score_with_all_in_buckets(
    s3: Store, data: str, ray_cluster: None, run_job: Callable[..., Ended], nowhere: Path
) -> None:
    bucket = data.rpartition("/")[0]
    run, cache = f"{bucket}/runs/a run", f"{bucket}/cache"
    weights = f"{bucket}/weights.safetensors"
    tensors = torchvision.models.alexnet().features.state_dict()
    storage.write_bytes(weights, save({f"features.{k}": v for k, v in tensors.items()}))

    words = [*SMALL, "--data", data, "--weights", weights, "--epochs", "2", "--cache", cache]
    words += UNSTRESSED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        ended = run_job("train", *words, "--output", run)
    assert "best: epoch 2 of 2" in ended.out
    assert ended.code == 130
    assert any(name.startswith("ray/") for name in below(run))
    assert "best/result.json" not in below(run)

    out = succeeded(run_job("train", "--resume", run))
    assert "best: epoch" not in out
    trained = f"{run}/best/checkpoint"
    assert f"checkpoint: {trained}" in out
    assert [epoch["epoch"] for epoch in history(run)] == [1, 2]
    assert below(run) == {
        "run.json", "splits.parquet", "report.html", "best/recipe.json", "best/metrics.jsonl",
        "best/result.json", "best/tensorboard/events.out.tfevents.0.cxr",
        "best/checkpoint/MODEL_CARD.md", "best/checkpoint/checkpoint.json",
        "best/checkpoint/model.onnx",
        "best/checkpoint/model.safetensors", "best/checkpoint/splits.parquet",
        "best/checkpoint/validation.parquet",
    }  # fmt: skip

    succeeded(
        run_job("evaluate", "--checkpoint", trained, "--data", f"{data}.csv", "--output",
                f"{bucket}/examined", "--cache", cache, *UNSTRESSED)
    )  # fmt: skip
    assert below(f"{bucket}/examined") == {"metrics.json", "predictions.parquet", "report.html"}
    predictions = storage.read_table(f"{bucket}/examined/predictions.parquet").to_pylist()
    assert len(predictions) == 12

    output = f"{bucket}/scores"
    inputs = (f"{data}/train", f"{data}/test", f"{bucket}/zipped")
    out = scored_while_it_fails(s3, trained, inputs, output)
    assert "scored 108 of 108; refused 0; unreadable 0" in out
    assert {"scores.csv", "summary.json", "index.html"} <= below(output)
    logits: dict[str, dict[str, float]] = {"small set": {}, "train.zip!": {}}
    for row in scores(output).to_pylist():
        # The URIs of the scores name the proxy.
        source = "train.zip!" if "train.zip!" in row["uri"] else "small set"
        logits[source][row["uri"].partition(f"{source}/")[2]] = row["logit"]
    plain, zipped = logits.values()
    assert (len(plain), len(zipped)) == (60, 48)
    assert {name: plain[name] for name in zipped} == zipped
    for row in predictions:
        name = row["uri"].partition("small set/")[2]
        assert plain[name] == pytest.approx(row["logit"], abs=1e-4)
    assert {path.name for path in nowhere.iterdir()} <= {"matplotlib"}  # Its list of fonts.


def test_the_default_data_are_drawn_into_a_bucket_once(s3: Store, nowhere: Path) -> None:
    cache = s3.bucket()
    settings = phantoms.PhantomSettings(num_train=4, num_val=2, num_test=2, image_px=32)
    folder = phantoms.kept(settings, cache)
    assert folder.startswith(f"{cache}/phantoms/")
    assert "truth.json" in (made := below(folder))
    assert len(made) == 9
    times = storage.list_files(folder)
    assert phantoms.kept(settings, cache) == folder
    assert storage.list_files(folder) == times
    assert phantoms.kept(settings, str(nowhere / "cache")) == str(
        phantoms.cached(settings, nowhere / "cache")
    )


def scored_while_it_fails(s3: Store, trained: str, inputs: Sequence[str], output: str) -> str:
    """Score through a store that answers 503 and, where it keeps its data, restarts."""
    with FaultyProxy(s3.port) as proxy:
        through = f"?endpoint_override={proxy.endpoint}"

        def disturb() -> None:
            wait_until(lambda: storage.list_files(f"{output}/scores"), 300)
            proxy.fault = "unavailable"
            wait_until(lambda: proxy.count["unavailable"] >= 3)
            if s3.is_swift:
                s3.stop()
            proxy.fault = ""
            if s3.is_swift:
                wait_until(lambda: proxy.count["unreachable"] >= 1)
                s3.start()

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        words = ["--checkpoint", trained, "--input", *(uri + through for uri in inputs)]
        ended = execute("score", *words, "--output", output + through)
        disturbing.join()
        assert proxy.count["unavailable"] >= 3
    return succeeded(ended)


def test_a_store_that_stays_away_ends_the_job_and_not_the_images(
    s3: Store, data: str, ray_cluster: None, small_checkpoint: str, run_job: Callable[..., Ended]
) -> None:
    ended = run_job(
        "score", "--checkpoint", small_checkpoint, "--input", "s3://never-made/xrays", "--output",
        f"{s3.bucket()}/scores",
    )  # fmt: skip
    assert ended.code == 1
    assert ended.own_err[0].startswith(f"error: s3://never-made: {s3.endpoint} has no bucket")
