"""A loss that is taken part by part."""

import pytest
import torch
import torch.nn.functional as F

from deepseek.memory.chunked_loss import chunked_loss
from deepseek.memory.head import find_head
from deepseek.models import GPT


@pytest.mark.parametrize("num_chunks", [1, 3, 7, 20, 50])
def test_loss_and_gradients_are_those_of_the_whole(num_chunks):
    torch.manual_seed(0)
    model = GPT(context_length=20, num_classes=31, num_layers=1, dim=16, heads=2)
    tokens = torch.randint(0, 31, (2, 20))
    targets = torch.where(torch.rand(2, 20) < 0.2, -100, tokens)

    def loss_of(logits, part):
        return F.cross_entropy(
            logits.flatten(0, 1), targets[:, part].flatten(), reduction="sum", ignore_index=-100
        )

    (0.5 * loss_of(model(tokens), slice(None))).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    head = find_head(model, model.hints.head)
    with head.left_out():
        hidden = model(tokens)
    assert hidden.shape == (2, 20, 16)
    loss = chunked_loss(
        hidden, head.parameters(), lambda h, part: loss_of(head(h), part), num_chunks
    )
    torch.testing.assert_close(loss, loss_of(model(tokens), slice(None)))
    (0.5 * loss).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
