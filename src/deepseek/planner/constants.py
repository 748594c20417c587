"""The few numbers of the planner that no datasheet has: one set for all models and GPUs.

`benchmarks/planner_fit.py` fits most from a stated few published rows (its table `RANGES` names
them) and `benchmarks/planner_validation.py` holds the rest of the rows against them. Not fitted:

- `power_share`: between 0.76, which the fms-fsdp rows alone would have, and what 47 % of the peak
  in Megatron-LM's published runs needs.
- `flash_share`, `flash_backward`: Dao (2023, arXiv:2307.08691), Shah et al. (2024,
  arXiv:2407.08608): 0.5 to 0.75 of the peak forward, a fifth less backward.
- `host_link_share`, `host_memory_share`: usual for copies of pinned memory and for an update that
  passes over memory once; no published row here tells them.
- `kernel_start_s`, `link_hop_s`, `node_hop_s`: usual latencies; `tp_overlap_share`: no published
  row here tells it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """What a datasheet does not say.

    Attributes:
        matmul_share: of the best product's rate that products of a long run reach.
        power_share: of that, what 16-bit products and attention keep on GPUs that their power
            limit slows down: Hopper and later.
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
        host_link_share: of the bandwidth between a GPU and its host that copies reach.
        host_memory_share: of the bandwidth of the host's memory that its optimizer reaches.
    """

    matmul_share: float = 0.92
    power_share: float = 0.8
    wave_start_s: float = 2.95e-6
    wave_rounding: float = 0.86
    kernel_start_s: float = 3e-6
    flash_share: float = 0.7
    flash1_share: float = 0.48
    flash_head_dim: float = 23.0
    flash_backward: float = 3.0
    hbm_share: float = 0.685
    link_share: float = 0.81
    node_share: float = 0.775
    link_hop_s: float = 3e-6
    node_hop_s: float = 10e-6
    overlap_share: float = 0.13
    overlap_passes: float = 2.9
    tp_overlap_share: float = 0.6
    host_link_share: float = 0.8
    host_memory_share: float = 0.5


CALIBRATION = Calibration()
