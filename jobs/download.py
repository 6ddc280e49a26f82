"""Fetch the radiographs of Kermany et al. 2018, or pretrained weights: resumed, checked, unpacked.

python jobs/download.py --to chest_xray                      # from Mendeley Data, 1.2 GB
python jobs/download.py --to s3://bucket/chest_xray --source kaggle
python jobs/download.py --to chest_xray --url archive.zip    # a file that is here already
python jobs/download.py --what weights --backbone vgg16 --features-only --to pretrained

Interrupted, it resumes when the same command is run again; once finished, that verifies the files
and fetches nothing.
Proxies and certificates: HTTPS_PROXY, REQUESTS_CA_BUNDLE.
"""

import posixpath
import sys
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import tyro

from cxr import cli, storage
from cxr.download import publishers
from cxr.download.publishers import Archive, Source
from cxr.download.transfer import Origin
from cxr.errors import SettingsError
from cxr.recipes import RECIPES

OTHER_COUNTS = 3


@dataclass(frozen=True)
class DownloadJob:
    """What to fetch, and where to."""

    what: Literal["data", "weights", "all"] = "data"
    """The radiographs, the pretrained weights or both."""
    to: str = ""
    """Folder or bucket prefix. Weights go into its folder weights; without it they go where
    --weights imagenet looks."""
    source: Source = "mendeley"
    """mendeley: the radiographs alone, version 2 of the record (1.2 GB). mendeley3: version 3,
    the same record's one file with retinal scans, too (8.4 GB). kaggle: its copy with train, val
    and test (2.5 GB; needs KAGGLE_USERNAME and KAGGLE_KEY, or kaggle.json)."""
    url: str = ""
    """An archive of the set instead: its http or https address, or a file that is here already, as
    a path, file: or s3:// URI."""
    sha256: str = ""
    """What the file of --url must have."""
    mirror: str = ""
    """Address of a folder with the published files under their own names, to fetch them from."""
    backbone: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(
        sorted({recipe.backbone for recipe in RECIPES.values()})
    )
    """Backbones whose weights to fetch: any that --backbone of train takes."""
    features_only: bool = False
    """Also write the backbone's part of each weights file as safetensors: smaller, and safe to
    copy to machines without internet access."""

    def __post_init__(self) -> None:
        if self.what != "weights" and not self.to:
            raise SettingsError("to: give a folder or bucket prefix for the radiographs.")
        if self.sha256 and not self.url:
            raise SettingsError("sha256: belongs to --url; the published files have theirs.")


def fetch_data(job: DownloadJob) -> bool:
    """Whether the counts are those that the source has published."""
    # Imported once the command line is known to be right: decoders and figures take seconds.
    from cxr.download import checking, dataset
    from cxr.download.dataset import ArchiveSource
    from cxr.reports import class_distribution

    if urlsplit(job.url).scheme in ("http", "https"):
        name = posixpath.basename(unquote(urlsplit(job.url).path)) or "archive.zip"
        source = ArchiveSource(Archive(name, Origin(job.url, sha256=job.sha256)))
    elif job.url:
        source = ArchiveSource(None, job.url, job.sha256)
    else:
        source = ArchiveSource(publishers.archive(job.source, job.mirror))
    print(publishers.LICENSE, flush=True)
    findings = dataset.get(source, job.to)
    picture, manifest = storage.join(job.to, "classes.png"), storage.join(job.to, dataset.MANIFEST)
    storage.write_bytes(picture, class_distribution(findings.counts))
    print(checking.summary(findings))
    print(f"classes: {picture}")
    print(f"manifest: {manifest}")
    print(f"next: python jobs/train.py --data {manifest}")
    return findings.as_published or bool(job.url)


def fetch_weights(job: DownloadJob) -> None:
    from cxr.models import weights  # PyTorch takes seconds.

    for backbone in job.backbone:
        uri = weights.verified_weights(backbone, job.to or storage.default_cache(), job.mirror)
        if job.features_only:
            uri = weights.features_only(uri, backbone)
        print(f"weights: {uri}")
        print(f"next: python jobs/train.py --backbone {backbone} --weights {uri}")


def main() -> None:
    job = cli.parse(DownloadJob, __doc__)
    with cli.on_interrupt(lambda: "what is complete is kept; the same command continues"):
        as_published = fetch_data(job) if job.what != "weights" else True
        if job.what != "data":
            fetch_weights(job)
    if not as_published:
        print("error: the counts are not those that were published; see above.", file=sys.stderr)
        sys.exit(OTHER_COUNTS)


if __name__ == "__main__":
    cli.run(main)
