"""A session that survives the end of its process: a file to which every change is added, behind the change.

journal = Journal(session, journal_folder())        # from now on every change is written
...
for found in list_journals(journal_folder(), volume):
    session, journal = resume(found.path, volume)
journal.save("annotation.lowlat")                   # the same format, compacted
session = open_session("annotation.lowlat", volume)
"""

from napari_lowlat_seg.annotation.journal.files import (
    FoundSession,
    JournalInfo,
    journal_folder,
    journal_info,
    list_journals,
    open_session,
    prune_journals,
    read_session,
    resume,
)
from napari_lowlat_seg.annotation.journal.frames import JournalError
from napari_lowlat_seg.annotation.journal.writer import Journal

__all__ = [
    "FoundSession",
    "Journal",
    "JournalError",
    "JournalInfo",
    "journal_folder",
    "journal_info",
    "list_journals",
    "open_session",
    "prune_journals",
    "read_session",
    "resume",
]
