"""Published figures, and how to reach them: one folder each, run and compared by one command.

Imports without torch: what is run are commands, in processes of their own.
"""

from deepseek.reproduce.paper import Figure as Figure
from deepseek.reproduce.paper import Paper as Paper
from deepseek.reproduce.paper import find_paper as find_paper
from deepseek.reproduce.paper import read_papers as read_papers
from deepseek.reproduce.reproduction import Outcome as Outcome
from deepseek.reproduce.reproduction import Reproduction as Reproduction
from deepseek.reproduce.reproduction import reproduce as reproduce
