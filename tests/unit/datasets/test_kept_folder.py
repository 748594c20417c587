import pytest

from deepseek.datasets.kept_folder import make_beside, taking_place


def write(place, content):
    """Make a whole folder at `place`."""
    temporary = make_beside(place.parent)
    with taking_place(temporary, place, "done.json"):
        (temporary / "content").write_text(content)
        (temporary / "done.json").write_text("{}")


def test_a_folder_made_meanwhile_is_kept(tmp_path):
    place = tmp_path / "key"
    temporary = make_beside(tmp_path)
    with taking_place(temporary, place, "done.json"):
        write(place, "first")
        (temporary / "content").write_text("second")
        (temporary / "done.json").write_text("{}")
    assert (place / "content").read_text() == "first"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("is_mended_meanwhile", [False, True])
def test_a_folder_that_did_not_read_is_replaced_once(is_mended_meanwhile, tmp_path):
    place = tmp_path / "key"
    place.mkdir()
    (place / "content").write_text("damaged")
    temporary = make_beside(tmp_path)
    with taking_place(temporary, place, "done.json"):
        if is_mended_meanwhile:
            write(place, "first")
        (temporary / "content").write_text("second")
    assert (place / "content").read_text() == ("first" if is_mended_meanwhile else "second")
    assert list(tmp_path.iterdir()) == [place]


def test_nothing_stays_of_what_failed(tmp_path):
    temporary = make_beside(tmp_path)
    with pytest.raises(KeyError), taking_place(temporary, tmp_path / "key", "done.json"):
        raise KeyError("label")
    assert list(tmp_path.iterdir()) == []
