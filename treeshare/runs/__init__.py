"""Run directories that can be resumed: the manifest, the journal, and the sampling that fills them."""

from treeshare.runs.directory import RunDirectory, check_place, read_run
from treeshare.runs.journal import Journal, iter_records, read_records
from treeshare.runs.manifest import Manifest, current_versions, prompts_sha256
from treeshare.runs.record import Record
from treeshare.runs.sampling_run import CompletionSource, make_manifest, make_requests, sample_into

__all__ = [
    "CompletionSource",
    "Journal",
    "Manifest",
    "Record",
    "RunDirectory",
    "check_place",
    "current_versions",
    "iter_records",
    "make_manifest",
    "make_requests",
    "prompts_sha256",
    "read_records",
    "read_run",
    "sample_into",
]
