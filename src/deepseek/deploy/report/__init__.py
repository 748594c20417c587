"""The run report: a run folder -> one HTML file that needs nothing else."""

from deepseek.deploy.report.page import write_report as write_report
