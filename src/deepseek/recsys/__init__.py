"""Recommendation: models of who likes what, and counters that move with every event."""

from deepseek.recsys.first_models import FactorizationMachine as FactorizationMachine
from deepseek.recsys.first_models import LogisticRegression as LogisticRegression
from deepseek.recsys.first_models import MultiLayerPerceptron as MultiLayerPerceptron
from deepseek.recsys.movielens import read_movielens as read_movielens
from deepseek.recsys.real_time_crosses import RealTimeCrosses as RealTimeCrosses
from deepseek.recsys.scoring import Scorer as Scorer
