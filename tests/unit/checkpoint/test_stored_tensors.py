import pickle
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepseek.checkpoint.stored_tensors import StoredTensors
from deepseek.errors import CheckpointError
from deepseek.models.tensor_part import Place, TensorPart

SHAPES = st.lists(st.integers(1, 7), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])


@st.composite
def splits(draw, shape):
    """Boxes that make up a tensor of this shape: (offset, slices) of each."""
    boxes = [((), ())]
    for size in shape:
        cuts = draw(st.lists(st.integers(0, size), max_size=3, unique=True))
        ends = sorted({0, *cuts, size})
        runs = list(pairwise(ends))
        boxes = [((*o, a), (*s, slice(a, b))) for o, s in boxes for a, b in runs]
    return boxes


def make_tensor(shape, dtype=torch.float32):
    count = torch.Size(shape).numel()
    numbers = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return (numbers % 2 if dtype == torch.bool else numbers).view(shape).to(dtype)


def write(folder, *files):
    """Write one file per rank, each from parts; return what is stored in all of them."""
    paths = []
    for rank, parts in enumerate(files):
        paths.append(folder / f"model.rank_{rank}.safetensors")
        save_file({part.key: part.tensor.contiguous() for part in parts}, paths[-1])
    return StoredTensors(paths)


def part(name, shape, offset, tensor):
    return TensorPart(Place(name, tuple(shape), tuple(offset)), tensor)


def rows(name, whole, start, end):
    return part(name, whole.shape, (start, *[0] * (whole.ndim - 1)), whole[start:end])


@settings(max_examples=150, deadline=None)
@given(SHAPES, DTYPES, st.data())
def test_what_was_written_in_any_split_is_read_in_any_other(shape, dtype, data):
    whole, num_files = make_tensor(shape, dtype), data.draw(st.integers(1, 4))
    files = [[] for _ in range(num_files)]
    for offset, cut in data.draw(splits(shape)):
        files[data.draw(st.integers(0, num_files - 1))].append(part("w", shape, offset, whole[cut]))
    with tempfile.TemporaryDirectory() as folder:
        stored = write(Path(folder), *files)
        assert list(stored) == ["w"]
        assert stored.shape("w") == shape
        assert torch.equal(stored["w"], whole)
        assert stored["w"].dtype == dtype
        for offset, cut in data.draw(splits(shape)):
            target = stored.new("w", whole[cut].shape)
            assert target.dtype == dtype
            stored.fill(part("w", shape, offset, target))
            assert torch.equal(target, whole[cut])


@settings(max_examples=60, deadline=None)
@given(SHAPES.filter(bool), st.data())
def test_a_part_that_is_missing_is_an_error(shape, data):
    whole, boxes = make_tensor(shape), data.draw(splits(shape).filter(lambda found: len(found) > 1))
    lost = data.draw(st.integers(0, len(boxes) - 1))
    parts = [part("w", shape, offset, whole[cut]) for offset, cut in boxes]
    count = whole[boxes[lost][1]].numel()
    with tempfile.TemporaryDirectory() as folder:
        stored = write(Path(folder), parts[:lost], parts[lost + 1 :])
        message = f"{count:,} of {whole.numel():,} values are missing"
        with pytest.raises(CheckpointError, match=message):
            _ = stored["w"]
        for other, (offset, cut) in enumerate(boxes):
            if other != lost:  # who needs the others alone gets them
                target = torch.empty_like(whole[cut])
                stored.fill(part("w", shape, offset, target))
                assert torch.equal(target, whole[cut])


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    stored = write(tmp_path, [TensorPart.whole("w", torch.ones(3, 2))])
    for shape in ((2, 3), (3, 3), (6,), ()):
        with pytest.raises(CheckpointError) as caught:
            stored.fill(TensorPart.whole("w", torch.empty(shape)))
        assert caught.value.message == (f"w is stored with shape (3, 2), and the model has {shape}")


def test_files_that_disagree_on_a_shape_are_an_error(tmp_path):
    whole = torch.ones(4, 2)
    files = [[rows("w", whole, 0, 2)], [part("w", (5, 2), (2, 0), whole[2:])]]
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path, *files)
    assert caught.value.message == (
        f"{tmp_path / 'model.rank_1.safetensors'} holds a part of w of shape (5, 2), another file"
        " says (4, 2)"
    )


