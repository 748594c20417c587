import pytest

from deepseek.deploy.optimization import candidate
from deepseek.deploy.optimization.candidate import BASE, Candidate, list_candidates


def test_names_say_what_is_done():
    assert BASE.name == "eager fp32"
    whole = Candidate("aoti", "fp32", "int8_static", "pruned", 1)
    assert whole.name == "aoti int8_static of pruned on 1 thread"


def test_candidates_are_the_products_that_exist():
    found = [each for each, reason in list_candidates(["model", "pruned"], ["eager"], ["fp32"])]
    assert found == [Candidate(), Candidate(source="pruned")]
    int8 = {each for each, _ in list_candidates(["model"], ["eager", "compiled"], ["int8"])}
    assert Candidate("eager", "fp32", "int8_weight_only") in int8
    assert Candidate("compiled", "fp32", "int8_static") in int8
    assert Candidate("eager", "fp32", "int8_static") not in int8  # it would simulate integers
    others = {each for each, _ in list_candidates(["model"], ["onnxruntime", "openvino"], ["int8"])}
    assert Candidate("openvino", "fp32", "int8_static") in others
    assert not any(each.method == "int8_dynamic" for each in others)  # they do not know it


def test_what_is_quick_to_convert_and_fast_elsewhere_comes_first():
    runtimes = ["exported", "aoti", "compiled", "openvino", "eager"]
    names = [
        each.name for each, _ in list_candidates(["model"], runtimes, ["fp32", "bf16", "int8"])
    ]
    assert names[0] == "openvino bf16"
    order = ["openvino bf16", "openvino int8", "openvino fp32", "compiled bf16", "aoti bf16"]
    assert [name for name in names if name in order] == order
    assert names[-1].startswith("exported")


@pytest.mark.parametrize("has_units", [True, False])
def test_fp16_is_tried_where_the_processor_has_units_for_it(monkeypatch, has_units):
    monkeypatch.setattr(candidate.torch.cpu, "get_capabilities", lambda: {"amx_fp16": has_units})
    [(_, reason)] = list_candidates(["model"], ["eager"], ["fp16"])
    assert (reason == "") == has_units


def test_what_is_not_installed_is_left_out_with_how_to_install_it(monkeypatch):
    from deepseek.deploy.runtimes.in_torch import Eager

    monkeypatch.setattr(Eager, "find_missing", lambda self: "pip install eager")
    [(_, reason)] = list_candidates(["model"], ["eager"], ["fp32"])
    assert reason == "not installed: pip install eager"


def test_the_least_effort_is_the_original_in_eager():
    others = [
        Candidate(precision="bf16"), Candidate("openvino"), Candidate(threads=1),
        Candidate("eager", "fp32", "int8_static"), Candidate(source="pruned"),
    ]  # fmt: skip
    assert all(BASE.effort < other.effort for other in others)
    assert Candidate("compiled", "bf16").effort < Candidate("openvino", "int8_bf16").effort
