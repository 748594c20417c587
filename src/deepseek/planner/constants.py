"""The few numbers of the planner that were fitted, not derived: one set for all models and GPUs.

`benchmarks/planner_fit.py` finds the fitted ones from a stated few published rows and
`benchmarks/planner_validation.py` holds the rest against them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """What a datasheet does not say.

    Attributes:
        matmul_share: of the best product's rate that products of a long run reach.
        power_share: of that, what 16-bit products keep on GPUs that their power limit slows down:
            Hopper and later.
        wave_start_s: seconds of a wave of tiles that no arithmetic hides (first loads, last store).
        wave_rounding: how much of an unfinished last wave is paid for; 1: all of it.
        kernel_start_s: seconds between two kernels.
        flash_share: of the best product's rate that fused attention reaches with wide heads.
        flash1_share: the same of its first version.
        flash_head_dim: width of a head at which it reaches half of that.
        flash_backward: seconds of its backward pass for each of its forward pass: 5 products to
            the 2, at a lower rate.
        hbm_share: of the datasheet's memory bandwidth that pointwise kernels reach.
        link_share: of the bandwidth within a node that a ring reaches.
        node_share: of the bandwidth between nodes that a ring reaches.
        link_hop_s: seconds of one step of a ring within a node.
        node_hop_s: seconds of one step of a ring between nodes.
        overlap_share: of the processors that communication takes from arithmetic it hides behind.
        overlap_passes: times that a communicated byte goes through memory; arithmetic that hides
            the communication waits meanwhile.
        tp_overlap_share: of tensor-parallel communication that a plan that overlaps it hides.
    """

    matmul_share: float = 0.905
    power_share: float = 0.8
    wave_start_s: float = 2.45e-6
    wave_rounding: float = 0.71
    kernel_start_s: float = 3e-6
    flash_share: float = 0.7
    flash1_share: float = 0.467
    flash_head_dim: float = 17.0
    flash_backward: float = 3.0
    hbm_share: float = 0.77
    link_share: float = 0.7
    node_share: float = 0.775
    link_hop_s: float = 3e-6
    node_hop_s: float = 10e-6
    overlap_share: float = 0.13
    overlap_passes: float = 3.2
    tp_overlap_share: float = 0.6


CALIBRATION = Calibration()
