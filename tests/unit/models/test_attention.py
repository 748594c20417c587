import pytest
import torch
import torch.nn.functional as F

from deepseek.models import attention as attention_module
from deepseek.models.attention import attention


def make_qkv(dtype=torch.float32, queries=7, keys=5):
    torch.manual_seed(0)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def run(function, tensors, mask):
    output = function(*tensors, mask)
    return [output, *torch.autograd.grad(output.square().sum(), tensors)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_explicit_path_has_the_values_and_gradients_of_the_fused_kernel(dtype, masked):
    tensors = make_qkv(dtype)
    mask = torch.rand(2, 1, 7, 5) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    ours = run(lambda q, k, v, m: attention(q, k, v, mask=m), tensors, mask)
    fused = run(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), tensors, mask
    )
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}[dtype]
    for got, want in zip(ours, fused, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_query_without_any_key_gives_zeros_and_finite_gradients():
    tensors = make_qkv()
    mask = torch.ones(2, 1, 7, 5, dtype=torch.bool)
    mask[:, :, 3] = False
    output, *gradients = run(lambda q, k, v, m: attention(q, k, v, mask=m), tensors, mask)
    assert (output[:, :, 3] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_explicit_path_is_for_short_training_sequences_on_a_cpu():
    q, k, _ = make_qkv()
    assert attention_module._prefers_explicit(q, k)
    assert not attention_module._prefers_explicit(q.detach(), k)
    long = torch.empty(1, 1, 1024, 8, requires_grad=True)
    assert not attention_module._prefers_explicit(long, long)
    with torch.no_grad():
        assert not attention_module._prefers_explicit(q, k)


def test_dropout_drops_and_keeps_the_mean():
    q, k, v = make_qkv(queries=64, keys=64)
    ones = torch.ones_like(v)
    outputs = torch.stack([attention(q, k, ones, dropout=0.5) for _ in range(20)])
    assert outputs.std() > 0.01
    assert abs(outputs.mean().item() - 1) < 0.02
