"""The whole pipeline in the built-in world: world, labels, stages of training, evaluation, report.

This package composes all others; only the command line imports it.
"""

from ovbridge.demo.run import run_demo
from ovbridge.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
