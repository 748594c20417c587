"""What is broken is refused with the reason and what to do, and without a word of the patient."""

import logging

import pytest

from deepseek.errors import DeepSeekError

from .broken_inputs import BROKEN_INPUTS
from .slices import SECRET

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")


def test_the_table_is_long():
    assert len(BROKEN_INPUTS) >= 60


@pytest.mark.parametrize("name", BROKEN_INPUTS)
def test_what_is_broken_is_refused(name, tmp_path, caplog, recwarn):
    broken = BROKEN_INPUTS[name]
    path = broken.make(tmp_path)
    recwarn.clear()  # of writing what is broken
    with (
        caplog.at_level(logging.DEBUG, "deepseek"),
        pytest.raises(DeepSeekError, match=broken.message) as caught,
    ):
        broken.read(path)
    assert caught.value.fix
    said = [str(caught.value), caplog.text, *(str(warning.message) for warning in recwarn)]
    assert not any(SECRET in text or "1970" in text or "1.2.3.5" in text for text in said)
    if name.startswith("series"):  # what pydicom says quotes the header
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
