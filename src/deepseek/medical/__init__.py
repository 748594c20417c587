"""Medical imaging: volumes as scanners write them, and the scores of the field."""

from deepseek.medical.bootstrap import Interval as Interval
from deepseek.medical.bootstrap import bootstrap_interval as bootstrap_interval
from deepseek.medical.detection import DetectionTask as DetectionTask
from deepseek.medical.froc import Findings as Findings
from deepseek.medical.froc import Froc as Froc
from deepseek.medical.froc import Marks as Marks
from deepseek.medical.froc import match_marks as match_marks
from deepseek.medical.nodule_dataset import NoduleDataset as NoduleDataset
from deepseek.medical.segmentation_scores import dice_by_class as dice_by_class
from deepseek.medical.segmentation_scores import hausdorff_mm as hausdorff_mm
