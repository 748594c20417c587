import json

from tests.unit.datasets.volumes import write_pairs

from deepseek.cli.init_volumes import fill_volumes


def test_names_of_classes_may_hold_words_of_the_template(tmp_path):
    write_pairs(tmp_path, count=2)
    names = ["background", "COSTAL_CARTILAGE", "BATCH_SIZE"]
    described = {"labels": dict(enumerate(names))}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    text, chosen = fill_volumes("CLASS_NAMES\nBATCH_SIZE\nFINGERPRINT", tmp_path, "4GiB")
    classes, size, *described = text.splitlines()
    assert json.loads(classes) == names
    assert size == str(chosen.batch_size)
    assert described[-2].startswith("#   COSTAL_CARTILAGE: ")
