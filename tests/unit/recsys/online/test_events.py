import pytest
from tests.unit.recsys.online.conftest import click

from deepseek.errors import DataError
from deepseek.recsys.online.events import EventReader, tick_entry


@pytest.fixture
def reader():
    return EventReader(["request_id"], ["click"], ["genre"])


@pytest.mark.parametrize("kind", [[], {}, None, 7])
def test_a_kind_that_is_no_text_is_refused(reader, kind):
    with pytest.raises(DataError, match="is unknown"):
        reader.entry({**click(1), "kind": kind}, None)


@pytest.mark.parametrize("own", [tick_entry(7)[0], "lost:3"])
def test_ids_of_the_log_are_refused(reader, own):
    with pytest.raises(DataError, match=f"id='{own}': such ids are the log's own"):
        reader.entry(click(1, id=own), None)
    assert reader.entry(click(1, id="ticket:7"), None)[0] == "ticket:7"
    assert reader.entry(click(1), None)[0] == "click:r1"