def test_a_name_that_is_not_stored_is_a_key_error(tmp_path):
    stored = write(tmp_path, [TensorPart.whole("w", torch.ones(2))])
    assert "v" not in stored
    with pytest.raises(KeyError):
        _ = stored["v"]
    with pytest.raises(KeyError):
        stored.fill(TensorPart.whole("v", torch.ones(2)))


def test_a_part_that_is_there_twice_does_not_stand_for_a_missing_one(tmp_path):
    whole = torch.ones(4, 2)
    stored = write(tmp_path, [rows("w", whole, 0, 2)], [rows("w", whole, 0, 2)])
    with pytest.raises(CheckpointError, match="4 of 8 values are missing"):
        _ = stored["w"]


def test_parts_that_overlap_do_not_stand_for_a_missing_one(tmp_path):
    whole = torch.ones(4, 2)
    stored = write(tmp_path, [rows("w", whole, 0, 2)], [rows("w", whole, 1, 3)])
    with pytest.raises(CheckpointError, match="2 of 8 values are missing"):
        _ = stored["w"]


def test_parts_that_overlap_are_read_where_they_are_all_there(tmp_path):
    whole = make_tensor((4, 2))
    stored = write(tmp_path, [rows("w", whole, 0, 3)], [rows("w", whole, 1, 4)])
    assert torch.equal(stored["w"], whole)


def test_a_tensor_that_two_ranks_have_written_is_read_once(tmp_path):
    whole = make_tensor((4, 2))
    stored = write(tmp_path, [TensorPart.whole("w", whole)], [TensorPart.whole("w", whole)])
    assert torch.equal(stored["w"], whole)


def test_ranks_hold_different_tensors_and_some_hold_none(tmp_path):
    one, other = make_tensor((3,)), make_tensor((2, 2))
    stored = write(tmp_path, [], [TensorPart.whole("a", one)], [TensorPart.whole("b", other)], [])
    assert len(stored) == 2
    assert set(stored) == {"a", "b"}
    assert torch.equal(stored["a"], one)
    assert torch.equal(stored["b"], other)


def test_an_empty_part_is_filled_with_nothing(tmp_path):
    whole = make_tensor((3, 2))
    stored = write(tmp_path, [rows("w", whole, 0, 2)], [rows("w", whole, 2, 3)])
    stored.fill(part("w", (3, 2), (3, 0), torch.empty(0, 2)))


def test_an_empty_tensor_is_stored(tmp_path):
    stored = write(tmp_path, [TensorPart.whole("w", torch.empty(0, 4))])
    assert stored["w"].shape == (0, 4)


def test_values_are_converted_to_the_dtype_they_are_wanted_in(tmp_path):
    whole = make_tensor((4, 2)).bfloat16()
    stored = write(tmp_path, [rows("w", whole, 0, 1)], [rows("w", whole, 1, 4)])
    target = torch.empty(4, 2)
    stored.fill(TensorPart.whole("w", target))
    assert torch.equal(target, whole.float())


def test_a_weight_that_is_trained_can_be_filled(tmp_path):
    whole = make_tensor((4, 2))
    stored = write(tmp_path, [rows("w", whole, 0, 1)], [rows("w", whole, 1, 4)])
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    stored.fill(TensorPart.whole("w", weight))
    assert torch.equal(weight, whole)


def test_a_view_is_filled_where_it_lies(tmp_path):
    whole = make_tensor((6, 2))
    stored = write(tmp_path, [rows("w", whole, 0, 3)], [rows("w", whole, 3, 6)])
    local = torch.zeros(4, 2)  # rows 1, 2 and 4, 5 in a row: two boxes
    stored.fill(part("w", (6, 2), (1, 0), local[:2]))
    stored.fill(part("w", (6, 2), (4, 0), local[2:]))
    assert torch.equal(local, whole[[1, 2, 4, 5]])


def test_another_process_opens_the_files_anew(tmp_path):
    whole = make_tensor((4, 2))
    stored = write(tmp_path, [rows("w", whole, 0, 1)], [rows("w", whole, 1, 4)])
    again = pickle.loads(pickle.dumps(stored))
    assert torch.equal(again["w"], whole)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(SafetensorError):
        StoredTensors([path])
