"""The version of the distribution `deepseek-framework`."""

__version__ = "0.1.0"
