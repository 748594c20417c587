"""Finance: text with a vocabulary that grows, and models that learn the language of the field."""

from deepseek.finance.adaptation import Adaptation as Adaptation
from deepseek.finance.adaptation import Perplexity as Perplexity
from deepseek.finance.adaptation import adapt as adapt
from deepseek.finance.growing_vocabulary import GrowingVocabulary as GrowingVocabulary
from deepseek.finance.vocabulary import GrownVocabulary as GrownVocabulary
from deepseek.finance.vocabulary import grow_vocabulary as grow_vocabulary
