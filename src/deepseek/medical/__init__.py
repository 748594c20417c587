"""Medical imaging: volumes as scanners write them, and the scores of the field."""

from deepseek.medical.calibration import VoxelCalibration as VoxelCalibration
from deepseek.medical.configuration import Means as Means
from deepseek.medical.configuration import VolumeSettings as VolumeSettings
from deepseek.medical.configuration import configure as configure
from deepseek.medical.detection import DetectionTask as DetectionTask
from deepseek.medical.fingerprint import Fingerprint as Fingerprint
from deepseek.medical.fingerprint import take_fingerprint as take_fingerprint
from deepseek.medical.froc import Findings as Findings
from deepseek.medical.froc import Froc as Froc
from deepseek.medical.froc import Marks as Marks
from deepseek.medical.froc import match_marks as match_marks
from deepseek.medical.nodule_cubes import NoduleCubes as NoduleCubes
from deepseek.medical.nodule_dataset import NoduleDataset as NoduleDataset
from deepseek.medical.nodule_scorer import NoduleScorer as NoduleScorer
from deepseek.medical.phantom_files import write_phantom as write_phantom
from deepseek.medical.phantoms import make_phantom as make_phantom
from deepseek.medical.scan_report import ScanReport as ScanReport
from deepseek.medical.scans import find_scans as find_scans
from deepseek.medical.segmentation_scores import dice_by_class as dice_by_class
from deepseek.medical.segmentation_scores import hausdorff_mm as hausdorff_mm
from deepseek.medical.volume_prediction import predict_scans as predict_scans
from deepseek.trainer.bootstrap import Interval as Interval
from deepseek.trainer.bootstrap import bootstrap_interval as bootstrap_interval
