"""The Vision Transformer, an image classifier made of patches and attention.

Paper: Dosovitskiy et al. 2020, arXiv 2010.11929: eq. 1-4, table 1 (Base, Large); Tiny and Small are
DeiT's, Touvron et al. 2020, arXiv 2012.12877, table 1. Stochastic depth: Huang et al. 2016, arXiv
1603.09382. Departures: the head is one zero-initialised linear (the paper's fine-tuning head), and
`pool="mean"` averages patches instead of a class token. `distillation` is DeiT's second token,
arXiv 2012.12877, section 4. Positions are learned, from sines and
cosines of row and column (MoCo v3) rather than from noise: small models trained from scratch learn
several times faster. Parameters are called as in timm, so that published weights load by name.

Shapes: B batch, C channels, H W pixels, T tokens, D dim, K classes.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.attention import attention
from deepseek.models.checks import check_choice, check_positive, check_share, missing_head
from deepseek.models.classifier import BlockModel
from deepseek.models.dropout import Dropout
from deepseek.models.hints import ParallelHints

POOLS = ("cls", "mean")
DISTILLATIONS = ("none", "token", "heads")


class PatchEmbedding(nn.Module):
    """Cut an image into patches and project each to `dim` numbers."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Return one token per patch, in rows from the top left."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attend = attention  # from outside context parallelism puts its own here

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Let every token attend to all."""
        # Heads are counted from the projection: under tensor parallelism a rank has some of them.
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linears with a GELU between, applied to each token."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the transformed tokens."""
        return self.fc2(self.dropout(F.gelu(self.fc1(x))))


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole samples, and scale the others up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the branch, with some samples' set to zero while training."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added to the stream (eq. 2, 3)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden_dim: int,
        dropout: float,
        drop_path: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, hidden_dim, dropout)
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens after both branches."""
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x))))
        return x + self.drop_path(self.dropout(self.mlp(self.norm2(x))))


class VisionTransformer(BlockModel):
    """Vision Transformer.

    Args:
        image_size: pixels, one number for square images or (height, width).
        patch_size: pixels, the side of a square patch; divides `image_size`.
        num_layers: number of blocks.
        dim: width of a token; a multiple of `heads`.
        heads: attention heads of a block.
        channels: channels of an image.
        num_classes: outputs; `None` leaves the head out until `bind_classes`.
        hidden_dim: width inside the feed-forward network; `4 * dim` by default.
        dropout: probability in 0..1, on attention weights, branches and embeddings.
        drop_path: probability in 0..1 of dropping a branch of the last block; rises linearly from 0
            at the first.
        pool: what the head sees: "cls", a class token, or "mean", the mean of the patches.
        norm_eps: added to the variance in norms.
        distillation: DeiT's second token beside the class token: "none"; "token", which the patches
            see; "heads", with a head of its own too, whose logits are averaged with the other's.

    Raises:
        ConfigError: if a size is not positive, `patch_size` does not divide `image_size`, or
        `heads` not `dim`.

    Example:
        >>> model = VisionTransformer(
        ...     image_size=32, patch_size=8, num_layers=2, dim=64, heads=4, num_classes=10
        ... )
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        num_layers: int,
        dim: int,
        heads: int,
        channels: int = 3,
        num_classes: int | None = None,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pool: str = "cls",
        norm_eps: float = 1e-6,
        distillation: str = "none",
    ) -> None:
        super().__init__()
        height, width = _sides(image_size)
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(
            image_height=height, image_width=width, patch_size=patch_size, num_layers=num_layers,
            dim=dim, heads=heads, channels=channels, hidden_dim=hidden_dim,
        )  # fmt: skip
        check_share(dropout=dropout, drop_path=drop_path, norm_eps=norm_eps)
        _check_divisible(image_size, (height, width), patch_size, dim, heads)
        check_choice(pool=(pool, POOLS), distillation=(distillation, DISTILLATIONS))
        if distillation != "none" and pool != "cls":
            raise ConfigError(
                f"distillation={distillation!r} needs a class token, and pool={pool!r} has none",
                fix='use pool="cls"',
            )
        self._config = {
            "image_size": height if height == width else [height, width], "patch_size": patch_size,
            "num_layers": num_layers, "dim": dim, "heads": heads, "channels": channels,
            "num_classes": None, "hidden_dim": hidden_dim, "dropout": dropout,
            "drop_path": drop_path, "pool": pool, "norm_eps": norm_eps,
            "distillation": distillation,
        }  # fmt: skip
        self.image_size = (height, width)
        self.patch_size = patch_size
        self.patch_embed = PatchEmbedding(patch_size, channels, dim)
        num_tokens = self.count_tokens(torch.empty(0))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if pool == "cls" else None
        is_distilled = distillation != "none"
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim)) if is_distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, dim))
        self.dropout = Dropout(dropout)
        rates = [drop_path * i / max(1, num_layers - 1) for i in range(num_layers)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden_dim, dropout, rate, norm_eps) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.head_dist: nn.Linear | None = None
        self.head: nn.Linear | None = None
        self._reset_parameters()
        if num_classes is not None:
            self.bind_classes(num_classes)

    def _reset_parameters(self) -> None:
        for block in self.blocks.modules():
            if isinstance(block, nn.Linear):
                nn.init.xavier_uniform_(block.weight)
                nn.init.zeros_(block.bias)
        proj = self.patch_embed.proj
        nn.init.trunc_normal_(proj.weight, std=math.sqrt(1 / proj.weight[0].numel()))
        if proj.bias is not None:
            nn.init.zeros_(proj.bias)
        with torch.no_grad():
            rows, columns = (side // self.patch_size for side in self.image_size)
            self.pos_embed.zero_()
            self.pos_embed[0, -rows * columns :] = grid_positions(
                rows, columns, self.pos_embed.shape[-1]
            )
        for token in (self.cls_token, self.dist_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        return dict(self._config)

    @property
    def hints(self) -> ParallelHints:
        """What the parts are for."""
        tables = ("cls_token", "dist_token", "pos_embed")
        return ParallelHints(
            blocks=("blocks",),
            column_linears=("attn.qkv", "mlp.fc1"),
            row_linears=("attn.proj", "mlp.fc2"),
            fused_heads=(("attn.qkv", 3),),
            heads=self._config["heads"],
            embeddings=("patch_embed",),
            head=("norm", "head_dist", "head") if self._has_two_heads else ("norm", "head"),
            no_weight_decay=tuple(name for name in tables if getattr(self, name) is not None),
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return (self._config["channels"], *self.image_size)

    def bind_classes(self, num_classes: int) -> None:
        """Build a head, zero at first: the loss of an untrained model is `log(num_classes)`.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        self.head = self._make_head(num_classes)
        if self._has_two_heads:
            self.head_dist = self._make_head(num_classes)
        self._config["num_classes"] = num_classes

    @property
    def _has_two_heads(self) -> bool:
        return self._config["distillation"] == "heads"

    def _make_head(self, num_classes: int) -> nn.Linear:
        weight = self.norm.weight
        head = nn.Linear(len(weight), num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def embed(self, inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Return the patches as tokens, those of class and distillation before, with positions.

        Raises:
            ConfigError: if the images are not of the model's size.
        """
        if inputs.shape[-2:] != self.image_size:
            raise ConfigError(
                f"images of {inputs.shape[-2]}x{inputs.shape[-1]} pixels do not fit a model with"
                f" image_size={self._config['image_size']}",
                fix="resize the images, or build the model with their size",
            )
        x = self.patch_embed(inputs)
        first = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if first:
            before = [token.to(x.dtype).expand(x.shape[0], -1, -1) for token in first]
            x = torch.cat([*before, x], dim=1)
        return self.dropout(x + self.pos_embed)

    def count_tokens(self, inputs: Tensor) -> int:
        """Return the number of patches, and of the tokens before them."""
        rows, columns = (side // self.patch_size for side in self.image_size)
        is_distilled = self._config["distillation"] != "none"
        return rows * columns + (self._config["pool"] == "cls") + is_distilled

    def classify(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B K"]:
        """Return the logits of the class token, or of the mean of the patches.

        Raises:
            ConfigError: if the model has no head yet.
        """
        if self.head is None:
            raise missing_head(type(self).__name__)
        x = self.norm(x)
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(x.mean(1) if self._config["pool"] == "mean" else x[:, 0])


def grid_positions(rows: int, columns: int, dim: int) -> Float[Tensor, "T D"]:
    """Return sines and cosines of each patch's row and column, T = rows * columns.

    Paper: Chen et al. 2021 (MoCo v3), arXiv 2104.02057, section 4.2. A `dim` that four does not
    divide ends in zeros.
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, dim // 4 + 1)[:-1]
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (row, column)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(waves, (0, dim - waves.shape[1]))


def _sides(image_size: object) -> tuple[int, int]:
    """Return height and width; lists are taken too, for they come from files."""
    if isinstance(image_size, list | tuple):
        if len(image_size) == 2:
            return image_size[0], image_size[1]
    elif isinstance(image_size, int):
        return image_size, image_size
    raise ConfigError(
        f"image_size={image_size!r} is neither a number of pixels nor (height, width)",
        fix="give image_size=224, or image_size=(224, 160)",
    )


def _check_divisible(
    image_size: object, sides: tuple[int, int], patch_size: int, dim: int, heads: int
) -> None:
    if any(side % patch_size for side in sides):
        raise ConfigError(
            f"patch_size={patch_size} does not divide image_size={image_size}",
            fix="change patch_size or image_size",
        )
    if dim % heads:
        raise ConfigError(f"heads={heads} does not divide dim={dim}", fix="change heads or dim")
