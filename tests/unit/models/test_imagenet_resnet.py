import pytest
import torch
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from deepseek.errors import ConfigError
from deepseek.models import ImageNetResNet


@pytest.mark.parametrize(
    ("args", "theirs"),
    [
        ({"depths": (2, 1, 1, 1), "block": "basic"}, {}),
        ({"depths": (1, 2, 1, 1)}, {}),
        ({"depths": (1, 1, 1, 1), "groups": 32, "group_width": 4}, {}),
        ({"depths": (1, 1, 1, 1), "group_width": 128}, {}),
    ],
)
def test_numbers_are_those_of_torchvision_with_the_same_weights(args, theirs):
    torch.manual_seed(0)
    block = BasicBlock if args.get("block") == "basic" else Bottleneck
    theirs = ResNet(
        block, list(args["depths"]), num_classes=7, groups=args.get("groups", 1),
        width_per_group=args.get("group_width", 64),
    )  # fmt: skip
    ours = ImageNetResNet(**args, num_classes=7)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)  # statistics
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), atol=1e-5, rtol=1e-4)


# Parameters: He et al. 2015 by way of torchvision's published tables.
@pytest.mark.parametrize(
    ("args", "count"),
    [
        ({"depths": (2, 2, 2, 2), "block": "basic"}, 11_689_512),
        ({}, 25_557_032),
        ({"depths": (3, 8, 36, 3)}, 60_192_808),
        ({"groups": 32, "group_width": 4}, 25_028_904),
        ({"group_width": 128}, 68_883_240),
    ],
)
def test_sizes_are_the_published_ones(args, count):
    with torch.device("meta"):
        model = ImageNetResNet(**args, num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depths": (1, 1)}, r"depths=\(1, 1\) are not four"),
        ({"depths": (1, 0, 1, 1)}, r"depths\[1\]=0"),
        ({"block": "wide"}, "block='wide' is not known"),
        ({"block": "basic", "groups": 2}, "a basic block has none"),
    ],
)
def test_wrong_arguments_are_named_with_a_fix(args, message):
    with pytest.raises(ConfigError, match=rf"{message}(.|\n)*Fix:"):
        ImageNetResNet(**args)
