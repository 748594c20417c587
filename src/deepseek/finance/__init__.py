"""Finance: text with a vocabulary that grows, and models that learn the language of the field."""

from deepseek.finance.adaptation import Adaptation as Adaptation
from deepseek.finance.adaptation import Perplexity as Perplexity
from deepseek.finance.adaptation import adapt as adapt
from deepseek.finance.datasets import Sentences as Sentences
from deepseek.finance.datasets import read_fiqa as read_fiqa
from deepseek.finance.datasets import read_fomc as read_fomc
from deepseek.finance.datasets import read_phrasebank as read_phrasebank
from deepseek.finance.datasets import read_twitter_news as read_twitter_news
from deepseek.finance.growing_vocabulary import GrowingVocabulary as GrowingVocabulary
from deepseek.finance.tickers import find_tickers as find_tickers
from deepseek.finance.vocabulary import GrownVocabulary as GrownVocabulary
from deepseek.finance.vocabulary import grow_vocabulary as grow_vocabulary
