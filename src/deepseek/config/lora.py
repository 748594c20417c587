"""The settings of low-rank adapters."""

from pydantic import Field

from deepseek.config.settings import Auto, Number, Settings, Whole


class LoraConfig(Settings):
    """Adapters that learn in place of the weights of the blocks (LoRA, arXiv 2106.09685)."""

    rank: Whole = Field(default=8, ge=1)
    """Width of an adapter."""
    alpha: Number | Auto = "auto"
    """What an adapter counts, times `rank`. `auto`: twice the rank."""
    dropout: Number = Field(default=0.0, ge=0, lt=1)
    """Probability, on the inputs of adapters."""
    targets: list[str] | Auto = "auto"
    """Ends of the names of the linears that have one. `auto`: all linears of the blocks."""
