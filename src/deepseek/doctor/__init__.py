"""What is wrong with this machine for training, and how to mend it.

Imports without torch: torch is asked in a process of its own, for it may be what is broken.
"""

from deepseek.doctor.examination import CHECKS as CHECKS
from deepseek.doctor.examination import examine as examine
from deepseek.doctor.finding import Check as Check
from deepseek.doctor.finding import Finding as Finding
from deepseek.doctor.finding import Verdict as Verdict
from deepseek.doctor.machine import Machine as Machine
from deepseek.doctor.table import as_json as as_json
from deepseek.doctor.table import catalogue as catalogue
from deepseek.doctor.table import exit_code as exit_code
from deepseek.doctor.table import print_table as print_table
