"""What a training will need, on paper: memory and time of a plan, before renting a GPU.

```
TransformerShape, Cluster, ParallelPlan   ->  predict  ->  Prediction     any plan, costed
TransformerShape, Cluster                 ->  search   ->  Candidates     every feasible plan, ranked
```
Pure Python and numpy: nothing here needs torch.
"""
