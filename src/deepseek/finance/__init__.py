"""Finance: text with a vocabulary that grows, and models that learn the language of the field."""

from deepseek.finance.datasets import Sentences as Sentences
from deepseek.finance.datasets import read_fiqa as read_fiqa
from deepseek.finance.datasets import read_fomc as read_fomc
from deepseek.finance.datasets import read_phrasebank as read_phrasebank
from deepseek.finance.datasets import read_twitter_news as read_twitter_news
from deepseek.finance.tickers import find_tickers as find_tickers
